"""Between? Exact numbers of distinct users in ranges of the past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import connections, router
from django.db.models import Count, Value

from souvenirs import clock
from souvenirs.models import Souvenir, SouvenirQuerySet
from souvenirs.periods import Interval

# SQLite takes 500 SELECTs in a UNION, but as many UNIONs inside of one
UNION_LIMIT = 400


def count_users(
    start: datetime | None = None,
    end: datetime | None = None,
    rows: SouvenirQuerySet | None = None,
) -> int:
    """Distinct users with start <= when < end, of all souvenirs or of the queryset `rows`."""
    if rows is None:
        rows = Souvenir.objects.all()
    return rows.between(
        None if start is None else clock.to_site(start), None if end is None else clock.to_site(end)
    ).count_users()


def count_users_of_ranges(ranges: Sequence[Interval], using: str | None = None) -> list[int]:
    """Distinct users of each range, in the order given. Ranges may overlap, and be in any order.

    One query, and so one snapshot. The database reads each range from the index on (when, user),
    a row once for each range that it is in, and keeps one range's users at a time; here there is
    a number a range only. The other way, one pass over the rows here, would bring all of them
    through Python, at several times the cost.
    """
    using = using or router.db_for_read(Souvenir)
    if not ranges:
        return []
    count = _count_by_loop if connections[using].vendor == "postgresql" else _count_by_union
    counts = count(ranges, using)
    return [counts[position] for position in range(len(ranges))]


def _count_by_union(ranges: Sequence[Interval], using: str) -> dict[int, int]:
    """A SELECT a range, which MariaDB and SQLite plan for the range's bounds."""
    queries: list[Any] = [
        Souvenir.objects.using(using)
        .between(clock.to_datetime(start), clock.to_datetime(end))
        .order_by()
        .annotate(position=Value(position))
        .values("position")
        .annotate(users=Count("user", distinct=True))
        .values_list("position", "users")
        for position, (start, end) in enumerate(ranges)
    ]
    while len(queries) > 1:
        queries = [
            queries[i].union(*queries[i + 1 : i + UNION_LIMIT], all=True).order_by()
            for i in range(0, len(queries), UNION_LIMIT)
        ]
    return dict(queries[0])


def _count_by_loop(ranges: Sequence[Interval], using: str) -> dict[int, int]:
    """One SELECT over a list of ranges. PostgreSQL compiles each SELECT of a UNION (jit), which
    takes it a minute for a thousand of them; MariaDB would read the whole index for each range."""
    rows = ", ".join(["(%s, CAST(%s AS timestamptz), CAST(%s AS timestamptz))"] * len(ranges))
    params: list[Any] = []
    for position, (start, end) in enumerate(ranges):
        params += [position, clock.to_datetime(start), clock.to_datetime(end)]
    with connections[using].cursor() as cursor:
        cursor.execute(
            # no value is in the text, but as many placeholders as there are ranges
            "SELECT ranges.n, (SELECT COUNT(DISTINCT user_id) FROM souvenirs_souvenir"  # noqa: S608
            ' WHERE "when" >= ranges.first AND "when" < ranges.after)'
            f" FROM (VALUES {rows}) AS ranges (n, first, after)",
            params,
        )
        return dict(cursor.fetchall())


def count_users_of_periods(periods: Mapping[str, Interval], using: str) -> dict[str, int]:
    """Distinct users of each period, by its key: see `count_users_of_ranges`."""
    return dict(zip(periods, count_users_of_ranges(list(periods.values()), using)))


def first_recorded(using: str | None = None) -> float | None:
    """When the first souvenir is from (unix seconds), None if there is none."""
    rows = Souvenir.objects.using(using or router.db_for_read(Souvenir))
    when = rows.order_by("when").values_list("when", flat=True).first()
    return None if when is None else clock.to_seconds(when)
