"""What keeps the history up to date: to be run from time to time, by whoever can."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.db import router

from souvenirs.history import accounts, roller
from souvenirs.history.progress import LockNotAcquired, due_until
from souvenirs.lastseen import future, get_store
from souvenirs.models import Rollup
from souvenirs.periods import Interval

USERS = 5_000  # whose last-seen times are set back at most, where little is to be done at a time


def roll_up(buckets: int | None = None, on_step: Callable[[Interval], None] | None = None) -> None:
    """Roll up all that is due, and keep the account totals of the days that have ended. Before
    that, set last-seen times back that are still to come.

    buckets, on_step: see roller.roll_up_buckets. With `buckets`, do a little only, and roll up
        nothing if another process changes Rollups.
    """
    set_back_last_seen(None if buckets is None else USERS)
    try:
        roller.roll_up_buckets(router.db_for_write(Rollup), buckets, on_step)
    except LockNotAcquired:
        return
    accounts.close_days(due_until(time.time()))


def set_back_last_seen(users: int | None = None) -> None:
    """Correct last-seen times that a clock has made which was ahead, of about so many users."""
    future.set_back(users)
    get_store().set_back(users)
