from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from functools import partial
from typing import Any

from souvenirs.conf import conf as souvenirs_conf
from souvenirs.lastseen import segments as lastseen
from souvenirs.logs import cause_of
from souvenirs.models import LastSeen
from souvenirs_metrics.caching import CachedReading
from souvenirs_metrics.conf import conf
from souvenirs_metrics.cuts import period_starts, window_starts_in_table
from souvenirs_metrics.families import (
    ACTIVE_ACCOUNTS,
    CALENDAR_ACTIVE_ACCOUNTS,
    CALENDAR_SEGMENT_ACTIVE_USERS,
    SEGMENT_ACTIVE_USERS,
)
from souvenirs_metrics.readers.base import Families, PartialRead, ReadContext, Reader
from souvenirs_metrics.segments import account_path, make_segment

Figures = tuple[dict[Any, int], dict[Any, int]]  # for rolling windows, for periods to date


class Cuts:
    """The starts of the windows and periods that a reading counts."""

    def __init__(self, now: float) -> None:
        self.until = now + souvenirs_conf.last_seen_seconds
        self.windows = window_starts_in_table(now)
        self.periods = period_starts(now)
        self.using = conf.database(LastSeen)

    @property
    def all(self) -> list[float]:
        return [*self.windows.values(), *self.periods.values()]

    @property
    def key(self) -> Hashable:
        """Identifies the windows and periods of a reading. Midnight starts new periods, and so
        changes the key."""
        return tuple(self.windows), tuple(self.periods.items()), self.using


class Segments(Reader):
    """Active users by the segments of SOUVENIRS_METRICS_SEGMENTS. Each segment reads the rows of
    all users seen since the earliest window or period began, so the result is cached for a while.
    """

    name = "segments"
    order = 100
    families = (SEGMENT_ACTIVE_USERS, CALENDAR_SEGMENT_ACTIVE_USERS)

    def __init__(self) -> None:
        self._cached: dict[str, CachedReading[Figures]] = defaultdict(CachedReading)

    def read(self, now: float, context: ReadContext) -> Families:
        if not conf.segments:
            return [family.family() for family in self.families]
        cuts = Cuts(now)
        windows: dict[Any, int] = {}
        periods: dict[Any, int] = {}
        missing: dict[str, str] = {}
        for name, entry in conf.segments.items():
            try:
                of_windows, of_periods = self._cached[name].get(
                    (cuts.key, repr(entry)), partial(self._count, entry, cuts, context)
                )
            except Exception as error:
                missing[name] = cause_of(error)
                continue
            windows.update({(name, *key): count for key, count in of_windows.items()})
            periods.update({(name, *key): count for key, count in of_periods.items()})
        read = [SEGMENT_ACTIVE_USERS.family(windows), CALENDAR_SEGMENT_ACTIVE_USERS.family(periods)]
        if missing:
            names, causes = ", ".join(missing), "; ".join(dict.fromkeys(missing.values()))
            raise PartialRead(read, f"segments {names}", causes)
        return read

    def _count(self, entry: Any, cuts: Cuts, context: ReadContext) -> Figures:
        segment = make_segment(entry)
        with context(cuts.using):
            counts = lastseen.count_users_by(
                segment.path, segment.values, cuts.all, cuts.until, cuts.using
            )
        labels = segment.names
        return (
            {
                (labels[number], name): since[cut]
                for number, since in counts.items()
                for name, cut in cuts.windows.items()
            },
            {
                (labels[number], name): since[cut]
                for number, since in counts.items()
                for name, cut in cuts.periods.items()
            },
        )


class ActiveAccounts(Reader):
    """Accounts (SOUVENIRS_METRICS_ACCOUNTS) with at least one user seen. The result is cached, like
    those of segments."""

    name = "active_accounts"
    order = 90
    families = (ACTIVE_ACCOUNTS, CALENDAR_ACTIVE_ACCOUNTS)

    def __init__(self) -> None:
        self._cached: CachedReading[Figures] = CachedReading()

    def read(self, now: float, context: ReadContext) -> Families:
        if conf.accounts is None:
            return [family.family() for family in self.families]
        cuts = Cuts(now)
        windows, periods = self._cached.get(
            (cuts.key, conf.accounts), partial(self._count, cuts, context)
        )
        return [ACTIVE_ACCOUNTS.family(windows), CALENDAR_ACTIVE_ACCOUNTS.family(periods)]

    def _count(self, cuts: Cuts, context: ReadContext) -> Figures:
        path = account_path(conf.accounts)
        with context(cuts.using):
            since = lastseen.count_accounts(path, cuts.all, cuts.until, cuts.using)
        return (
            {name: since[cut] for name, cut in cuts.windows.items()},
            {name: since[cut] for name, cut in cuts.periods.items()},
        )
