"""Growth, retention and active days: parts of the page that one sweep over the history answers."""

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
from souvenirs_metrics.families import ACTIVE_DAYS, GROWTH, RETENTION_COHORT, RETENTION_RETAINED
from souvenirs_metrics.readers.base import Families, ReadContext, Reader

# Quarters of an hour whose rows may be read: yesterday's figures must be there at midnight, before
# its last quarters are rolled up
BUCKETS_OF_ROWS = 8

AGES = {"day": (1, 7, 28), "week": tuple(range(1, 13)), "month": tuple(range(1, 13))}
DAYS = max(ACTIVE_DAYS.bounds)
# How many of the last periods have to be read: growth takes two
LENGTHS = {name: max(AGES.get(name, (1,))) + 1 for name in periods.NAMES}


class ClosedPeriods(Reader):
    """What of the last calendar periods that are over. It is kept until the history changes.

    kept: is shared by these readers, so that the first of them reads the history for all.
    """

    def __init__(self, kept: KeptFigures) -> None:
        self._kept = kept

    @classmethod
    @abstractmethod
    def families_of(cls, figures: Mapping[str, Figures]) -> Families:
        """The families that say this of one period of each kind. What is not known is left out."""

    def read(self, now: float, context: ReadContext) -> Families:
        found = self._kept.read(
            {name: series(name, last_periods(name, now, n)) for name, n in LENGTHS.items()},
            conf.database(Souvenir),
            most_rows=BUCKETS_OF_ROWS,
            read_context=context,
        )
        return self.families_of({name: figures[-1] for name, figures in found.items()})


class GrowthAccounting(ClosedPeriods):
    """Who is new, came back or stayed away, compared with the period before."""

    name = "growth"
    order = 60
    families = (GROWTH,)

    @classmethod
    def families_of(cls, figures: Mapping[str, Figures]) -> Families:
        return [
            GROWTH.family(
                {
                    (name, change): users
                    for name, each in figures.items()
                    if each.growth is not None
                    for change, users in each.growth._asdict().items()
                    if users is not None
                }
            )
        ]


class Retention(ClosedPeriods):
    """Who stays, of those whose first period was 1, 2, ... periods before the last one.

    The label is an age, never a cohort's date: there would be new series with each period. Time is
    the axis of cohorts.
    """

    name = "retention"
    order = 70
    families = (RETENTION_COHORT, RETENTION_RETAINED)

    @classmethod
    def families_of(cls, figures: Mapping[str, Figures]) -> Families:
        cohorts, retained = {}, {}
        for name, each in figures.items():
            for age, users in each.retention.items():
                cohorts[name, str(age)] = users.cohort
                retained[name, str(age)] = users.retained
        return [RETENTION_COHORT.family(cohorts), RETENTION_RETAINED.family(retained)]


class ActiveDays(ClosedPeriods):
    """How often users come: the distribution of users over days of activity."""

    name = "active_days"
    order = 80
    families = (ACTIVE_DAYS,)

    @classmethod
    def families_of(cls, figures: Mapping[str, Figures]) -> Families:
        of_day = figures.get("day")
        if of_day is None or of_day.active_days is None or not of_day.is_window_known:
            return [ACTIVE_DAYS.family(None)]
        return [ACTIVE_DAYS.family(dict(enumerate(of_day.active_days)))]


READERS: tuple[type[ClosedPeriods], ...] = (GrowthAccounting, Retention, ActiveDays)


def make_readers() -> list[Reader]:
    kept = KeptFigures()
    return [reader(kept) for reader in READERS]


def series(name: str, intervals: tuple[Interval, ...]) -> Series:
    """What to ask of these periods of a kind."""
    return Series(intervals, ages=AGES.get(name, ()), window=DAYS if name == "day" else 0)


def last_periods(name: str, now: float, length: int) -> tuple[Interval, ...]:
    """So many calendar periods that had ended by `now`, the last ones."""
    found: list[Interval] = []
    while len(found) < length:
        before = found[0].start if found else now
        found.insert(0, periods.previous_calendar_period(name, before, souvenirs_conf.zone))
    return tuple(found)
