from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from django.db import connections

from souvenirs.lastseen.base import Activity, LastSeenStore
from souvenirs.models import LastSeen


class DatabaseStore(LastSeenStore):
    """Last-seen times in the LastSeen table: nothing else to run, counts linear in users."""

    name = "database"

    def touch(
        self,
        user_pk: Any,
        seen: int | None,
        *,
        slot_start: int,
        latest: int | None,
        has_row: bool = False,
    ) -> None:
        LastSeen.objects.touch(user_pk, seen, slot_start=slot_start, latest=latest, has_row=has_row)

    def get(self, user_pk: Any) -> int | None:
        row = LastSeen.objects.filter(user_id=user_pk).first()
        return None if row is None else row.seen

    def activity(self, cuts: Sequence[float], until: float, using: str) -> Activity:
        # One statement, so one snapshot. It counts the disjoint slices between the cut points, so
        # that no index entry is read twice, however many windows and periods overlap.
        connection = connections[using]
        quote = connection.ops.quote_name
        table, seen = quote(LastSeen._meta.db_table), quote("seen")
        edges = [*sorted({math.ceil(cut) for cut in cuts}), math.floor(until) + 1]
        bounds = list(pairwise(edges))
        count = f"(SELECT COUNT(*) FROM {table} WHERE {seen} >= %s AND {seen} < %s)"  # noqa: S608
        newest = f"(SELECT MAX({seen}) FROM {table} WHERE {seen} < %s)"  # noqa: S608
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {', '.join([count] * len(bounds) + [newest])}",
                [edge for pair in bounds for edge in pair] + edges[-1:],
            )
            row = cursor.fetchone()
        assert row is not None
        *slices, last = row
        since = dict(zip(reversed(edges[:-1]), accumulate(reversed(slices))))
        return Activity(since={cut: since[math.ceil(cut)] for cut in cuts}, newest=last)
