"""Delete old souvenirs: the history keeps their users' counts."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.db import router

from souvenirs import timestamps
from souvenirs.databases import can_skip_locked, delete_rows
from souvenirs.history.progress import rollup_lock, watermark
from souvenirs.history.rollups import merge_into_rollups, read_members
from souvenirs.models import Souvenir, SouvenirQuerySet
from souvenirs.periods import BUCKET, EARLIEST, bucket_containing

BATCH_SIZE = 5_000  # souvenirs that one transaction deletes


def prunable(older_than: float) -> SouvenirQuerySet:
    """Return the souvenirs that `prune` may delete: those of buckets that ended more than
    `older_than` seconds ago and are rolled up."""
    using = router.db_for_write(Souvenir)
    until = min(bucket_containing(time.time() - older_than), watermark(using).rolled_up)
    rows: SouvenirQuerySet = Souvenir.objects.using(using)
    return rows.between(end=timestamps.to_datetime(until))


def prune(older_than: float, on_batch: Callable[[int], object] | None = None) -> int:
    """Delete the souvenirs that are `prunable`. Return their number.

    Counts of ranges that begin and end on a quarter of an hour do not change; other bounds are
    rounded down to the quarter from then on. Each batch is a transaction, in which its users are
    merged into the Rollups. So the call can be interrupted at any point, and other processes may
    record, roll up and prune meanwhile. `on_batch` is called with the number of souvenirs that a
    batch has deleted.
    """
    using = router.db_for_write(Souvenir)
    # Rows that another transaction is deleting are left to it. So this never waits for a row while
    # it holds others, which a transaction that deletes a user might need.
    skip = can_skip_locked(using)
    deleted = 0
    if watermark(using).rolled_up == EARLIEST:
        return deleted
    while True:
        with rollup_lock(using) as mark:
            oldest = prunable(older_than).order_by("when").select_for_update(skip_locked=skip)
            rows = list(oldest.values_list("pk", "when")[:BATCH_SIZE])
            if not rows:
                return deleted
            buckets = sorted({bucket_containing(timestamps.to_seconds(when)) for _, when in rows})
            merge_into_rollups(read_members(buckets, {}, using), using)
            mark.pruned = max(mark.pruned, buckets[-1] + BUCKET)
            mark.save(using=using)
            delete_rows(Souvenir, [pk for pk, _ in rows], using)
        deleted += len(rows)
        if on_batch:
            on_batch(len(rows))
