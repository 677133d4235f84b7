"""Closed intervals <-> roaring bitmaps of the users who were active in them.

A bitmap holds LastSeen ids: they are dense whatever the users' keys are, and after a user is
deleted they point at nobody. Facts ("this user was active in this bucket") are only ever added, and
each is at any time in a row, in a mark, or in the Rollups; whoever moves one adds it to the new
place in the transaction that takes it from the old one. So a reader who looks which buckets are
marked, then at rows, then at the members that marks tell of, then at Rollups misses nothing, with
or without a snapshot.
"""

from __future__ import annotations

import json
import time
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from django.db import connections, router, transaction
from django.db.models import F, Min, Q
from django.db.models.expressions import RawSQL
from pyroaring import BitMap

from souvenirs import bitmaps, timestamps
from souvenirs.conf import conf
from souvenirs.history import accounts
from souvenirs.isolation import set_up
from souvenirs.models import (
    GRACE_SECONDS,
    LastSeen,
    Rollup,
    Sighting,
    Souvenir,
    StaleMark,
    Watermark,
)
from souvenirs.periods import (
    BUCKET,
    Interval,
    bucket_after,
    bucket_containing,
    calendar_period,
    gaps,
    merged,
)

EARLIEST, LATEST = -62_135_596_800, 253_402_300_799  # unix seconds: the years 1 and 9999
FEW = 4  # intervals that PostgreSQL had better plan one by one
UNION_LIMIT = 400  # SQLite takes 500 SELECTs in a UNION, but as many UNIONs inside of one
MARKS = 50_000  # that one transaction honours
KINDS = (Rollup.MONTH, Rollup.DAY, Rollup.BUCKET)  # the longest first
PERIODS = {Rollup.DAY: "day", Rollup.MONTH: "month"}


class Active(NamedTuple):
    """A user's row in a numbered interval. `ordinal` is the id of their LastSeen, None for who has
    none; `user` is their key as the database has it."""

    number: int
    ordinal: int | None
    user: Any


class Busy(Exception):
    """Somebody else changes Rollups."""


class Choice(NamedTuple):
    """A Rollup, without its members."""

    start: int
    end: int
    pk: int
    active_users: int


# Rows


def users_in(intervals: Sequence[Interval], using: str) -> Iterator[Active]:
    """Who has souvenirs in which of the intervals; a user as often as they have. One query, read
    as a stream."""
    if not intervals:
        return
    connection = connections[using]
    adapt, when = connection.ops.adapt_datetimefield_value, connection.ops.quote_name("when")
    params: list[Any] = []
    for number, (start, end) in enumerate(intervals):
        params += [number, adapt(timestamps.to_datetime(start)), adapt(timestamps.to_datetime(end))]
    ordinals = "LEFT JOIN souvenirs_lastseen l ON l.user_id = s.user_id"
    if connection.vendor == "postgresql" and len(intervals) > FEW:
        # It reads the table of last-seen times once for all, and not for each
        values = ["(%s, CAST(%s AS timestamptz), CAST(%s AS timestamptz))"] * len(intervals)
        query = (
            f"SELECT i.number, l.id, s.user_id FROM (VALUES {', '.join(values)})"  # noqa: S608
            f" AS i (number, first, after) JOIN souvenirs_souvenir s"
            f" ON s.{when} >= i.first AND s.{when} < i.after {ordinals}"
        )
    else:
        select = (
            f"SELECT %s, l.id, s.user_id FROM souvenirs_souvenir s {ordinals}"  # noqa: S608
            f" WHERE s.{when} >= %s AND s.{when} < %s"
        )
        query = _union([select] * len(intervals))
    with connection.chunked_cursor() as cursor:
        cursor.execute(query, params)
        while rows := cursor.fetchmany(10_000):
            yield from (Active(*row) for row in rows)


def _union(selects: Sequence[str]) -> str:
    """All of the SELECTs in one, however many they are."""
    groups = [
        " UNION ALL ".join(selects[at : at + UNION_LIMIT])
        for at in range(0, len(selects), UNION_LIMIT)
    ]
    if len(groups) == 1:
        return groups[0]
    return " UNION ALL ".join(
        f"SELECT * FROM ({group}) AS g{number}"  # noqa: S608
        for number, group in enumerate(groups)
    )


# Rollups


