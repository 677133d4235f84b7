"""Rollups: roaring bitmaps of the users who were active in closed intervals.

A bitmap contains LastSeen ids: they are dense whatever the users' keys are, and a deleted user's id
identifies nobody. Facts ("this user was active in this bucket") are only ever added, and each is at
any time in a row, in a mark, or in the Rollups: code that moves one adds it to the new place in the
transaction that removes it from the old one. So a reader that reads the dirty buckets, then rows,
then deleted members, then Rollups misses nothing, with or without a snapshot.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db.models import Q

from souvenirs import bitmaps
from souvenirs.databases import UNION_LIMIT, as_in_list
from souvenirs.history.rows import iter_rows
from souvenirs.lastseen import table
from souvenirs.lastseen.base import LastSeenUpdate
from souvenirs.models import LastSeen, Rollup
from souvenirs.periods import BUCKET, Interval, gaps, merged
from souvenirs.users import key_of_row

if TYPE_CHECKING:
    from pyroaring import BitMap

KINDS = (Rollup.MONTH, Rollup.DAY, Rollup.BUCKET)  # longest first
PERIODS = {Rollup.DAY: "day", Rollup.MONTH: "month"}
MAX_PERIOD_SECONDS = 32 * 24 * 60 * 60


class RollupRef(NamedTuple):
    """A Rollup, without its members."""

    start: int
    end: int
    pk: int
    active_users: int


# Reading


def covering_rollups(spans: Sequence[Interval], using: str) -> list[list[RollupRef]]:
    """Return, for each span, the Rollups that cover it as far as possible: all that fit inside,
    longest first, and shorter ones only in the gaps that these leave. Spans may overlap."""
    found: list[list[RollupRef]] = [[] for _ in spans]
    left = [[span] if span.start < span.end else [] for span in spans]
    for kind in KINDS:
        wanted = merged(interval for intervals in left for interval in intervals)
        refs = list(_refs(kind, wanted, using))
        starts = [ref.start for ref in refs]
        for number, intervals in enumerate(left):
            rest = []
            for interval in intervals:
                first, last = (bisect_left(starts, bound) for bound in interval)
                fitting = [ref for ref in refs[first:last] if ref.end <= interval.end]
                found[number] += fitting
                rest += gaps(interval, (Interval(ref.start, ref.end) for ref in fitting))
            left[number] = rest
    return found


def _refs(kind: int, wanted: Sequence[Interval], using: str) -> Iterator[RollupRef]:
    if not wanted:
        return
    if len(wanted) > UNION_LIMIT:  # then it is better to read more than are wanted
        wanted = [Interval(wanted[0].start, wanted[-1].end)]
    fits = Q()
    for start, end in wanted:
        fits |= Q(kind=kind, start__gte=start, start__lt=end, end__lte=end)
    rows = Rollup.objects.using(using).filter(fits).order_by("start")
    for row in rows.values_list("start", "end", "pk", "active_users").iterator():
        yield RollupRef(*row)


def iter_members(pks: Iterable[int], using: str) -> Iterator[tuple[int, BitMap]]:
    """Yield (key, bitmap) of the Rollups with these keys, by time. One query, read as a stream."""
    rows = Rollup.objects.using(using).filter(pk__in=as_in_list(pks, using)).order_by("start")
    for pk, members in rows.values_list("pk", "members").iterator(chunk_size=100):
        yield pk, bitmaps.from_bytes(bytes(members))


def read_members(
    buckets: Sequence[int], deleted: Mapping[int, set[int]], using: str
) -> dict[int, BitMap]:
    """Return the users of these buckets: those with rows, and the `deleted` ones. Users without an
    ordinal get one."""
    found: dict[int, array[int]] = defaultdict(lambda: array("I"))
    without_ordinal: dict[Any, set[int]] = defaultdict(set)
    intervals = [Interval(bucket, bucket + BUCKET) for bucket in buckets]
    for number, ordinal, user in iter_rows(intervals, using):
        if ordinal is None:
            without_ordinal[user].add(buckets[number])
        else:
            found[buckets[number]].append(ordinal)
    for user, ordinal in _make_ordinals(without_ordinal, using).items():
        for bucket in without_ordinal[user]:
            found[bucket].append(ordinal)
    for bucket, ordinals in deleted.items():
        found[bucket].extend(ordinals)
    return {bucket: bitmaps.bitmap(ordinals) for bucket, ordinals in found.items()}


def _make_ordinals(users: Mapping[Any, set[int]], using: str) -> dict[Any, int]:
    """Create LastSeen rows for these users, who were active in these buckets. Return their ids."""
    found = {}
    for user, buckets in users.items():
        key, last = key_of_row(user), max(buckets)
        table.touch(LastSeenUpdate(user_pk=key, seen=last, slot_start=last), using)
        found[user] = LastSeen.objects.using(using).get(user_id=key).pk
    return found


# Writing, which requires the lock


def merge_into_rollups(facts: Mapping[int, BitMap], using: str) -> None:
    """Add users to the Rollups of buckets, creating them if necessary, and to all that contain
    these buckets."""
    rows = Rollup.objects.using(using)
    starts = sorted(bucket for bucket, members in facts.items() if members)
    buckets = rows.filter(kind=Rollup.BUCKET, start__in=as_in_list(starts, using))
    known = {rollup.start: rollup for rollup in buckets}
    new = []
    for start in starts:
        if start in known:
            _add_members(known[start], facts[start], using)
        else:
            interval = Interval(start, start + BUCKET)
            new.append(new_rollup(Rollup.BUCKET, interval, facts[start]))
    rows.bulk_create(new)
    if not starts:
        return
    containing = rows.filter(
        kind__in=PERIODS,
        start__gt=starts[0] - MAX_PERIOD_SECONDS,
        start__lte=starts[-1],
        end__gt=starts[0],
    )
    for rollup in containing:
        inside = [facts[start] for start in starts if rollup.start <= start < rollup.end]
        if inside:
            _add_members(rollup, bitmaps.union(inside), using)


def build_period_rollup(kind: int, period: Interval, rolled_up: int, using: str) -> None:
    """Create the Rollup of a day or a month, if its buckets are rolled up and there is none."""
    # Offsets from long ago are not multiples of a bucket; such days are counted by their buckets
    if period.end > rolled_up or period.start % BUCKET or period.end % BUCKET:
        return
    rows = Rollup.objects.using(using)
    if rows.filter(kind=kind, start=period.start, end=period.end).exists():
        return
    (refs,) = covering_rollups([period], using)
    members = bitmaps.bitmap()
    for _, each in iter_members([ref.pk for ref in refs], using):
        members |= each
    if members or kind == Rollup.MONTH:  # so that a long time without users has few gaps
        rows.bulk_create([new_rollup(kind, period, members)])


def new_rollup(kind: int, interval: Interval, members: BitMap) -> Rollup:
    rollup = Rollup(kind=kind, start=int(interval.start), end=int(interval.end))
    set_members(rollup, members)
    return rollup


def set_members(rollup: Rollup, members: BitMap) -> None:
    rollup.members, rollup.active_users = bitmaps.to_bytes(members), len(members)
    rollup.last_member = members.max() if members else 0


def _add_members(rollup: Rollup, members: BitMap, using: str) -> None:
    united = bitmaps.from_bytes(bytes(rollup.members)) | members
    if len(united) > rollup.active_users:
        set_members(rollup, united)
        rollup.save(using=using)
