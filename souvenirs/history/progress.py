"""How far the history has been rolled up, and the lock of those who change it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from django.db import connections, transaction
from django.db.models import F

from souvenirs.databases import set_isolation_level
from souvenirs.history.marks import GRACE_SECONDS, oldest_mark
from souvenirs.history.rows import first_day_with_rows
from souvenirs.models import Watermark
from souvenirs.periods import BUCKET, EARLIEST, bucket_containing


class LockNotAcquired(Exception):
    """Another process changes Rollups."""


def watermark(using: str) -> Watermark:
    """The Watermark, or one from before anything was rolled up."""
    return Watermark.objects.using(using).first() or _initial()


class Revision(NamedTuple):
    """What was known of closed history. It differs after each transaction that changed that.

    changed: how many transactions that hold the lock changed it.
    dirty, newest_dirty: how many buckets of it are marked as dirty, and the newest mark's key.
    deletions: how many transactions deleted users.
    """

    changed: int
    dirty: int
    newest_dirty: int
    deletions: int


def revision(until: float, using: str) -> Revision:
    """The revision of the history before `until` (unix seconds), a time that is over and at which
    a day of the site's time zone begins. One query."""
    # So that whoever builds on it can begin; see the branch's next commits
    mark = watermark(using)
    return Revision(mark.rolled_up, 0, 0, 0)


def due_until(now: float) -> int:
    """The end of the buckets that have been over for the grace period at `now`."""
    return bucket_containing(now - GRACE_SECONDS)


def lag(now: float, using: str) -> float:
    """How long ago, in seconds, the oldest bucket ended that is due and not rolled up; 0 if all
    are."""
    due, mark, oldest = due_until(now), watermark(using), oldest_mark(using)
    if oldest is None or oldest >= min(due, mark.rolled_up):
        oldest = None
        if mark.rolled_up < due:
            is_begun = mark.rolled_up > EARLIEST
            oldest = mark.rolled_up if is_begun else first_day_with_rows(due, using)
    return 0.0 if oldest is None else max(now - oldest - BUCKET, 0.0)


@contextmanager
def rollup_lock(using: str, wait: bool = True) -> Iterator[Watermark]:
    """Hold the lock on all Rollups for one transaction, and yield the Watermark.

    wait: if False, raise LockNotAcquired if another process holds it (on databases with SKIP
        LOCKED; the others wait).
    """
    connection = connections[using]
    is_ours = not connection.in_atomic_block and connection.get_autocommit()
    with transaction.atomic(using=using):
        if is_ours:
            # Rows that are locked, or in sight of a DELETE, must be in sight of each SELECT too
            set_isolation_level(using, "READ COMMITTED")
        rows = Watermark.objects.using(using)
        can_skip = connection.features.has_select_for_update_skip_locked
        if not wait and can_skip and not rows.select_for_update(skip_locked=True):
            raise LockNotAcquired
        # A write comes first, so that SQLite waits for its turn before it reads anything
        if not rows.update(rolled_up=F("rolled_up")):
            ensure_watermark(using)
            rows.update(rolled_up=F("rolled_up"))
        yield rows.get()


def ensure_watermark(using: str) -> None:
    """Make the Watermark, if there is none."""
    Watermark.objects.using(using).bulk_create([_initial()], ignore_conflicts=True)


def _initial() -> Watermark:
    return Watermark(pk=1, rolled_up=EARLIEST, pruned=EARLIEST)
