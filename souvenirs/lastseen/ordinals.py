"""The ids of LastSeen rows: users' ordinals in bitmaps, so none is ever given again.

A table can forget which ids it gave: TRUNCATE ... RESTART IDENTITY, MySQL's TRUNCATE, and a restart
of MySQL 5.7 do that. A newcomer would then be named by the history of somebody else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from django.db import connections, transaction

from souvenirs.databases import share_name_locks, skip_ids, try_name_locks
from souvenirs.models import DeletedMember, LastSeen, Rollup

HELD_BY = ((LastSeen, "id"), (Rollup, "last_member"), (DeletedMember, "member"))
LOCKS, LOCK_COUNT = "souvenirs.lastseen", 64
TRIES = 10  # who has no row then gets one when their souvenir is rolled up


def without_rival(user_pks: Collection[Any], using: str) -> set[Any]:
    """Those of the users whose rows no other transaction is about to make: to insert them will not
    wait for anybody. A transaction that makes rows keeps a lock until it ends; users share few of
    them, since a database has room for so many only."""
    free = try_name_locks(LOCKS, {_lock_of(user_pk) for user_pk in user_pks}, using)
    return {user_pk for user_pk in user_pks if _lock_of(user_pk) in free}


def _lock_of(user_pk: Any) -> int:
    return crc32(str(user_pk).encode()) % LOCK_COUNT


@contextmanager
def secured(user_pks: Collection[Any], using: str) -> Iterator[None]:
    """In the block, rows of these users are made, who have none. They get ids that the history does
    not hold."""
    if connections[using].in_atomic_block:
        share_name_locks(LOCKS, {_lock_of(user_pk) for user_pk in user_pks}, using)
    newest, held = _newest_and_held(using)
    if newest >= held or skip_ids(LastSeen, held, using):
        yield
        return
    # The last user was deleted, as a rule, and the table goes on from their id
    with transaction.atomic(using=using):
        yield
        _renew(user_pks, held, using)


def _renew(user_pks: Collection[Any], held: int, using: str) -> None:
    """Make these users' rows again, where the history holds their ids; then the table goes on from
    the new ones."""
    rows = LastSeen.objects.using(using)
    again = list(rows.filter(user_id__in=user_pks, pk__lte=held))
    rows.filter(pk__in=[row.pk for row in again]).delete()
    for _ in range(TRIES):
        if not again:
            return
        for row in again:
            held += 1
            row.pk = held
        rows.bulk_create(again, ignore_conflicts=True)  # another process may do the same
        made = rows.filter(user_id__in=[row.user_id for row in again])
        known = set(made.values_list("user_id", flat=True))
        again = [row for row in again if row.user_id not in known]


def _newest_and_held(using: str) -> tuple[int, int]:
    """The largest id in the table, and in the history. Each is the end of an index."""
    quote = connections[using].ops.quote_name
    largest = (
        f"(SELECT MAX({quote(column)}) FROM {quote(model._meta.db_table)})"  # noqa: S608
        for model, column in HELD_BY
    )
    with connections[using].cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(largest)}")
        newest, *held = (value or 0 for value in cursor.fetchone() or ())
    return newest, max(held)
