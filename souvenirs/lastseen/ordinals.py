"""The ids of LastSeen rows: users' ordinals in bitmaps, so none is ever given again.

A table can forget which ids it gave: TRUNCATE ... RESTART IDENTITY, MySQL's TRUNCATE, and a restart
of MySQL 5.7 do that. A newcomer would then be named by the history of somebody else.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from django.db import connections

from souvenirs.databases import skip_ids
from souvenirs.models import DeletedMember, LastSeen, Rollup

HELD_BY = ((LastSeen, "id"), (Rollup, "last_member"), (DeletedMember, "member"))


def secure(rows: Iterable[LastSeen], using: str) -> None:
    """Call this before `rows` are made, in a way that bears with rows that are there already.

    Afterwards the table gives ids that the history does not hold. Where that takes a row with such
    an id (see skip_ids), these are made here.
    """
    newest, held = _newest_and_held(using)
    if newest < held and not skip_ids(LastSeen, held, using):
        LastSeen.objects.using(using).bulk_create(
            (
                LastSeen(pk=pk, user_id=row.user_id, seen=row.seen)
                for pk, row in zip(count(held + 1), rows)
            ),
            ignore_conflicts=True,  # another process may do the same
        )


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