def choose(spans: Sequence[Interval], using: str) -> list[list[Choice]]:
    """For each span, which may overlap, the Rollups that make it up: all that fit inside of it,
    the longest first, and shorter ones only where those leave gaps."""
    chosen: list[list[Choice]] = [[] for _ in spans]
    left = [[span] if span.start < span.end else [] for span in spans]
    for kind in KINDS:
        wanted = merged(interval for intervals in left for interval in intervals)
        found = list(_choices(kind, wanted, using))
        starts = [choice.start for choice in found]
        for number, intervals in enumerate(left):
            rest = []
            for interval in intervals:
                fitting = _fitting(interval, found, starts)
                chosen[number] += fitting
                rest += gaps(interval, (Interval(c.start, c.end) for c in fitting))
            left[number] = rest
    return chosen


def _choices(kind: int, wanted: Sequence[Interval], using: str) -> Iterator[Choice]:
    if not wanted:
        return
    fits = Q()
    if len(wanted) > UNION_LIMIT:  # then better some more than are wanted
        wanted = [Interval(wanted[0].start, wanted[-1].end)]
    for start, end in wanted:
        fits |= Q(kind=kind, start__gte=start, start__lt=end, end__lte=end)
    rows = Rollup.objects.using(using).filter(fits).order_by("start")
    for row in rows.values_list("start", "end", "pk", "active_users").iterator():
        yield Choice(*row)


def _fitting(interval: Interval, found: list[Choice], starts: list[int]) -> list[Choice]:
    first, last = bisect_left(starts, interval.start), bisect_left(starts, interval.end)
    return [choice for choice in found[first:last] if choice.end <= interval.end]


def members_of(pks: Iterable[int], using: str) -> Iterator[tuple[int, BitMap]]:
    """The bitmaps of these Rollups, by their keys, in the order of time. One query, read as a
    stream."""
    rows = Rollup.objects.using(using).filter(pk__in=listed(pks, using)).order_by("start")
    for pk, members in rows.values_list("pk", "members").iterator(chunk_size=100):
        yield pk, bitmaps.from_bytes(bytes(members))


def listed(numbers: Iterable[int], using: str) -> Any:
    """The numbers, for a filter of any length: as one parameter where those are limited."""
    vendor = connections[using].vendor
    if vendor == "postgresql":
        return RawSQL("SELECT unnest(CAST(%s AS bigint[]))", [list(numbers)])
    if vendor == "sqlite":
        return RawSQL("SELECT value FROM json_each(%s)", [json.dumps(list(numbers))])
    return list(numbers)


def lag(now: float, using: str) -> float:
    """How long ago the oldest bucket ended that is due and not rolled up, in seconds; 0 if all
    are."""
    due, mark = due_until(now), watermark(using)
    stale = StaleMark.objects.using(using).filter(bucket__lt=min(due, mark.rolled_up))
    oldest = stale.aggregate(oldest=Min("bucket"))["oldest"]
    if oldest is None and mark.rolled_up < due:
        oldest = mark.rolled_up if mark.rolled_up > EARLIEST else _first_day(due, using)
    return 0.0 if oldest is None else max(now - oldest - BUCKET, 0.0)


def watermark(using: str) -> Watermark:
    found = Watermark.objects.using(using).first()
    return found or Watermark(rolled_up=EARLIEST, pruned=EARLIEST)


def due_until(now: float) -> int:
    """Buckets before have been over for the grace period at `now`."""
    return bucket_containing(now - GRACE_SECONDS)


# Rolling up


def roll_up(buckets: int | None = None, on_step: Callable[[Interval], None] | None = None) -> None:
    """Rolls up all that is due: new buckets, stale ones, and the days and months they close.

    Each day is a transaction, so after an interruption the next call goes on where this one
    stopped; memory is bounded by a day's souvenirs. Others may roll up or prune at the same time.
    `buckets`: no more than so many new ones, and so many stale ones' day; and nothing if somebody
    else is at it. `on_step` is told the interval of each transaction.
    """
    using = router.db_for_write(Rollup)
    try:
        for step in (_roll_up_new, _roll_up_stale):
            while interval := step(buckets, using):
                if on_step:
                    on_step(interval)
                if buckets:
                    break
    except Busy:
        return
    accounts.close_days(due_until(time.time()))


