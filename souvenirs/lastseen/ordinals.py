"""The ids of LastSeen rows: users' ordinals in bitmaps, so no id may be assigned twice.

A table can lose track of the ids that it assigned: TRUNCATE ... RESTART IDENTITY, MySQL's TRUNCATE,
and a restart of MySQL 5.7 do that. A new user would then appear in the history of another user.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from django.db import connections, transaction

from souvenirs.databases import share_name_locks, skip_ids, try_name_locks
from souvenirs.models import DeletedMember, LastSeen, Rollup

ID_COLUMNS = ((LastSeen, "id"), (Rollup, "last_member"), (DeletedMember, "member"))
LOCKS, LOCK_COUNT = "souvenirs.lastseen", 64
ATTEMPTS = 10  # users without a row after that get one when their souvenir is rolled up


def without_concurrent_insert(user_pks: Collection[Any], using: str) -> set[Any]:
    """Return those users whose rows no other transaction is inserting, so that inserting them will
    not wait. A transaction that inserts rows holds a lock until it ends; users share a few locks,
    since a database has room for only so many."""
    free = try_name_locks(LOCKS, {_lock_of(user_pk) for user_pk in user_pks}, using)
    return {user_pk for user_pk in user_pks if _lock_of(user_pk) in free}


def _lock_of(user_pk: Any) -> int:
    return crc32(str(user_pk).encode()) % LOCK_COUNT


@contextmanager
def with_unused_ids(user_pks: Collection[Any], using: str) -> Iterator[None]:
    """Make sure that rows inserted in the block for these users, who have none, get ids that are
    not in the history."""
    if connections[using].in_atomic_block:
        share_name_locks(LOCKS, {_lock_of(user_pk) for user_pk in user_pks}, using)
    newest, used = _largest_ids(using)
    if newest >= used or skip_ids(LastSeen, used, using):
        yield
        return
    # Usually the last user was deleted, and the table continues from their id
    with transaction.atomic(using=using):
        yield
        _reinsert(user_pks, used, using)


def _reinsert(user_pks: Collection[Any], used: int, using: str) -> None:
    """Insert these users' rows again if their ids are in the history; then the table continues from
    the new ids."""
    rows = LastSeen.objects.using(using)
    again = list(rows.filter(user_id__in=user_pks, pk__lte=used))
    rows.filter(pk__in=[row.pk for row in again]).delete()
    for _ in range(ATTEMPTS):
        if not again:
            return
        for row in again:
            used += 1
            row.pk = used
        rows.bulk_create(again, ignore_conflicts=True)  # another process may do the same
        made = rows.filter(user_id__in=[row.user_id for row in again])
        known = set(made.values_list("user_id", flat=True))
        again = [row for row in again if row.user_id not in known]


def _largest_ids(using: str) -> tuple[int, int]:
    """Return the largest id in the table, and in the history. Each is read from an index."""
    quote = connections[using].ops.quote_name
    largest = (
        f"(SELECT MAX({quote(column)}) FROM {quote(model._meta.db_table)})"  # noqa: S608
        for model, column in ID_COLUMNS
    )
    with connections[using].cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(largest)}")
        newest, *used = (value or 0 for value in cursor.fetchone() or ())
    return newest, max(used)
