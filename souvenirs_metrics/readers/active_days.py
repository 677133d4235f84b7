from __future__ import annotations

from collections.abc import Mapping

from souvenirs.history.cohorts import Figures, Series
from souvenirs.periods import Interval
from souvenirs_metrics.families import ACTIVE_DAYS
from souvenirs_metrics.readers.base import Families
from souvenirs_metrics.readers.closed_periods import ClosedPeriods

DAYS = max(ACTIVE_DAYS.bounds)


class ActiveDays(ClosedPeriods):
    """How often users come: the distribution of users over days of activity."""

    name = "active_days"
    order = 80
    families = (ACTIVE_DAYS,)
    lengths = {"day": DAYS}

    @classmethod
    def series(cls, name: str, intervals: tuple[Interval, ...]) -> Series:
        return Series(intervals, window=DAYS)

    @classmethod
    def families_of(cls, figures: Mapping[str, Figures]) -> Families:
        counts = None
        for each in figures.values():
            if each.active_days is not None and each.is_window_known:
                counts = dict(enumerate(each.active_days))
        return [ACTIVE_DAYS.family(counts)]