@contextmanager
def locked(using: str, wait: bool = True) -> Iterator[Watermark]:
    """A transaction of the only one who changes Rollups meanwhile. Not to `wait` raises Busy if
    somebody else does now, where the database can tell."""
    connection = connections[using]
    is_ours = not connection.in_atomic_block and connection.get_autocommit()
    with transaction.atomic(using=using):
        if is_ours:
            # Rows that are locked, or in sight of a DELETE, must be in sight of each SELECT too
            set_up(using, "READ COMMITTED")
        rows = Watermark.objects.using(using)
        can_skip = connection.features.has_select_for_update_skip_locked
        if not wait and can_skip and not rows.select_for_update(skip_locked=True):
            raise Busy
        # A write comes first, so that SQLite waits for its turn before it reads anything
        if not rows.update(rolled_up=F("rolled_up")):
            _begin(using)
            rows.update(rolled_up=F("rolled_up"))
        yield rows.get()


def _begin(using: str) -> None:
    """Makes the watermark, if there is none."""
    first = Watermark(pk=1, rolled_up=EARLIEST, pruned=EARLIEST)
    Watermark.objects.using(using).bulk_create([first], ignore_conflicts=True)


def _roll_up_new(limit: int | None, using: str) -> Interval | None:
    """Rolls up the next buckets that are due, up to `limit` and a day's end. None: nothing is."""
    due = due_until(time.time())
    rolled_up = watermark(using).rolled_up
    if rolled_up == due or (rolled_up == EARLIEST and _first_day(due, using) is None):
        return None
    if rolled_up == EARLIEST:  # before the transaction: in it, several who begin could deadlock
        _begin(using)
    with locked(using, wait=limit is None) as mark:
        start: int | None = mark.rolled_up
        if mark.rolled_up > due:  # the clock was set back: live souvenirs come there again
            mark.rolled_up = due
            mark.save(using=using)
        if start == EARLIEST:
            start = _first_day(due, using)
        if start is None or start >= due:
            return None
        end = _next_stop(start, due, using)
        if end is None:
            day = calendar_period("day", start, conf.zone)
            end = min(bucket_after(day.end), due)
            if limit is not None:
                end = min(end, start + limit * BUCKET)
            _, told = take_marks(Interval(start, end), using)
            add(read(range(start, end, BUCKET), told, using), using)
        mark.rolled_up = end
        mark.save(using=using)
        for kind, name in PERIODS.items():
            close(kind, calendar_period(name, end - 1, conf.zone), end, using)
    return Interval(start, end)


def _roll_up_stale(limit: int | None, using: str) -> Interval | None:
    """Rolls up the stale buckets of the day that has the oldest ones. None: there are none."""
    stale = StaleMark.objects.using(using)
    if not stale.filter(bucket__lt=watermark(using).rolled_up).exists():
        return None
    with locked(using, wait=limit is None) as mark:
        oldest = stale.filter(bucket__lt=mark.rolled_up).aggregate(start=Min("bucket"))["start"]
        if oldest is None:
            return None
        day = calendar_period("day", oldest, conf.zone)
        span = Interval(oldest, min(bucket_after(day.end), mark.rolled_up))
        buckets, told = take_marks(span, using, limit)
        add(read(sorted(buckets), told, using), using)
        for kind, name in PERIODS.items():
            close(kind, calendar_period(name, oldest, conf.zone), mark.rolled_up, using)
    return Interval(oldest, max(buckets) + BUCKET)


def _first_day(before: float, using: str) -> int | None:
    """Where the day of the first souvenir begins, None if that is not `before` some time."""
    rows = Souvenir.objects.using(using).filter(when__lt=timestamps.to_datetime(before))
    first = rows.order_by("when").values_list("when", flat=True).first()
    if first is None:
        return None
    return bucket_containing(calendar_period("day", timestamps.to_seconds(first), conf.zone).start)


def _next_stop(start: int, due: int, using: str) -> int | None:
    """Where to go on if the rest of the day has no souvenirs: the day that has some, or the end of
    the month. None if it has."""
    rows = Souvenir.objects.using(using).filter(when__gte=timestamps.to_datetime(start))
    when = rows.order_by("when").values_list("when", flat=True).first()
    after = due if when is None else min(timestamps.to_seconds(when), due)
    day, month = (
        calendar_period("day", after, conf.zone),
        calendar_period("month", start, conf.zone),
    )
    stop = bucket_containing(min(day.start, month.end, due))
    return stop if start < stop else None


