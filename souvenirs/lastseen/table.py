"""The LastSeen table, with a row for every user with a souvenir: its UPDATEs and its resolution.

The UPDATEs are written in SQL: the first request of each user, process and minute waits for them,
and the ORM takes longer to build such a statement than the database takes to run it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from django.db import connections, router, transaction

from souvenirs import timestamps
from souvenirs.conf import conf
from souvenirs.databases import (
    converter,
    is_one_of,
    to_column,
    to_parameter,
    typed_datetime,
    update_times,
    whole_seconds,
)
from souvenirs.lastseen import get_store, ordinals
from souvenirs.lastseen.base import LastSeenUpdate
from souvenirs.models import LastSeen, Souvenir
from souvenirs.periods import slot_containing
from souvenirs.users import require_user

BATCH_SIZE = 150  # users in a statement


def seconds(seen: datetime) -> int:
    """Convert LastSeen.seen to Unix seconds."""
    return math.floor(timestamps.to_seconds(seen))


def latest() -> int:
    """Return the latest last-seen time, in Unix seconds, that a correct clock can produce."""
    return math.floor(time.time()) + conf.last_seen_seconds


def resolution_start(t: float) -> float:
    """Return `t` floored to SOUVENIRS_LAST_SEEN_SECONDS: last-seen times from there on include all
    users seen at or after `t`."""
    return t // conf.last_seen_seconds * conf.last_seen_seconds


def earliest(t: float) -> float:
    """Return the earliest time that the table may have for a user seen at or after `t`, a multiple
    of SOUVENIRS_LAST_SEEN_SECONDS. Users with an earlier time have not been seen since `t`."""
    return t if get_store().in_table else slot_start(t)


def slot_start(t: float) -> float:
    """Return the start of the rate-limit slot that contains `t`. The table has a time in each slot
    in which a user was seen, so from a slot's start on it includes all users."""
    if not conf.ratelimit_seconds:
        return t
    return slot_containing(t, conf.ratelimit_seconds, conf.zone).start


def exact_from(newest: int | None, now: float) -> int:
    """Return the time from which on the table's times are as exact as a store's, if `newest` is its
    newest one: a time in the table may be behind, but only until the end of its slot."""
    if newest is None:
        return 0
    if not conf.ratelimit_seconds:
        return newest
    slot = slot_containing(newest, conf.ratelimit_seconds, conf.zone)
    return min(math.floor(now) + 1, math.ceil(slot.end))


def touch(update: LastSeenUpdate, using: str | None = None) -> bool:
    """Move a user's last-seen time forward; insert the row if there is none. If `has_row` is wrong,
    because the user was deleted, write nothing. Return True if a row was updated, which is then
    locked until the transaction ends.

    UPDATE comes first, and INSERT only if there is no row: an upsert would use up an id on each
    visit (PostgreSQL takes the sequence's next value before it sees the conflict), and ids have to
    stay dense.

    Raises the user model's DoesNotExist, before inserting anything, if no user has the key: a
    foreign key error would use up an id too, and the database would log it.
    """
    using = using or router.db_for_write(LastSeen)
    moved = _move_forward(update, using)
    if moved is not None:
        return moved
    rows = LastSeen.objects.using(using)
    if update.seen is None and rows.filter(user_id=update.user_pk).exists():
        return False
    require_user(update.user_pk)
    insert(update, using)
    return bool(_move_forward(replace(update, has_row=True), using))


def insert(update: LastSeenUpdate, using: str) -> None:
    """Insert a user's row, which did not exist a moment ago."""
    # Another process may insert the row meanwhile, with an older time. On a conflict it has to be
    # locked for writing, which MySQL does only in this form: if two transactions shared a lock,
    # neither could go on to the update.
    seen = None if update.seen is None else to_column(update.seen, using)
    targeted = connections[using].features.supports_update_conflicts_with_target
    with ordinals.with_unused_ids([update.user_pk], using):
        LastSeen.objects.using(using).bulk_create(
            [LastSeen(user_id=update.user_pk, seen=seen)],
            update_conflicts=True,
            update_fields=["user"],
            unique_fields=["user"] if targeted else None,
        )


def insert_all(user_pks: Sequence[Any], using: str) -> None:
    """Insert rows without a time for users who had none a moment ago."""
    with ordinals.with_unused_ids(user_pks, using):
        rows = (LastSeen(user_id=user_pk) for user_pk in user_pks)
        LastSeen.objects.using(using).bulk_create(rows, ignore_conflicts=True)


