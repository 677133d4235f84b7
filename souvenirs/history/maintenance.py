"""What keeps the history up to date: to be run from time to time, by whoever can."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.db import router

from souvenirs.history import accounts, roller
from souvenirs.history.progress import LockNotAcquired, due_until
from souvenirs.models import Rollup
from souvenirs.periods import Interval


def roll_up(buckets: int | None = None, on_step: Callable[[Interval], None] | None = None) -> None:
    """Roll up all that is due, and keep the account totals of the days that have ended.

    buckets, on_step: see roller.roll_up_buckets. With `buckets`, do nothing if another process
        changes Rollups.
    """
    try:
        roller.roll_up_buckets(router.db_for_write(Rollup), buckets, on_step)
    except LockNotAcquired:
        return
    accounts.close_days(due_until(time.time()))
