"""How far the history has been rolled up, and the lock to hold while changing it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from django.db import connections, transaction
from django.db.models import F

from souvenirs import timestamps
from souvenirs.databases import can_skip_locked, delete_rows, set_isolation_level
from souvenirs.history.marks import GRACE_SECONDS, MARKS_PER_TRANSACTION, oldest_mark
from souvenirs.history.rows import first_day_with_rows
from souvenirs.models import Souvenir, UserDeletion, Watermark
from souvenirs.periods import BUCKET, EARLIEST, bucket_containing


class LockNotAcquired(Exception):
    """Another process is changing Rollups."""


def watermark(using: str) -> Watermark:
    """Return the Watermark, or an initial one if nothing has been rolled up."""
    return Watermark.objects.using(using).first() or _initial()


class Revision(NamedTuple):
    """A value that changes with each transaction that changes the history before a given time.

    raised: see Watermark.revision.
    dirty, newest_dirty: the number of marks for late souvenirs, and the key of the newest mark.
    deletions: the number of transactions that have deleted users.
    last_rows: the number of souvenirs in the last bucket, until it is rolled up: for a moment,
        souvenirs may be added to it without a mark.
    """

    raised: int
    dirty: int
    newest_dirty: int
    deletions: int
    last_rows: int


def revision(until: float, using: str) -> Revision:
    """Return the revision of the history before `until` (Unix seconds), which must not be after the
    start of the current day. One query; two until the last bucket is rolled up."""
    dirty = "FROM souvenirs_dirtybucket WHERE bucket < %s"
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT MAX(rolled_up) FROM souvenirs_watermark),"  # noqa: S608
            " (SELECT MAX(revision) FROM souvenirs_watermark),"
            f" (SELECT COUNT(*) {dirty}), (SELECT MAX(id) {dirty}),"
            " (SELECT MAX(deletions) FROM souvenirs_watermark),"
            " (SELECT COUNT(*) FROM souvenirs_userdeletion)",
            [until, until],
        )
        numbers = [0 if number is None else number for number in cursor.fetchone() or ()]
    rolled_up, raised, marks, newest, counted, uncounted = numbers
    last_rows = 0
    if rolled_up < until:
        bounds = (timestamps.to_datetime(t) for t in (until - BUCKET, until))
        last_rows = Souvenir.objects.using(using).between(*bounds).count()
    return Revision(raised, marks, newest, counted + uncounted, last_rows)


def due_until(now: float) -> int:
    """Return the end of the buckets that, at `now`, have been over for the grace period."""
    return bucket_containing(now - GRACE_SECONDS)


def lag(now: float, using: str) -> float:
    """Return how long ago, in seconds, the oldest bucket ended that is due and not rolled up; 0 if
    there is none."""
    due, mark, oldest = due_until(now), watermark(using), oldest_mark(using)
    if oldest is None or oldest >= min(due, mark.rolled_up):
        oldest = None
        if mark.rolled_up < due:
            is_begun = mark.rolled_up > EARLIEST
            oldest = mark.rolled_up if is_begun else first_day_with_rows(due, using)
    return 0.0 if oldest is None else max(now - oldest - BUCKET, 0.0)


@contextmanager
def rollup_lock(using: str, wait: bool = True) -> Iterator[Watermark]:
    """Hold the lock on all Rollups for one transaction, and yield the Watermark, with its revision
    increased.

    wait: if False, raise LockNotAcquired if another process holds the lock (on databases with SKIP
        LOCKED; on others, wait).
    """
    connection = connections[using]
    is_ours = not connection.in_atomic_block and connection.get_autocommit()
    with transaction.atomic(using=using):
        if is_ours:
            # Rows that are locked, or visible to a DELETE, must be visible to each SELECT too
            set_isolation_level(using, "READ COMMITTED")
        rows = Watermark.objects.using(using)
        if not wait and can_skip_locked(using) and not rows.select_for_update(skip_locked=True):
            raise LockNotAcquired
        # Write first, so that SQLite waits for its turn before it reads anything
        if not rows.update(revision=F("revision") + 1):
            ensure_watermark(using)
            rows.update(revision=F("revision") + 1)
        yield rows.get()


def count_deletions(mark: Watermark, using: str) -> None:
    """Add the user deletions that are not counted yet to the Watermark, which the caller has locked
    and must save."""
    rows = UserDeletion.objects.using(using)
    keys = list(rows.values_list("pk", flat=True)[:MARKS_PER_TRANSACTION])
    if keys:
        delete_rows(UserDeletion, keys, using)
        mark.deletions += len(keys)


def ensure_watermark(using: str) -> None:
    """Create the Watermark, if there is none."""
    Watermark.objects.using(using).bulk_create([_initial()], ignore_conflicts=True)


def _initial() -> Watermark:
    # The revision differs from earlier ones even if the table was emptied
    return Watermark(pk=1, rolled_up=EARLIEST, pruned=EARLIEST, revision=int(time.time()))
