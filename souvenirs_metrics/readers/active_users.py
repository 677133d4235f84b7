from __future__ import annotations

from souvenirs.conf import conf as souvenirs_conf
from souvenirs.lastseen import get_store
from souvenirs.models import LastSeen
from souvenirs_metrics.conf import conf
from souvenirs_metrics.cuts import period_starts, window_starts
from souvenirs_metrics.families import (
    ACTIVE_USERS,
    CALENDAR_ACTIVE_USERS,
    CALENDAR_PERIOD_START,
    LAST_SEEN,
)
from souvenirs_metrics.readers.base import Families, PartialRead, ReadContext, Reader


class ActiveUsers(Reader):
    """Rolling windows and periods to date. Both count users seen since a given time, so a single
    query of the store answers all of them."""

    name = "active_users"
    order = 20
    families = (ACTIVE_USERS, CALENDAR_ACTIVE_USERS, CALENDAR_PERIOD_START, LAST_SEEN)

    def read(self, now: float, context: ReadContext) -> Families:
        resolution = souvenirs_conf.last_seen_seconds
        starts, cuts = period_starts(now), window_starts(now)
        activity = get_store().count(
            [*starts.values(), *cuts.values()],
            until=now + resolution,
            using=conf.database(LastSeen),
            read_context=context,
        )
        limit = souvenirs_conf.ratelimit_seconds
        coarse = [
            name
            for name, seconds in conf.windows.items()
            if not activity.knows(cuts[name], seconds)
        ]
        for name in coarse:
            del cuts[name]
        read = [
            ACTIVE_USERS.family({name: activity.since[cut] for name, cut in cuts.items()}),
            CALENDAR_ACTIVE_USERS.family(
                {name: activity.since[start] for name, start in starts.items()}
            ),
            CALENDAR_PERIOD_START.family(starts),
            LAST_SEEN.family(activity.newest),
        ]
        if coarse or activity.exact_from > now - limit:
            raise PartialRead(
                read,
                f"windows {', '.join(coarse)}" if coarse else "no window",
                f"{activity.cause}, so older last-seen times are only known to within {limit:g} s",
            )
        return read
