"""Keep the history up to date: run periodically by commands, the exporter and scrapes."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.db import router

from souvenirs.history import accounts, roller
from souvenirs.history.progress import LockNotAcquired, due_until
from souvenirs.lastseen import future, get_store
from souvenirs.models import Rollup
from souvenirs.periods import Interval

USERS = 5_000  # maximum number of last-seen times to reset in a small step


def roll_up(buckets: int | None = None, on_step: Callable[[Interval], None] | None = None) -> None:
    """Reset last-seen times in the future, roll up everything that is due, and store the account
    totals of the days that have ended.

    buckets, on_step: see roller.roll_up_buckets. With `buckets`, do only a small step, and roll up
        nothing if another process is changing Rollups.
    """
    set_back_last_seen(None if buckets is None else USERS)
    try:
        roller.roll_up_buckets(router.db_for_write(Rollup), buckets, on_step)
    except LockNotAcquired:
        return
    accounts.close_days(due_until(time.time()))


def set_back_last_seen(users: int | None = None) -> None:
    """Reset last-seen times from a clock that was ahead, for about this many users (None: all)."""
    future.set_back(users)
    get_store().set_back(users)
