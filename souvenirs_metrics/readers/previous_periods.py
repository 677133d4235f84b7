from __future__ import annotations

from souvenirs import periods
from souvenirs.conf import conf as souvenirs_conf
from souvenirs.history import counting
from souvenirs.models import Souvenir
from souvenirs_metrics.conf import conf
from souvenirs_metrics.families import PREVIOUS_CALENDAR_ACTIVE_USERS
from souvenirs_metrics.readers.base import Families, ReadContext, Reader
from souvenirs_metrics.readers.closed_periods import BUCKETS_OF_ROWS


class PreviousPeriods(Reader):
    """The last complete calendar periods, from the history."""

    name = "previous_periods"
    order = 40
    families = (PREVIOUS_CALENDAR_ACTIVE_USERS,)

    def read(self, now: float, context: ReadContext) -> Families:
        previous = {
            name: periods.previous_calendar_period(name, now, souvenirs_conf.zone)
            for name in periods.NAMES
        }
        using = conf.database(Souvenir)
        with context(using):
            first = counting.first_recorded(using)
            counts = counting.count_users_of_periods(previous, using, most_rows=BUCKETS_OF_ROWS)
        return [
            PREVIOUS_CALENDAR_ACTIVE_USERS.family(
                {
                    name: count
                    for name, count in counts.items()
                    if first is not None and first <= previous[name].start
                }
            )
        ]
