"""Plan how to read a range of the past, and find the users in it.

A range consists of the Rollups that fit inside, and of rows: those of the buckets that its ends
cut, of marked buckets, and of buckets that are not rolled up yet. Bounds within pruned souvenirs
are moved back to the bucket's start. A deleted user counts in ranges that contain the whole bucket
of their activity.
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

MAX_MARKED_INTERVALS = 3_000  # in one query


class RangePlan(NamedTuple):
    """The parts of a range."""

    buckets: Interval  # those that are entirely in the range; some may not be rolled up
    rows: list[Interval]  # where rows may have users that are not in Rollups


@dataclass
class Users:
    """Distinct users: LastSeen ids, and the keys (as the database returns them) of users without.

    active_users: the number of users, if one Rollup has all of them; its members are not read.
    """

    members: BitMap = field(default_factory=bitmap)
    without_ordinal: set[Any] = field(default_factory=set)
    active_users: int = 0

    def __len__(self) -> int:
        return self.active_users or len(self.members) + len(self.without_ordinal)


class History:
    """Ranges, and the state of the history that they are counted from."""

    def __init__(self, ranges: Sequence[Interval], using: str, is_snapshot: bool) -> None:
        """Read marks and watermark. is_snapshot: whether all queries see the same state of the
        database."""
        self.using = using
        self.is_snapshot = is_snapshot
        low = bucket_containing(min(start for start, _ in ranges))
        self.span = Interval(low, max(end for _, end in ranges))
        self.marked = marked_buckets(self.span, using)
        self.watermark = watermark(using)
        self.ranges = [self._floored(each) for each in ranges]

    def _floored(self, bounds: Interval) -> Interval:
        """Return the range with bounds inside pruned buckets moved back to the buckets' starts."""
        start, end = bounds
        pruned = self.watermark.pruned
        return Interval(
            bucket_containing(start) if start < pruned else start,
            bucket_containing(end) if end < pruned else end,
        )

    def _marked_in(self, start: float, end: float) -> list[int]:
        return self.marked[bisect_left(self.marked, start) : bisect_left(self.marked, end)]

    def is_rows_only(self, number: int) -> bool:
        """Return True if the range consists of rows alone, so that the database can count it."""
        start, end = self.ranges[number]
        is_new = start >= self.watermark.rolled_up and not self._marked_in(start, end)
        return self.is_snapshot and is_new

    def plan(self, number: int, max_marked: int = MAX_MARKED_INTERVALS) -> RangePlan:
        """Return the parts of the range. If more than `max_marked` intervals are marked, everything
        between the first and the last is read from rows: more than necessary, but also correct."""
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
        """Return the number of buckets whose rows have to be read for the range."""
        return sum((end - start) / BUCKET for start, end in self.plan(number).rows)

    def iter_users(
        self, numbers: Sequence[int], with_members: bool = False
    ) -> Iterator[tuple[int, Users]]:
        """Yield the users of these ranges, given by their numbers, each as soon as it is complete.

        Marks, rows, deleted members and Rollups are read in this order: see rollups.
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
        # Even if nothing was rolled up before: without a snapshot, it may be now
        yield from self._add_rollups(
            found, {number: plans[number].buckets for number in numbers}, with_members
        )

    def _add_rollups(
        self, found: dict[int, Users], spans: Mapping[int, Interval], with_members: bool
    ) -> Iterator[tuple[int, Users]]:
        """Add the users of Rollups, and yield and remove the ranges that are complete."""
        while found:  # repeat if a Rollup has disappeared: without a snapshot, a repair may do that
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