def lock_rows(
    user_pks: Sequence[Any], using: str, *, skip_locked: bool
) -> dict[Any, tuple[int, int | None]]:
    """Lock the rows of these users until the transaction ends. Return, by user, the row's id and
    its time in Unix seconds (None for none). skip_locked: leave out rows that are locked already.
    """
    connection = connections[using]
    user, table, key, _ = _user_field_and_names(connection)
    condition, params = is_one_of(user, user_pks, using)
    seen, to_seconds = whole_seconds(LastSeen._meta.get_field("seen"), using)
    lock = ""
    if connection.features.has_select_for_update:
        lock = connection.ops.for_update_sql(skip_locked=skip_locked)
    to_key = converter(user, using)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {key}, id, {seen} FROM {table} WHERE {condition} {lock}", params)  # noqa: S608
        return {to_key(each): (pk, to_seconds(at)) for each, pk, at in cursor.fetchall()}


def move_rows(times: Mapping[int, int], using: str) -> None:
    """Set the times of these rows, which the caller has locked: row id -> Unix seconds."""
    if times:
        update_times(LastSeen, "seen", times, using)


def catch_up(souvenirs: Iterable[Souvenir], using: str, **kwargs: Any) -> None:
    """Move the last-seen times of these souvenirs' users forward to the souvenirs', in batches; for
    times in the future, only insert the row. The store is updated on commit.

    Receiver of the signal souvenirs_written.
    """
    not_after = latest()
    newest: dict[Any, int] = {}
    for souvenir in souvenirs:
        seen = math.floor(timestamps.to_seconds(souvenir.when))
        known = newest.setdefault(souvenir.user_id, -1)
        if known < seen <= not_after:
            newest[souvenir.user_id] = seen
    rows = LastSeen.objects.using(using)
    users = sorted(newest, key=str)  # in one order, so that two of these cannot deadlock
    for batch in (users[at : at + BATCH_SIZE] for at in range(0, len(users), BATCH_SIZE)):
        existing = dict(rows.filter(user_id__in=batch).values_list("user_id", "seen"))
        if new := [user_pk for user_pk in batch if user_pk not in existing]:
            insert_all(new, using)
        times = {user_pk: -1 if at is None else seconds(at) for user_pk, at in existing.items()}
        behind = {u: newest[u] for u in batch if newest[u] > times.get(u, -1)}
        if behind:
            _move_all_forward(behind, using)
    times = {user_pk: seen for user_pk, seen in newest.items() if seen >= 0}
    transaction.on_commit(lambda: get_store().on_table_updated(times), using=using)


def _move_forward(update: LastSeenUpdate, using: str) -> bool | None:
    """Run the UPDATE of `touch`. Return False if the row is recent, None if there is no row or no
    time to move it to."""
    if update.seen is None:
        return None
    connection = connections[using]
    user, table, key, at = _user_field_and_names(connection)
    values = [
        user.get_db_prep_save(update.user_pk, connection),
        to_parameter(update.slot_start, using),
    ]
    is_recent = f"{at} >= %s"
    if update.latest is not None:
        is_recent += f" AND {at} <= %s"
        values.append(to_parameter(update.latest, using))
    # A function prevents the use of an index on times: InnoDB would lock that index before the
    # user's row, while deleting a user locks them in the opposite order
    is_recent = f"COALESCE({is_recent}, FALSE)"
    with transaction.mark_for_rollback_on_error(using), connection.cursor() as cursor:
        statement = f"UPDATE {table} SET {at} = %s WHERE {key} = %s AND NOT {is_recent}"  # noqa: S608
        cursor.execute(statement, [to_parameter(update.seen, using), *values])
        if cursor.rowcount or update.has_row:
            return bool(cursor.rowcount)
        select = f"SELECT 1 FROM {table} WHERE {key} = %s AND {is_recent}"  # noqa: S608
        cursor.execute(select, values)
        return None if cursor.fetchone() is None else False


def _move_all_forward(newest: Mapping[Any, int], using: str) -> None:
    """Run the UPDATE of `catch_up`, for users with rows."""
    connection = connections[using]
    user, table, key, at = _user_field_and_names(connection)
    pairs = [
        (user.get_db_prep_save(u, connection), to_parameter(seen, using))
        for u, seen in newest.items()
    ]
    case = f"CASE {key} {f'WHEN %s THEN {typed_datetime(using)} ' * len(pairs)}END"
    keys = ", ".join(["%s"] * len(pairs))
    values = [value for pair in pairs for value in pair]
    with transaction.mark_for_rollback_on_error(using), connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {table} SET {at} = {case} WHERE {key} IN ({keys})"  # noqa: S608
            f" AND ({at} IS NULL OR {at} < {case})",
            [*values, *(user_key for user_key, _ in pairs), *values],
        )


def _user_field_and_names(connection: Any) -> tuple[Any, str, str, str]:
    """Return the user field, and the quoted names of the table and its columns user and seen."""
    user: Any = LastSeen._meta.get_field("user")
    quote = connection.ops.quote_name
    return user, quote(LastSeen._meta.db_table), quote(user.column), quote("seen")
