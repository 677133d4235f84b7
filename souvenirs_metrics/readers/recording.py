from __future__ import annotations

from functools import cache
from typing import Any

from django.core.checks import ERROR, run_checks
from django.core.signals import setting_changed

from souvenirs.checks import TAG
from souvenirs.lastseen.base import ReadContext
from souvenirs_metrics.readers.base import Families, PartialRead, Reader


class Recording(Reader):
    """Whether visits can be recorded with these settings. Queries nothing.

    A hook that cannot be imported, say, or a cache that is not there, fails each visit: the numbers
    would fall while the page looks well.
    """

    name = "recording"
    order = 5
    families = ()

    def read(self, now: float, context: ReadContext) -> Families:
        if problems():
            raise PartialRead([], self.name, problems())
        return []


@cache  # settings do not change while a process runs
def problems() -> str:
    """What is wrong with the settings, in one line; empty if nothing is."""
    return " ".join(
        message.msg
        for message in run_checks(tags=[TAG])
        if message.level >= ERROR
        and not message.is_silenced()
        # Not of the settings of souvenirs_metrics, which cost a part of the page only
        and str(message.id).startswith("souvenirs.")
    )


def _on_setting_changed(**kwargs: Any) -> None:
    problems.cache_clear()


setting_changed.connect(_on_setting_changed)
