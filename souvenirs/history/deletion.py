"""When users are deleted: their rows and last-seen times go, the numbers of the past stay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from django.db import router, transaction
from django.db.models import QuerySet

from souvenirs import databases, scopes, timestamps
from souvenirs.history import marks
from souvenirs.lastseen import get_store, table
from souvenirs.models import LastSeen, Souvenir, UserDeletion, Watermark
from souvenirs.periods import bucket_containing

BATCH_SIZE = 500  # users
LOCK_SIZE = 50_000  # rows


def keep_history(user_pks: Sequence[Any], using: str) -> None:
    """Keep the buckets that users were active in, where they are not rolled up yet, as marks.

    Only their rows are locked, so deletions of different users do not wait for each other.
    Last-seen rows come first, as where visits are written: no more souvenirs come meanwhile, which
    nobody would delete. Marks may say again what a Rollup already knows.
    """
    # First, so that SQLite waits for its turn before it reads anything
    UserDeletion.objects.using(using).create()
    for batch in _batches(user_pks):
        table.lock_rows(batch, using, skip_locked=False)
    if databases.locks_beyond_keys(using):
        for batch in _batches(user_pks):
            _lock(Souvenir.objects.using(using).filter(user_id__in=batch), using)
    unknown = Souvenir.objects.using(using).order_by()
    watermark = Watermark.objects.using(using).first()
    if watermark is not None:
        marked = marks.oldest_mark(using)
        start = watermark.rolled_up if marked is None else min(marked, watermark.rolled_up)
        unknown = unknown.filter(when__gte=timestamps.to_datetime(start))
    for batch in _batches(user_pks):
        _mark(unknown.filter(user_id__in=batch), using)


def _batches(user_pks: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(user_pks), BATCH_SIZE):
        yield user_pks[start : start + BATCH_SIZE]


def _lock(rows: QuerySet[Souvenir], using: str) -> None:
    """Lock rows as pruning does. InnoDB would lock them from the index on users, when they are
    deleted. Pruning locks the index after the row: one of the two would fail for a deadlock. So the
    row comes first."""
    keys = rows.order_by("pk").values_list("pk", flat=True).iterator()
    while batch := list(islice(keys, LOCK_SIZE)):
        databases.lock_rows(Souvenir, batch, using)


def _mark(rows: QuerySet[Souvenir], using: str) -> None:
    buckets: dict[Any, set[int]] = defaultdict(set)
    for user_pk, when in rows.values_list("user_id", "when").iterator():
        buckets[user_pk].add(bucket_containing(timestamps.to_seconds(when)))
    if buckets:
        ordinals = _ordinals(list(buckets), using)
        members = ((bucket, ordinals[pk]) for pk, of_user in buckets.items() for bucket in of_user)
        marks.mark_deleted(members, using)


def _ordinals(user_pks: Sequence[Any], using: str) -> dict[Any, int]:
    """The ids of these users' LastSeen rows. Where there is none, since the souvenirs came past us,
    a row is made for its id only: Django may not look for rows again before it deletes the users.
    """
    rows = LastSeen.objects.using(using).filter(user_id__in=user_pks)
    found = dict(rows.values_list("user_id", "pk"))
    if missing := [user_pk for user_pk in user_pks if user_pk not in found]:
        table.insert_all(missing, using)
        made = rows.filter(user_id__in=missing)
        found.update(made.values_list("user_id", "pk"))
        made.delete()
    return found


def follow_deletion(user_pks: Sequence[Any], using: str, **kwargs: Any) -> None:
    """Keep the history of users who are about to be deleted; the store forgets them on commit.

    Where our tables are in another database, all of it, and the cascade too, waits for the commit;
    if it fails, it raises.

    It receives the signal deleting_users.
    """
    if router.allow_migrate_model(using, Souvenir):
        keep_history(user_pks, using)

        def forget() -> None:  # a function of ours: Django logs its name if it fails
            get_store().remove(user_pks)

        transaction.on_commit(forget, using=using, robust=True)
    elif scopes.has_table(Souvenir):
        ours = router.db_for_write(Souvenir)
        transaction.on_commit(lambda: delete_rows(user_pks, ours), using=using)


def delete_rows(user_pks: Sequence[Any], using: str) -> None:
    """Keep the history of users who are deleted, in a database that their rows are not in, and
    delete their rows."""
    with transaction.atomic(using=using):
        keep_history(user_pks, using)
        for batch in _batches(user_pks):
            for model in (LastSeen, Souvenir):
                model._base_manager.using(using).filter(user_id__in=batch).delete()
    get_store().remove(user_pks)
