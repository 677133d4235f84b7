from __future__ import annotations

from django.core.checks import ERROR, run_checks

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

    def __init__(self) -> None:
        self._problems: str | None = None

    def read(self, now: float, context: ReadContext) -> Families:
        if self._problems is None:  # settings do not change while a process runs
            self._problems = " ".join(
                message.msg
                for message in run_checks(tags=[TAG])
                if message.level >= ERROR
                and not message.is_silenced()
                # Not of the settings of souvenirs_metrics, which cost a part of the page only
                and str(message.id).startswith("souvenirs.")
            )
        if self._problems:
            raise PartialRead([], self.name, self._problems)
        return []
