"""Roll up rows and marks of the buckets that are over, and of the days and months they complete."""

from __future__ import annotations

import time
from collections.abc import Callable

from souvenirs.conf import conf
from souvenirs.history.marks import oldest_mark, pop_marks
from souvenirs.history.progress import (
    count_deletions,
    due_until,
    ensure_watermark,
    rollup_lock,
    watermark,
)
from souvenirs.history.rollups import (
    PERIODS,
    build_period_rollup,
    merge_into_rollups,
    read_members,
)
from souvenirs.history.rows import first_day_with_rows, next_day_with_rows
from souvenirs.periods import BUCKET, EARLIEST, Interval, bucket_after, calendar_period


def roll_up_buckets(
    using: str, limit: int | None = None, on_step: Callable[[Interval], None] | None = None
) -> None:
    """Roll up the buckets that are due: new ones, and those with marks.

    Each day is a transaction, so after an interruption the next call continues where this one
    stopped; memory is bounded by a day's souvenirs. Other processes may roll up or prune at the
    same time.

    limit: at most this many new buckets, and this many marked ones of a day. In that case, raise
        LockNotAcquired if another process is changing Rollups.
    on_step: called with the interval of each transaction.
    """
    for step in (_roll_up_new, _roll_up_marked):
        while interval := step(limit, using):
            if on_step:
                on_step(interval)
            if limit:
                break


def _roll_up_new(limit: int | None, using: str) -> Interval | None:
    """Roll up the next buckets that are due, at most `limit`, and up to a day's end. Return their
    interval, or None if nothing is due."""
    now = time.time()
    due = due_until(now)
    rolled_up = watermark(using).rolled_up
    if rolled_up == due or (rolled_up == EARLIEST and first_day_with_rows(due, using) is None):
        return None
    if rolled_up == EARLIEST:  # before the transaction, in which two first roll-ups could deadlock
        ensure_watermark(using)
    with rollup_lock(using, wait=limit is None) as mark:
        start: int | None = mark.rolled_up
        if mark.rolled_up > due:  # the clock was set back, so there may be new souvenirs
            mark.rolled_up = due
            mark.save(using=using)
        if start == EARLIEST:
            start = first_day_with_rows(due, using)
        if start is None or start >= due:
            return None
        end = next_day_with_rows(start, due, using)
        if end is None:
            day = calendar_period("day", start, conf.zone)
            end = min(bucket_after(day.end), due)
            if limit is not None:
                end = min(end, start + limit * BUCKET)
            _, deleted = pop_marks(Interval(start, end), using)
            merge_into_rollups(read_members(range(start, end, BUCKET), deleted, using), using)
        if start >= calendar_period("day", now, conf.zone).start:
            mark.revision -= 1  # this changed only a day that is not over
        count_deletions(mark, using)
        mark.rolled_up = end
        mark.save(using=using)
        _build_periods(end - 1, end, using)
    return Interval(start, end)


def _roll_up_marked(limit: int | None, using: str) -> Interval | None:
    """Roll up the marked buckets of the day with the oldest ones. Return their interval, or None if
    there are none."""
    oldest = oldest_mark(using)
    if oldest is None or oldest >= watermark(using).rolled_up:
        return None
    with rollup_lock(using, wait=limit is None) as mark:
        oldest = oldest_mark(using)
        if oldest is None or oldest >= mark.rolled_up:
            return None
        day = calendar_period("day", oldest, conf.zone)
        span = Interval(oldest, min(bucket_after(day.end), mark.rolled_up))
        buckets, deleted = pop_marks(span, using, limit)
        merge_into_rollups(read_members(sorted(buckets), deleted, using), using)
        _build_periods(oldest, mark.rolled_up, using)
    return Interval(oldest, max(buckets) + BUCKET)


def _build_periods(t: float, rolled_up: int, using: str) -> None:
    """Create the Rollups of the day and month that contain `t`, if they are complete."""
    for kind, name in PERIODS.items():
        build_period_rollup(kind, calendar_period(name, t, conf.zone), rolled_up, using)
