"""Last-seen times in the database: no other server needed, and counts take time linear in users."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from itertools import accumulate, pairwise
from typing import Any

from django.db import connections

from souvenirs.databases import (
    counts_in_one_pass,
    from_result,
    shown_from,
    shown_until,
    to_parameter,
)
from souvenirs.lastseen import table
from souvenirs.lastseen.base import LastSeenCounts, LastSeenStore, LastSeenUpdate, ReadContext
from souvenirs.models import LastSeen

KEYS_SIZE = 500  # users in a statement


class DatabaseStore(LastSeenStore):
    """The LastSeen table is the store."""

    name = "database"
    keeps_scopes_apart = True
    in_table = True

    def touch(self, update: LastSeenUpdate) -> None:
        table.touch(update)

    def touch_all(self, updates: Sequence[LastSeenUpdate]) -> None:
        """Do nothing: the table has been written."""

    def get(self, user_pk: Any) -> int | None:
        row = LastSeen.objects.filter(user_id=user_pk).first()
        return None if row is None or row.seen is None else table.seconds(row.seen)

    def get_many(self, user_pks: Collection[Any]) -> dict[Any, int]:
        keys = list(user_pks)
        found: dict[Any, int] = {}
        for at in range(0, len(keys), KEYS_SIZE):
            rows = LastSeen.objects.filter(user_id__in=keys[at : at + KEYS_SIZE])
            times = rows.exclude(seen=None).values_list("user_id", "seen")
            found.update((user_pk, table.seconds(seen)) for user_pk, seen in times)
        return found

    def count(
        self,
        cuts: Sequence[float],
        until: float,
        using: str,
        read_context: ReadContext = nullcontext,
    ) -> LastSeenCounts:
        connection = connections[using]
        quote = connection.ops.quote_name
        name, seen = quote(LastSeen._meta.db_table), quote("seen")
        starts = {cut: shown_from(math.ceil(cut), using) for cut in cuts}
        edges = [*sorted(set(starts.values())), shown_until(math.floor(until) + 1, using)]
        newest = f"(SELECT MAX({seen}) FROM {name} WHERE {seen} < %s)"  # noqa: S608
        params = edges[-1:]
        # One statement, so one snapshot; each user is read once, however windows overlap
        is_one_pass = counts_in_one_pass(using) and bool(cuts)
        if is_one_pass:
            counts = [f"COUNT(*) FILTER (WHERE {seen} >= %s)"] * (len(edges) - 1)
            rows = f"FROM {name} WHERE {seen} >= %s AND {seen} < %s"
            params += [*edges[:-1], edges[0], edges[-1]]
        else:  # the disjoint slices between the cut points, each from the index
            count = f"(SELECT COUNT(*) FROM {name} WHERE {seen} >= %s AND {seen} < %s)"  # noqa: S608
            counts, rows = [count] * (len(edges) - 1), ""
            params += [edge for pair in pairwise(edges) for edge in pair]
        with read_context(using), connection.cursor() as cursor:
            times = [to_parameter(edge, using) for edge in params]
            cursor.execute(f"SELECT {', '.join([newest, *counts])} {rows}", times)
            row = cursor.fetchone()
        assert row is not None
        last, *numbers = row
        last = from_result(last, LastSeen._meta.get_field("seen"), using)
        if not is_one_pass:
            numbers = list(accumulate(reversed(numbers)))[::-1]
        since = dict(zip(edges, numbers))
        return LastSeenCounts(
            since={cut: since[start] for cut, start in starts.items()},
            newest=None if last is None else math.floor(last),
        )
