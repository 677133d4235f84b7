"""Between? Exact numbers of distinct users in ranges of the past.

A range is made up of the Rollups that fit inside of it, and of rows: of the buckets at its ends
that it cuts, of those that are stale, and of those that are not rolled up yet. Bounds within pruned
souvenirs are set back to the bucket's start. A deleted user counts in ranges that hold the whole
bucket of their activity.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.db import connections, router
from django.db.models import Count, Q, QuerySet, Value
from pyroaring import BitMap

from souvenirs import timestamps
from souvenirs.history import rollups
from souvenirs.history.rollups import EARLIEST, LATEST, UNION_LIMIT
from souvenirs.isolation import snapshot
from souvenirs.models import LastSeen, Rollup, Souvenir, SouvenirQuerySet, StaleMark
from souvenirs.periods import BUCKET, Interval, bucket_after, bucket_containing, merged

STALE = 3_000  # stretches of stale buckets that one query asks for


class Parts(NamedTuple):
    """What a range is made up of."""

    buckets: Interval  # those that lie wholly in it; some may not be rolled up
    rows: list[Interval]  # where there may be more than Rollups know


@dataclass
class Users:
    """Distinct users: LastSeen ids, and the keys (as the database has them) of who has none.

    active_users: how many they are, where one Rollup has all of them; its members are not read.
    """

    members: BitMap = field(default_factory=BitMap)
    strays: set[Any] = field(default_factory=set)
    active_users: int = 0

    def __len__(self) -> int:
        return self.active_users or len(self.members) + len(self.strays)


def count_users(
    start: datetime | None = None,
    end: datetime | None = None,
    rows: SouvenirQuerySet | None = None,
) -> int:
    """Distinct users with start <= when < end, of the history or of the queryset `rows`."""
    if rows is None:
        (count,) = count_users_of_ranges([_range(start, end)])
        return count
    return rows.between(
        None if start is None else timestamps.to_site(start),
        None if end is None else timestamps.to_site(end),
    ).count_users()


def users_between(start: datetime | None = None, end: datetime | None = None) -> QuerySet[Any]:
    """The users whom `count_users` counts, but for those who are deleted.

    Who they are is looked up now; the queryset asks for their rows when it is used.
    """
    using = router.db_for_read(LastSeen)
    with snapshot(using) as is_snapshot:
        history = History([_range(start, end)], using, is_snapshot)
        ((_, users),) = history.compose([0], with_members=True)
    user: Any = LastSeen._meta.get_field("user")
    strays = Q(pk__in=[user.target_field.to_python(key) for key in users.strays])
    if user.db_constraint:
        return _users(Q(souvenirs_last_seen__id__in=rollups.listed(users.members, using)) | strays)
    # They are in another database: they go by their keys
    rows = LastSeen.objects.using(using).filter(pk__in=rollups.listed(users.members, using))
    return _users(Q(pk__in=list(rows.values_list("user_id", flat=True))) | strays)


def _users(condition: Q) -> QuerySet[Any]:
    users: QuerySet[Any] = get_user_model()._base_manager.filter(condition)
    return users


def count_users_of_ranges(ranges: Sequence[Interval], using: str | None = None) -> list[int]:
    """Distinct users of each range, in the order given. Ranges may overlap, and be in any order.

    All are from one snapshot, in a number of queries that depends neither on that of the ranges nor
    on the history's length. The users of those ranges that overlap are in memory at a time.
    """
    counts = _count(ranges, using or router.db_for_read(Souvenir))
    return [counts[number] for number in range(len(ranges))]


def count_users_of_periods(
    periods: Mapping[str, Interval], using: str, most_rows: int
) -> dict[str, int]:
    """Distinct users of each period, by its key: see `count_users_of_ranges`. Without the periods
    of which rows of over `most_rows` buckets would have to be read."""
    counts = _count(list(periods.values()), using, most_rows)
    return {name: counts[number] for number, name in enumerate(periods) if number in counts}


def _count(ranges: Sequence[Interval], using: str, most_rows: float = math.inf) -> dict[int, int]:
    if not ranges:
        return {}
    counts: dict[int, int] = {}
    with snapshot(using) as is_snapshot:
        history = History(ranges, using, is_snapshot)
        numbers = [n for n in range(len(ranges)) if history.row_buckets(n) <= most_rows]
        plain = [number for number in numbers if history.is_plain(number)]
        counts.update(zip(plain, _count_rows([history.ranges[n] for n in plain], using)))
        rest = [number for number in numbers if number not in counts]
        for number, users in history.compose(rest) if rest else ():
            counts[number] = len(users)
    return counts


class History:
    """Ranges, and the state of the history that they are counted from."""

    def __init__(self, ranges: Sequence[Interval], using: str, is_snapshot: bool) -> None:
        self.using = using
        self.is_snapshot = is_snapshot
        low = bucket_containing(min(start for start, _ in ranges))
        high = max(end for _, end in ranges)
        self.marks = StaleMark.objects.using(using).filter(bucket__gte=low, bucket__lt=high)
        self.marked = sorted(self.marks.values_list("bucket", flat=True).distinct())
        self.watermark = rollups.watermark(using)
        self.ranges = [self.floored(each) for each in ranges]

    def floored(self, bounds: Interval) -> Interval:
        """The range, with bounds inside of pruned buckets set back to their starts."""
        start, end = bounds
        pruned = self.watermark.pruned
        return Interval(
            bucket_containing(start) if start < pruned else start,
            bucket_containing(end) if end < pruned else end,
        )

    def marked_in(self, start: float, end: float) -> list[int]:
        return self.marked[bisect_left(self.marked, start) : bisect_left(self.marked, end)]

    def is_plain(self, number: int) -> bool:
        """Whether the range is in rows alone: then the database can count it."""
        start, end = self.ranges[number]
        is_new = start >= self.watermark.rolled_up and not self.marked_in(start, end)
        return self.is_snapshot and is_new

    def parts(self, number: int, most_stale: int = STALE) -> Parts:
        """What the range is made up of. Where over `most_stale` stretches are stale, all between
        the first and the last is read from rows: that is more than is needed, and as right."""
        start, end = self.ranges[number]
        first, last = bucket_after(start), bucket_containing(end)
        buckets = Interval(first, max(first, last))
        last = min(last, self.watermark.rolled_up)
        if first >= last:
            return Parts(buckets, [Interval(start, end)])
        stale = merged(Interval(b, b + BUCKET) for b in self.marked_in(first, last))
        if len(stale) > most_stale:
            stale = [Interval(stale[0].start, stale[-1].end)]
        return Parts(buckets, [Interval(start, first), *stale, Interval(last, end)])

    def row_buckets(self, number: int) -> float:
        """How many buckets' rows the range takes."""
        return sum((end - start) / BUCKET for start, end in self.parts(number).rows)

    def compose(
        self, numbers: Sequence[int], with_members: bool = False
    ) -> Iterator[tuple[int, Users]]:
        """The users of these ranges, by their numbers, each as soon as it is complete.

        Rows, marks, Rollups are read in this order: see rollups.
        """
        found = {number: Users() for number in numbers}
        most_stale = max(1, STALE // len(numbers))
        parts = {number: self.parts(number, most_stale) for number in numbers}
        rows = [(n, part) for n in numbers for part in parts[n].rows if part.start < part.end]
        ordinals: dict[int, array[int]] = defaultdict(lambda: array("I"))
        for at, ordinal, key in rollups.users_in([part for _, part in rows], self.using):
            number = rows[at][0]
            if ordinal is None:
                found[number].strays.add(key)
            else:
                ordinals[number].append(ordinal)
        if self.marked or not self.is_snapshot:
            members = self.marks.exclude(member=None).order_by("bucket")
            told = list(members.values_list("bucket", "member"))
            for number in numbers if told else ():
                first, last = (bisect_left(told, (b, 0)) for b in parts[number].buckets)
                if first < last:
                    ordinals[number].extend(member for _, member in told[first:last])
        for number, each in ordinals.items():
            found[number].members = BitMap(each)
        # Also where nothing was rolled up before: without a snapshot, it may be now
        yield from self._add_rollups(
            found, {number: parts[number].buckets for number in numbers}, with_members
        )

    def _add_rollups(
        self, found: dict[int, Users], spans: Mapping[int, Interval], with_members: bool
    ) -> Iterator[tuple[int, Users]]:
        """Adds the users of Rollups, and takes out who is complete."""
        while found:  # again if a Rollup that was chosen is no more: without a snapshot, repaired
            numbers = list(found)
            wanted: dict[int, list[int]] = defaultdict(list)  # key of a Rollup -> who needs it
            missing: dict[int, int] = {}
            chosen = rollups.choose([spans[number] for number in numbers], self.using)
            for number, choices in zip(numbers, chosen):
                if len(choices) == 1 and not len(found[number]) and not with_members:
                    found[number].active_users = choices[0].active_users
                    choices = []
                for choice in choices:
                    wanted[choice.pk].append(number)
                missing[number] = len(choices)
                if not choices:
                    yield number, found.pop(number)
            for pk, members in rollups.members_of(wanted, self.using) if wanted else ():
                for number in wanted[pk]:
                    found[number].members |= members
                    missing[number] -= 1
                    if not missing[number]:
                        yield number, found.pop(number)


def first_recorded(using: str | None = None) -> float | None:
    """When the first souvenir is from (unix seconds), None if there is none. If that is pruned, the
    start of its bucket."""
    using = using or router.db_for_read(Souvenir)
    rows = Souvenir.objects.using(using).order_by("when").values_list("when", flat=True)
    first = next((timestamps.to_seconds(when) for when in rows[:1]), None)
    buckets = Rollup.objects.using(using).filter(kind=Rollup.BUCKET).order_by("start")
    bucket: int | None = buckets.values_list("start", flat=True).first()
    if first is None or (bucket is not None and bucket < bucket_containing(first)):
        return bucket
    return first


def _range(start: datetime | None, end: datetime | None) -> Interval:
    return Interval(
        EARLIEST if start is None else timestamps.to_seconds(start),
        LATEST if end is None else timestamps.to_seconds(end),
    )


def _count_rows(ranges: Sequence[Interval], using: str) -> list[int]:
    """Distinct users of each range's rows, in one query. The database reads each range from the
    index on (when, user), and keeps one range's users at a time."""
    if not ranges:
        return []
    count = _count_by_loop if connections[using].vendor == "postgresql" else _count_by_union
    counts = count(ranges, using)
    return [counts.get(number, 0) for number in range(len(ranges))]


def _count_by_union(ranges: Sequence[Interval], using: str) -> dict[int, int]:
    """A SELECT a range, which MariaDB and SQLite plan for the range's bounds."""
    queries: list[Any] = [
        Souvenir.objects.using(using)
        .between(timestamps.to_datetime(start), timestamps.to_datetime(end))
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
        params += [position, timestamps.to_datetime(start), timestamps.to_datetime(end)]
    with connections[using].cursor() as cursor:
        cursor.execute(
            # no value is in the text, but as many placeholders as there are ranges
            "SELECT ranges.n, (SELECT COUNT(DISTINCT user_id) FROM souvenirs_souvenir"  # noqa: S608
            ' WHERE "when" >= ranges.first AND "when" < ranges.after)'
            f" FROM (VALUES {rows}) AS ranges (n, first, after)",
            params,
        )
        return dict(cursor.fetchall())
