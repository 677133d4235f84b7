"""What a range of the past is made up of, and the users in it.

A range is made up of the Rollups that fit inside of it, and of rows: of the buckets at its ends
that it cuts, of those that are marked, and of those that are not rolled up yet. Bounds within
pruned souvenirs are set back to the bucket's start. A deleted user counts in ranges that hold the
whole bucket of their activity.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from souvenirs.bitmaps import bitmap
from souvenirs.history.marks import deleted_members, marked_buckets
from souvenirs.history.progress import watermark
from souvenirs.history.rollups import covering_rollups, iter_members
from souvenirs.history.rows import iter_rows
from souvenirs.periods import BUCKET, Interval, bucket_after, bucket_containing, merged

if TYPE_CHECKING:
    from pyroaring import BitMap

MAX_MARKED_INTERVALS = 3_000  # that one query asks for


class RangePlan(NamedTuple):
    """What a range is made up of."""

    buckets: Interval  # those that lie wholly in it; some may not be rolled up
    rows: list[Interval]  # where there may be more than Rollups know


@dataclass
class Users:
    """Distinct users: LastSeen ids, and the keys (as the database has them) of those without.

    active_users: how many they are, where one Rollup has all of them; its members are not read.
    """

    members: BitMap = field(default_factory=bitmap)
    without_ordinal: set[Any] = field(default_factory=set)
    active_users: int = 0

    def __len__(self) -> int:
        return self.active_users or len(self.members) + len(self.without_ordinal)


class History:
    """Ranges, and the state of the history that they are counted from."""

    def __init__(self, ranges: Sequence[Interval], using: str, is_snapshot: bool) -> None:
        """is_snapshot: whether all queries see the same state of the database."""
        self.using = using
        self.is_snapshot = is_snapshot
        low = bucket_containing(min(start for start, _ in ranges))
        self.span = Interval(low, max(end for _, end in ranges))
        self.marked = marked_buckets(self.span, using)
        self.watermark = watermark(using)
        self.ranges = [self._floored(each) for each in ranges]

    def _floored(self, bounds: Interval) -> Interval:
        """The range, with bounds inside of pruned buckets set back to their starts."""
        start, end = bounds
        pruned = self.watermark.pruned
        return Interval(
            bucket_containing(start) if start < pruned else start,
            bucket_containing(end) if end < pruned else end,
        )

    def _marked_in(self, start: float, end: float) -> list[int]:
        return self.marked[bisect_left(self.marked, start) : bisect_left(self.marked, end)]

    def is_rows_only(self, number: int) -> bool:
        """Whether the range is in rows alone: then the database can count it."""
        start, end = self.ranges[number]
        is_new = start >= self.watermark.rolled_up and not self._marked_in(start, end)
        return self.is_snapshot and is_new

    def plan(self, number: int, max_marked: int = MAX_MARKED_INTERVALS) -> RangePlan:
        """What the range is made up of. Where over `max_marked` intervals are marked, all between
        the first and the last is read from rows: that is more than is needed, and as right."""
        start, end = self.ranges[number]
        first, last = bucket_after(start), bucket_containing(end)
        buckets = Interval(first, max(first, last))
        last = min(last, self.watermark.rolled_up)
        if first >= last:
            return RangePlan(buckets, [Interval(start, end)])
        marked = merged(Interval(b, b + BUCKET) for b in self._marked_in(first, last))
        if len(marked) > max_marked:
            marked = [Interval(marked[0].start, marked[-1].end)]
        return RangePlan(buckets, [Interval(start, first), *marked, Interval(last, end)])

    def row_buckets(self, number: int) -> float:
        """How many buckets' rows the range takes."""
        return sum((end - start) / BUCKET for start, end in self.plan(number).rows)

    def iter_users(
        self, numbers: Sequence[int], with_members: bool = False
    ) -> Iterator[tuple[int, Users]]:
        """The users of these ranges, by their numbers, each as soon as it is complete.

        Marks, rows, deleted members, Rollups are read in this order: see rollups.
        """
        found = {number: Users() for number in numbers}
        max_marked = max(1, MAX_MARKED_INTERVALS // len(numbers))
        plans = {number: self.plan(number, max_marked) for number in numbers}
        rows = [(n, part) for n in numbers for part in plans[n].rows if part.start < part.end]
        ordinals: dict[int, array[int]] = defaultdict(lambda: array("I"))
        for at, ordinal, key in iter_rows([part for _, part in rows], self.using):
            number = rows[at][0]
            if ordinal is None:
                found[number].without_ordinal.add(key)
            else:
                ordinals[number].append(ordinal)
        if self.marked or not self.is_snapshot:
            deleted = deleted_members(self.span, self.using)
            for number in numbers if deleted else ():
                first, last = (bisect_left(deleted, (b, 0)) for b in plans[number].buckets)
                if first < last:
                    ordinals[number].extend(member for _, member in deleted[first:last])
        for number, each in ordinals.items():
            found[number].members = bitmap(each)
        # Also where nothing was rolled up before: without a snapshot, it may be now
        yield from self._add_rollups(
            found, {number: plans[number].buckets for number in numbers}, with_members
        )

    def _add_rollups(
        self, found: dict[int, Users], spans: Mapping[int, Interval], with_members: bool
    ) -> Iterator[tuple[int, Users]]:
        """Add the users of Rollups, and take out the ranges that are complete."""
        while found:  # again if a Rollup has disappeared: without a snapshot, it may be repaired
            numbers = list(found)
            wanted: dict[int, list[int]] = defaultdict(list)  # key of a Rollup -> its ranges
            missing: dict[int, int] = {}
            covering = covering_rollups([spans[number] for number in numbers], self.using)
            for number, refs in zip(numbers, covering):
                if len(refs) == 1 and not len(found[number]) and not with_members:
                    found[number].active_users = refs[0].active_users
                    refs = []
                for ref in refs:
                    wanted[ref.pk].append(number)
                missing[number] = len(refs)
                if not refs:
                    yield number, found.pop(number)
            for pk, members in iter_members(wanted, self.using) if wanted else ():
                for number in wanted[pk]:
                    found[number].members |= members
                    missing[number] -= 1
                    if not missing[number]:
                        yield number, found.pop(number)
