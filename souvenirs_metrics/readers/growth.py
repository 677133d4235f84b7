from __future__ import annotations

from collections.abc import Mapping

from souvenirs import periods
from souvenirs.history.cohorts import Figures
from souvenirs_metrics.families import GROWTH
from souvenirs_metrics.readers.base import Families
from souvenirs_metrics.readers.closed_periods import ClosedPeriods


class GrowthAccounting(ClosedPeriods):
    """Who is new, came back or stayed away, compared with the period before."""

    name = "growth"
    order = 60
    families = (GROWTH,)
    lengths = dict.fromkeys(periods.NAMES, 2)

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
