"""Old souvenirs -> none: the history keeps their numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from django.db import connections, router

from souvenirs import timestamps
from souvenirs.history import rollups
from souvenirs.history.deletion import ONE_BY_ONE, has_json_table
from souvenirs.models import Souvenir, SouvenirQuerySet
from souvenirs.periods import BUCKET, bucket_containing

BATCH = 5_000  # souvenirs that one transaction deletes


def prunable(older_than: float) -> SouvenirQuerySet:
    """The souvenirs that `prune` may delete: those of buckets that ended over `older_than` seconds
    ago and are rolled up."""
    using = router.db_for_write(Souvenir)
    until = min(bucket_containing(time.time() - older_than), rollups.watermark(using).rolled_up)
    rows: SouvenirQuerySet = Souvenir.objects.using(using)
    return rows.between(end=timestamps.to_datetime(until))


def prune(older_than: float, on_batch: Callable[[int], object] | None = None) -> int:
    """Deletes the souvenirs that are `prunable`, and returns how many.

    Counts of ranges that begin and end at quarters of an hour stay as they are; other bounds are
    set back to the quarter from then on. Each batch is a transaction, in which the Rollups learn of
    all that it deletes, so the call can be interrupted at any point, and others may record, roll up
    and prune meanwhile. `on_batch` is told how many a batch has deleted.
    """
    using = router.db_for_write(Souvenir)
    # Rows that somebody else deletes just now are left to them. So nobody waits here for a row
    # while holding others, which a transaction that deletes a user might want.
    skip = connections[using].features.has_select_for_update_skip_locked
    deleted = 0
    if rollups.watermark(using).rolled_up == rollups.EARLIEST:
        return deleted
    while True:
        with rollups.locked(using) as mark:
            oldest = prunable(older_than).order_by("when").select_for_update(skip_locked=skip)
            rows = list(oldest.values_list("pk", "when")[:BATCH])
            if not rows:
                return deleted
            buckets = sorted({bucket_containing(timestamps.to_seconds(when)) for _, when in rows})
            rollups.add(rollups.read(buckets, {}, using), using)
            mark.pruned = max(mark.pruned, buckets[-1] + BUCKET)
            mark.save(using=using)
            _delete([pk for pk, _ in rows], using)
        deleted += len(rows)
        if on_batch:
            on_batch(len(rows))


def _delete(keys: Sequence[int], using: str) -> None:
    """Deletes these souvenirs, and waits for no others."""
    connection = connections[using]
    if connection.vendor != "mysql" or not has_json_table(using):
        Souvenir.objects.using(using).filter(pk__in=rollups.listed(keys, using)).delete()
        return
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE s FROM {ONE_BY_ONE}", [json.dumps(keys)])