def take_marks(
    span: Interval, using: str, limit: int | None = None
) -> tuple[set[int], dict[int, set[int]]]:
    """Takes the marks of the span away. Returns their buckets, and the members they tell of.

    By their keys: those that come meanwhile, with souvenirs that a snapshot does not show, stay.
    """
    rows = StaleMark.objects.using(using).filter(bucket__gte=span.start, bucket__lt=span.end)
    if limit is not None:
        first = sorted(rows.order_by().values_list("bucket", flat=True).distinct())[:limit]
        rows = rows.filter(bucket__lte=first[-1])
    marks = list(rows.order_by("pk").values_list("pk", "bucket", "member")[:MARKS])
    if marks:
        taken = StaleMark.objects.using(using).filter(pk__in=listed((m[0] for m in marks), using))
        taken.delete()
    members: dict[int, set[int]] = defaultdict(set)
    for _, bucket, member in marks:
        if member is not None:
            members[bucket].add(member)
    return {bucket for _, bucket, _ in marks}, members


def read(buckets: Sequence[int], members: Mapping[int, set[int]], using: str) -> dict[int, BitMap]:
    """The users of these buckets: those of rows, and `members`. Who has no LastSeen gets one."""
    found: dict[int, array[int]] = defaultdict(lambda: array("I"))
    strays: dict[Any, set[int]] = defaultdict(set)
    intervals = [Interval(bucket, bucket + BUCKET) for bucket in buckets]
    for number, ordinal, user in users_in(intervals, using):
        if ordinal is None:
            strays[user].add(buckets[number])
        else:
            found[buckets[number]].append(ordinal)
    for user, ordinal in _ordinals(strays, using).items():
        for bucket in strays[user]:
            found[bucket].append(ordinal)
    for bucket, ordinals in members.items():
        found[bucket].extend(ordinals)
    return {bucket: BitMap(ordinals) for bucket, ordinals in found.items()}


def _ordinals(strays: Mapping[Any, set[int]], using: str) -> dict[Any, int]:
    """Makes LastSeen rows of users who have none, and returns their ids."""
    user_field: Any = LastSeen._meta.get_field("user")
    rows = LastSeen.objects.using(using)
    found = {}
    for user, buckets in strays.items():
        key = user_field.target_field.to_python(user)
        rows.touch(Sighting(user_pk=key, seen=max(buckets), slot_start=max(buckets)))
        found[user] = rows.get(user_id=key).pk
    return found


def add(facts: Mapping[int, BitMap], using: str) -> None:
    """Adds users to the Rollups of buckets (which are made), and of all that contain these. Needs
    the lock."""
    known = {}
    rows = Rollup.objects.using(using)
    starts = sorted(bucket for bucket, members in facts.items() if members)
    for rollup in rows.filter(kind=Rollup.BUCKET, start__in=listed(starts, using)):
        known[rollup.start] = rollup
    new = []
    for start in starts:
        if start in known:
            _unite(known[start], facts[start], using)
        else:
            interval = Interval(start, start + BUCKET)
            new.append(new_rollup(Rollup.BUCKET, interval, facts[start]))
    rows.bulk_create(new)
    if not starts:
        return
    longest = 32 * 24 * 60 * 60
    containing = rows.filter(
        kind__in=PERIODS,
        start__gt=starts[0] - longest,
        start__lte=starts[-1],
        end__gt=starts[0],
    )
    for rollup in containing:
        inside = [facts[start] for start in starts if rollup.start <= start < rollup.end]
        if inside:
            _unite(rollup, BitMap.union(*inside), using)


def _unite(rollup: Rollup, members: BitMap, using: str) -> None:
    united = bitmaps.from_bytes(bytes(rollup.members)) | members
    if len(united) > rollup.active_users:
        set_members(rollup, united)
        rollup.save(using=using)


def set_members(rollup: Rollup, members: BitMap) -> None:
    rollup.members, rollup.active_users = bitmaps.to_bytes(members), len(members)


def new_rollup(kind: int, interval: Interval, members: BitMap) -> Rollup:
    rollup = Rollup(kind=kind, start=int(interval.start), end=int(interval.end))
    set_members(rollup, members)
    return rollup


def close(kind: int, period: Interval, rolled_up: int, using: str) -> None:
    """Makes the Rollup of a day or a month, if it is rolled up and has none."""
    # Offsets of long ago are no multiples of a bucket; such days are counted by their buckets
    if period.end > rolled_up or period.start % BUCKET or period.end % BUCKET:
        return
    rows = Rollup.objects.using(using)
    if rows.filter(kind=kind, start=period.start, end=period.end).exists():
        return
    (choices,) = choose([period], using)
    members = BitMap()
    for _, each in members_of([choice.pk for choice in choices], using):
        members |= each
    if members or kind == Rollup.MONTH:  # so there are few gaps in a long time without users
        rows.bulk_create([new_rollup(kind, period, members)])
