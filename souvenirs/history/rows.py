"""Read the souvenirs of time intervals: their users, and the number of users."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import Count, Value

from souvenirs import databases, timestamps
from souvenirs.conf import conf
from souvenirs.models import Souvenir
from souvenirs.periods import Interval, bucket_containing, calendar_period

# PostgreSQL plans each SELECT of a UNION by its own bounds, and finds the users of a few rows by
# index. Of a join with intervals it expects a ninth of all rows, and reads all of LastSeen
MAX_SEPARATE_INTERVALS = 64


class SouvenirRow(NamedTuple):
    """A user's row in a numbered interval.

    ordinal: the id of the user's LastSeen row, None if there is none.
    user: the user's key as the database returns it.
    """

    number: int
    ordinal: int | None
    user: Any


def iter_rows(intervals: Sequence[Interval], using: str) -> Iterator[SouvenirRow]:
    """Yield the souvenirs of these intervals, which may overlap. One query, read as a stream."""
    if not intervals:
        return
    when = connections[using].ops.quote_name("when")
    ordinals = "LEFT JOIN souvenirs_lastseen l ON l.user_id = s.user_id"
    if databases.joins_intervals(using) and len(intervals) > MAX_SEPARATE_INTERVALS:
        # To plan so many SELECTs would take longer
        query = (
            f"SELECT i.number, l.id, s.user_id FROM {databases.intervals_table(len(intervals))}"  # noqa: S608
            f" JOIN souvenirs_souvenir s ON s.{when} >= i.first AND s.{when} < i.after {ordinals}"
        )
    else:
        select = (
            f"SELECT %s, l.id, s.user_id FROM souvenirs_souvenir s {ordinals}"  # noqa: S608
            f" WHERE s.{when} >= %s AND s.{when} < %s"
        )
        query = databases.union_all([select] * len(intervals))
    with connections[using].chunked_cursor() as cursor:
        cursor.execute(query, _params(intervals, using))
        while rows := cursor.fetchmany(10_000):
            yield from (SouvenirRow(*row) for row in rows)


def count_users(intervals: Sequence[Interval], using: str) -> list[int]:
    """Count the distinct users of each interval, in one query. The database reads each interval
    from the index on (when, user), and holds one interval's users at a time."""
    if not intervals:
        return []
    count = _count_by_join if databases.joins_intervals(using) else _count_by_union
    counts = count(intervals, using)
    return [counts.get(number, 0) for number in range(len(intervals))]


def _count_by_join(intervals: Sequence[Interval], using: str) -> dict[int, int]:
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT i.number, (SELECT COUNT(DISTINCT user_id) FROM souvenirs_souvenir"  # noqa: S608
            ' WHERE "when" >= i.first AND "when" < i.after)'
            f" FROM {databases.intervals_table(len(intervals))}",
            _params(intervals, using),
        )
        return dict(cursor.fetchall())


def _count_by_union(intervals: Sequence[Interval], using: str) -> dict[int, int]:
    queries: list[Any] = [
        Souvenir.objects.using(using)
        .between(timestamps.to_datetime(start), timestamps.to_datetime(end))
        .order_by()
        .annotate(position=Value(position))
        .values("position")
        .annotate(users=Count("user", distinct=True))
        .values_list("position", "users")
        for position, (start, end) in enumerate(intervals)
    ]
    limit = databases.UNION_LIMIT
    while len(queries) > 1:
        queries = [
            queries[i].union(*queries[i + 1 : i + limit], all=True).order_by()
            for i in range(0, len(queries), limit)
        ]
    return dict(queries[0])


def _params(intervals: Sequence[Interval], using: str) -> list[Any]:
    adapt = connections[using].ops.adapt_datetimefield_value
    params: list[Any] = []
    for number, bounds in enumerate(intervals):
        params += [number, *(adapt(timestamps.to_datetime(bound)) for bound in bounds)]
    return params


def first_day_with_rows(before: float, using: str) -> int | None:
    """Return the first bucket of the first souvenir's day; None if there is no souvenir before
    `before`."""
    rows = Souvenir.objects.using(using).filter(when__lt=timestamps.to_datetime(before))
    first = rows.order_by("when").values_list("when", flat=True).first()
    if first is None:
        return None
    return bucket_containing(calendar_period("day", timestamps.to_seconds(first), conf.zone).start)


def next_day_with_rows(start: int, due: int, using: str) -> int | None:
    """Return the first bucket of the next day with souvenirs, but at most the end of the month or
    `due`; None if the day of `start` itself has souvenirs at or after `start`."""
    rows = Souvenir.objects.using(using).filter(when__gte=timestamps.to_datetime(start))
    when = rows.order_by("when").values_list("when", flat=True).first()
    after = due if when is None else min(timestamps.to_seconds(when), due)
    day = calendar_period("day", after, conf.zone)
    month = calendar_period("month", start, conf.zone)
    stop = bucket_containing(min(day.start, month.end, due))
    return stop if start < stop else None
