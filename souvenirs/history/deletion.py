"""Deletion of users: their rows and last-seen times are deleted, but past counts are kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from django.db import router, transaction
from django.db.models import QuerySet

from souvenirs import databases, scopes, timestamps
from souvenirs.history import marks
from souvenirs.lastseen import get_store, table
from souvenirs.models import LastSeen, Souvenir, UserDeletion, Watermark
from souvenirs.periods import EARLIEST, bucket_containing

BATCH_SIZE = 500  # users
LOCK_SIZE = 50_000  # rows


def keep_history(user_pks: Sequence[Any], using: str) -> None:
    """Record the buckets in which users were active, if they are not rolled up yet, as marks.

    Only these users' rows are locked, so deletions of different users do not wait for each other.
    Last-seen rows are locked first, as when visits are written: no more souvenirs are added, which
    would not be deleted. Marks may repeat what a Rollup already has.
    """
    # Write first, so that SQLite waits for its turn before it reads anything
    UserDeletion.objects.using(using).create()
    ordinals: dict[Any, int] = {}
    for batch in _batches(user_pks):
        locked = table.lock_rows(batch, using, skip_locked=False)
        ordinals.update((user_pk, ordinal) for user_pk, (ordinal, _seen) in locked.items())
    if databases.locks_beyond_keys(using):
        for batch in _batches(user_pks):
            _lock(Souvenir.objects.using(using).filter(user_id__in=batch), using)
    start = _unknown_from(using)
    for batch in _batches(user_pks):
        rows = Souvenir.objects.using(using).filter(user_id__in=batch).order_by()
        _mark(_unknown(rows, start, using), ordinals, using)


def _unknown_from(using: str) -> datetime:
    """Return the time from which on Rollups may lack rows."""
    watermark = Watermark.objects.using(using).first()
    if watermark is None:
        return timestamps.to_datetime(EARLIEST)
    marked = marks.oldest_mark(using)
    start = watermark.rolled_up if marked is None else min(marked, watermark.rolled_up)
    return timestamps.to_datetime(start)


def _unknown(rows: QuerySet[Souvenir], start: datetime, using: str) -> Iterator[tuple[Any, float]]:
    """Yield (user, Unix time) of those rows that Rollups may lack."""
    columns = "pk", "user_id", "when"
    known: set[int] = set()
    if databases.deletes_beyond_snapshot(using):
        # Neither `start` nor a SELECT considers rows that have been committed since the snapshot;
        # a locking read finds them, as the deletion does
        known.update(rows.filter(when__lt=start).values_list("pk", flat=True).iterator())
        rows = rows.select_for_update()
    else:
        rows = rows.filter(when__gte=start)
    for pk, user_pk, when in rows.values_list(*columns).iterator():
        if pk not in known:
            yield user_pk, timestamps.to_seconds(when)


def _batches(user_pks: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(user_pks), BATCH_SIZE):
        yield user_pks[start : start + BATCH_SIZE]


def _lock(rows: QuerySet[Souvenir], using: str) -> None:
    """Lock rows in the order in which pruning does: the row, then the index on users. Deleting a
    user, InnoDB would lock that index first, and one of the two would fail with a deadlock."""
    keys = rows.order_by("pk").values_list("pk", flat=True).iterator()
    while batch := list(islice(keys, LOCK_SIZE)):
        databases.lock_rows(Souvenir, batch, using)


def _mark(rows: Iterable[tuple[Any, float]], ordinals: dict[Any, int], using: str) -> None:
    """Mark the users of these rows (user, Unix time) as deleted members of their buckets.

    ordinals: the users' LastSeen ids; those of users without a row are added.
    """
    buckets: dict[Any, set[int]] = defaultdict(set)
    for user_pk, t in rows:
        buckets[user_pk].add(bucket_containing(t))
    if buckets:
        if missing := [user_pk for user_pk in buckets if user_pk not in ordinals]:
            ordinals.update(_make_ordinals(missing, using))
        members = ((bucket, ordinals[pk]) for pk, of_user in buckets.items() for bucket in of_user)
        marks.mark_deleted(members, using)


def _make_ordinals(user_pks: Sequence[Any], using: str) -> dict[Any, int]:
    """Return ids for users without a LastSeen row, whose souvenirs were written by raw SQL, say:
    insert a row only for its id, and delete it, because Django may not look for rows again before
    it deletes the users."""
    table.insert_all(user_pks, using)
    rows = LastSeen.objects.using(using).filter(user_id__in=user_pks)
    made = dict(rows.values_list("user_id", "pk"))
    rows.delete()
    return made


def keep_history_of_deleted(user_pks: Sequence[Any], using: str, **kwargs: Any) -> None:
    """Keep the history of users who are about to be deleted; remove them from the store on commit.

    If our tables are in another database, do all of this, and the cascade, after the commit;
    failures are raised there.

    Receiver of the signal deleting_users.
    """
    if router.allow_migrate_model(using, Souvenir):
        keep_history(user_pks, using)

        def forget() -> None:  # a named function: Django logs the name if it fails
            get_store().remove(user_pks)

        transaction.on_commit(forget, using=using, robust=True)
    elif scopes.has_table(Souvenir):
        ours = router.db_for_write(Souvenir)
        transaction.on_commit(lambda: delete_rows(user_pks, ours), using=using)


def delete_rows(user_pks: Sequence[Any], using: str) -> None:
    """Keep the history of users who have been deleted from another database, and delete their rows
    in this one."""
    with transaction.atomic(using=using):
        keep_history(user_pks, using)
        for batch in _batches(user_pks):
            for model in (LastSeen, Souvenir):
                model._base_manager.using(using).filter(user_id__in=batch).delete()
    get_store().remove(user_pks)
