from __future__ import annotations

from functools import cache
from typing import Any

from django.core.checks import ERROR, run_checks
from django.core.signals import setting_changed

from souvenirs.checks import TAG
from souvenirs.lastseen.base import ReadContext
from souvenirs_metrics.readers.base import Families, PartialRead, Reader


class Recording(Reader):
    """Checks that visits can be recorded with the site's settings. Runs no queries.

    With a hook that cannot be imported, for example, or a cache that does not exist, every visit
    fails: the numbers would fall although the page looks healthy.
    """

    name = "recording"
    order = 5
    families = ()

    def read(self, now: float, context: ReadContext) -> Families:
        if problems():
            raise PartialRead([], self.name, problems())
        return []


@cache  # settings do not change during the life of a process
def problems() -> str:
    """The errors that the system checks find in the settings, in one line; empty if none."""
    return " ".join(
        message.msg
        for message in run_checks(tags=[TAG])
        if message.level >= ERROR
        and not message.is_silenced()
        # Bad settings of souvenirs_metrics do not count: they only cost a part of the page
        and str(message.id).startswith("souvenirs.")
    )


def _on_setting_changed(**kwargs: Any) -> None:
    problems.cache_clear()


setting_changed.connect(_on_setting_changed)
