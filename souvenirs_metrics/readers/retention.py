from __future__ import annotations

from collections.abc import Mapping

from souvenirs.history.cohorts import Figures, Series
from souvenirs.periods import Interval
from souvenirs_metrics.families import RETENTION_COHORT, RETENTION_RETAINED
from souvenirs_metrics.readers.base import Families
from souvenirs_metrics.readers.closed_periods import ClosedPeriods

AGES = {"day": (1, 7, 28), "week": tuple(range(1, 13)), "month": tuple(range(1, 13))}


class Retention(ClosedPeriods):
    """Who stays, of those whose first period was 1, 2, ... periods before the last one.

    The label is an age, never a cohort's date: there would be new series with each period. Time is
    the axis of cohorts.
    """

    name = "retention"
    order = 70
    families = (RETENTION_COHORT, RETENTION_RETAINED)
    lengths = {name: max(ages) + 1 for name, ages in AGES.items()}

    @classmethod
    def series(cls, name: str, intervals: tuple[Interval, ...]) -> Series:
        return Series(intervals, ages=AGES[name])

    @classmethod
    def families_of(cls, figures: Mapping[str, Figures]) -> Families:
        cohorts, retained = {}, {}
        for name, each in figures.items():
            for age, users in each.retention.items():
                cohorts[name, str(age)] = users.cohort
                retained[name, str(age)] = users.retained
        return [RETENTION_COHORT.family(cohorts), RETENTION_RETAINED.family(retained)]
