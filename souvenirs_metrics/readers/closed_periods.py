from __future__ import annotations

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

# How many quarters of an hour may be read from rows: yesterday's figures must be there at midnight,
# before its last quarters are rolled up
BUCKETS_OF_ROWS = 8

AGES = {"day": (1, 7, 28), "week": tuple(range(1, 13)), "month": tuple(range(1, 13))}
DAYS = max(ACTIVE_DAYS.bounds)
# How many of the last periods have to be read. Growth needs two
LENGTHS = {name: max(AGES.get(name, (1,))) + 1 for name in periods.NAMES}


class ClosedPeriods(Reader):
    """Growth, retention and active days of the last complete calendar periods. Results are cached
    until the history changes.

    Retention is labelled by age, never by a cohort's date, which would add new series with each
    period. Prometheus's time axis tells the cohorts apart.
    """

    name = "closed_periods"
    order = 60
    families = (GROWTH, RETENTION_COHORT, RETENTION_RETAINED, ACTIVE_DAYS)

    def __init__(self) -> None:
        self._figures = KeptFigures()

    def read(self, now: float, context: ReadContext) -> Families:
        found = self._figures.read(
            {name: series(name, last_periods(name, now, n)) for name, n in LENGTHS.items()},
            conf.database(Souvenir),
            most_rows=BUCKETS_OF_ROWS,
            read_context=context,
        )
        return families_of({name: figures[-1] for name, figures in found.items()})


def families_of(figures: Mapping[str, Figures]) -> Families:
    """The families for the figures of one period of each kind. Unknown values are left out."""
    growth, cohorts, retained = {}, {}, {}
    for name, each in figures.items():
        for change, users in each.growth._asdict().items() if each.growth else ():
            if users is not None:
                growth[name, change] = users
        for age, of_cohort in each.retention.items():
            cohorts[name, str(age)] = of_cohort.cohort
            retained[name, str(age)] = of_cohort.retained
    day = figures.get("day")
    days = day.active_days if day and day.is_window_known else None
    return [
        GROWTH.family(growth),
        RETENTION_COHORT.family(cohorts),
        RETENTION_RETAINED.family(retained),
        ACTIVE_DAYS.family(None if days is None else dict(enumerate(days))),
    ]


def series(name: str, intervals: tuple[Interval, ...]) -> Series:
    """The request for the figures of these periods of one kind."""
    return Series(intervals, ages=AGES.get(name, ()), window=DAYS if name == "day" else 0)


def last_periods(name: str, now: float, length: int) -> tuple[Interval, ...]:
    """The last `length` calendar periods that ended by `now`, in ascending order."""
    found: list[Interval] = []
    while len(found) < length:
        before = found[0].start if found else now
        found.insert(0, periods.previous_calendar_period(name, before, souvenirs_conf.zone))
    return tuple(found)
