from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from souvenirs import periods
from souvenirs.conf import conf as souvenirs_conf
from souvenirs.history.cohorts import Figures, Series
from souvenirs.history.figures import KeptFigures
from souvenirs.models import Souvenir
from souvenirs.periods import Interval
from souvenirs_metrics.conf import conf
from souvenirs_metrics.readers.base import Families, ReadContext, Reader

# Quarters of an hour whose rows may be read: yesterday's figures must be there at midnight, before
# its last quarters are rolled up
BUCKETS_OF_ROWS = 8


class ClosedPeriods(Reader):
    """Figures of calendar periods that are over. They are kept until the history changes.

    lengths: by the name of a period, how many of the last ones have to be read.
    """

    lengths: Mapping[str, int]

    def __init__(self) -> None:
        self._kept = KeptFigures()

    @classmethod
    def series(cls, name: str, intervals: tuple[Interval, ...]) -> Series:
        """What to ask of these periods of a kind."""
        return Series(intervals)

    @classmethod
    @abstractmethod
    def families_of(cls, figures: Mapping[str, Figures]) -> Families:
        """The families that say this of a period of each kind. What is not known is left out."""

    def read(self, now: float, context: ReadContext) -> Families:
        found = self._kept.read(
            {
                name: self.series(name, last_periods(name, now, length))
                for name, length in self.lengths.items()
            },
            conf.database(Souvenir),
            most_rows=BUCKETS_OF_ROWS,
            read_context=context,
        )
        return self.families_of({name: figures[-1] for name, figures in found.items()})


def last_periods(name: str, now: float, length: int) -> tuple[Interval, ...]:
    """So many calendar periods that had ended by `now`, the last ones."""
    found: list[Interval] = []
    while len(found) < length:
        before = found[0].start if found else now
        found.insert(0, periods.previous_calendar_period(name, before, souvenirs_conf.zone))
    return tuple(found)
