"""The rolling windows that end now, each compared with the one before it."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import router

from souvenirs.conf import conf
from souvenirs.history import counting
from souvenirs.lastseen import get_store, table
from souvenirs.models import LastSeen
from souvenirs.periods import Interval

WINDOWS = {"1h": 3_600, "1d": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}
# A window of so many rate-limit slots is long enough that what it misses at its start is negligible
COMPARABLE = 24


@dataclass(frozen=True, kw_only=True)
class WindowFigures:
    """Users active in a window that ends now, and in the one that ended when it began.

    active: None while the last-seen store does not know it.
    before: None if the record does not reach back that far, or if the window is too short to be
        compared by souvenirs, of which there is only one per rate-limit slot.
    """

    name: str
    active: int | None
    before: int | None

    @property
    def change(self) -> float | None:
        """The change relative to `before`, such as 0.5 for 50 % more users. None if it is not known
        or `before` is 0."""
        if self.active is None or not self.before:
            return None
        return self.active / self.before - 1


def read_windows(now: float) -> list[WindowFigures]:
    """Read the figures of WINDOWS at `now` (Unix seconds), in a fixed number of queries."""
    resolution, limit = conf.last_seen_seconds, conf.ratelimit_seconds
    # A window is never short: its beginning is floored to the resolution of last-seen times
    cuts = {name: table.resolution_start(now - length) for name, length in WINDOWS.items()}
    counts = get_store().count(
        list(cuts.values()), until=now + resolution, using=router.db_for_read(LastSeen)
    )
    known = {
        name: counts.since[cut] for name, cut in cuts.items() if counts.knows(cut, WINDOWS[name])
    }
    first = counting.first_recorded()
    earlier = {
        name: Interval(now - 2 * length, now - length)
        for name, length in WINDOWS.items()
        if length >= COMPARABLE * limit and first is not None and first <= now - 2 * length
    }
    before = dict(zip(earlier, counting.count_users_of_ranges(list(earlier.values()))))
    return [
        WindowFigures(name=name, active=known.get(name), before=before.get(name))
        for name in WINDOWS
    ]
