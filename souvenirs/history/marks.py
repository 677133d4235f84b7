"""Marks for what the Rollups of a bucket may lack: late souvenirs, and deleted users.

Writers only add marks, so they never wait for each other. The roller removes marks in the
transaction that processes them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from django.db.models import Min, QuerySet, Value

from souvenirs import timestamps
from souvenirs.databases import as_in_list
from souvenirs.models import DeletedMember, DirtyBucket, Souvenir
from souvenirs.periods import BUCKET, Interval, bucket_containing

# A bucket is rolled up this long after its end. A writer that takes more than half of that to write
# a souvenir marks the bucket, so clocks of a site's machines may differ by the other half.
GRACE_SECONDS = 120
MARKS_PER_TRANSACTION = 50_000
BATCH_SIZE = 5_000  # marks in a statement


def mark_dirty(souvenirs: Iterable[Souvenir], using: str, **kwargs: Any) -> None:
    """Mark the buckets of these souvenirs. Receiver of the signal souvenirs_written."""
    buckets = {bucket_containing(timestamps.to_seconds(souvenir.when)) for souvenir in souvenirs}
    mark_buckets(buckets, using)


def mark_buckets(buckets: Iterable[int], using: str) -> None:
    """Mark the buckets with these starts."""
    DirtyBucket.objects.using(using).bulk_create(
        (DirtyBucket(bucket=bucket) for bucket in sorted(buckets)), batch_size=BATCH_SIZE
    )


def may_be_rolled_up(bucket: int) -> bool:
    """Return True if the roller may have read this bucket (given by its start) already, so that a
    souvenir that was just committed in it has to be marked."""
    return time.time() > bucket + BUCKET + GRACE_SECONDS / 2


def mark_deleted(members: Iterable[tuple[int, int]], using: str) -> None:
    """Record that deleted users were active, as pairs of (bucket, LastSeen id)."""
    DeletedMember.objects.using(using).bulk_create(
        (DeletedMember(bucket=bucket, member=member) for bucket, member in sorted(members)),
        batch_size=BATCH_SIZE,
    )


def oldest_mark(using: str) -> int | None:
    """Return the oldest bucket with a mark, or None. One query."""
    dirty, deleted = (
        model._base_manager.using(using)
        .annotate(all=Value(1))
        .values("all")
        .annotate(oldest=Min("bucket"))
        .values_list("oldest", flat=True)
        for model in (DirtyBucket, DeletedMember)
    )
    return min((bucket for bucket in dirty.union(deleted) if bucket is not None), default=None)


def marked_buckets(span: Interval, using: str) -> list[int]:
    """Return the buckets of `span` that have a mark, in ascending order. One query."""
    dirty, deleted = (
        rows.order_by().values_list("bucket", flat=True) for rows in _marks_in(span, using)
    )
    return sorted(dirty.union(deleted))


def deleted_members(span: Interval, using: str) -> list[tuple[int, int]]:
    """Return (bucket, LastSeen id) of the users who were active in `span` and have been deleted, in
    ascending order."""
    _, deleted = _marks_in(span, using)
    return sorted(deleted.order_by().values_list("bucket", "member"))


def pop_marks(
    span: Interval, using: str, limit: int | None = None
) -> tuple[set[int], dict[int, set[int]]]:
    """Delete marks of `span`. Return their buckets, and the deleted members by bucket.

    Marks are deleted by their keys: those added meanwhile, for souvenirs that a snapshot does not
    show, stay.

    limit: delete the marks of at most this many buckets.
    """
    if limit is not None and len(marked := marked_buckets(span, using)) > limit:
        span = Interval(span.start, marked[limit])
    dirty, deleted = _marks_in(span, using)
    buckets = {bucket for _, bucket in _pop(dirty, using, "bucket")}
    members: dict[int, set[int]] = defaultdict(set)
    for _, bucket, member in _pop(deleted, using, "bucket", "member"):
        members[bucket].add(member)
    return buckets | set(members), members


def _marks_in(span: Interval, using: str) -> tuple[QuerySet[DirtyBucket], QuerySet[DeletedMember]]:
    bounds = {"bucket__gte": span.start, "bucket__lt": span.end}
    return (
        DirtyBucket.objects.using(using).filter(**bounds),
        DeletedMember.objects.using(using).filter(**bounds),
    )


def _pop(marks: QuerySet[Any], using: str, *columns: str) -> list[tuple[Any, ...]]:
    rows = list(marks.order_by("pk").values_list("pk", *columns)[:MARKS_PER_TRANSACTION])
    if rows:
        keys = as_in_list((pk for pk, *_ in rows), using)
        marks.model._base_manager.using(using).filter(pk__in=keys).delete()
    return rows
