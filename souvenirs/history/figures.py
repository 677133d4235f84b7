"""The history -> figures of series of periods: see cohorts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from souvenirs.bitmaps import bitmap
from souvenirs.history import cohorts, joined
from souvenirs.history.cohorts import Figures, Record, Series
from souvenirs.history.counting import first_recorded
from souvenirs.history.plans import History, Users
from souvenirs.history.progress import revision
from souvenirs.isolation import repeatable_read
from souvenirs.lastseen.base import ReadContext
from souvenirs.periods import EARLIEST, Interval, bucket_containing

if TYPE_CHECKING:
    from pyroaring import BitMap

LARGEST = 2**32 - 1  # that bitmaps take; LastSeen ids are of 31 bits


def read_figures(
    series: Mapping[str, Series],
    using: str,
    *,
    most_rows: float = math.inf,
    read_context: ReadContext = nullcontext,
) -> dict[str, list[Figures]]:
    """The figures of all periods of each series, in ascending order. All are of one snapshot, in a
    number of queries that depends neither on that of the periods nor on the history's length.

    most_rows: return an empty dictionary if rows of more than so many buckets would have to be
        read, as the history before the last period's end is not rolled up.
    read_context: in which to query each database.

    In memory are the users of all periods that are not rolled up, and those that
    `cohorts.sweep` lists.
    """
    parts = cohorts.parts_of(series.values())
    if not parts:
        return {name: [] for name in series}
    with read_context(using), repeatable_read(using) as is_snapshot:
        ranges = [Interval(EARLIEST, parts[0].start), *parts]
        history = History(ranges, using, is_snapshot)
        if sum(history.row_buckets(number) for number in range(len(ranges))) > most_rows:
            return {}
        record = _record(using, read_context)
        users = _in_order(history)
        found: dict[str, list[Figures]] = {name: [] for name in series}
        for name, figures in cohorts.sweep(series, record, next(users), zip(parts, users)):
            found[name].append(figures)
    return found


class KeptFigures:
    """Figures of closed periods, kept by the process until the history changes."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._figures: dict[str, list[Figures]] = {}

    def read(
        self,
        series: Mapping[str, Series],
        using: str,
        *,
        most_rows: float = math.inf,
        read_context: ReadContext = nullcontext,
    ) -> dict[str, list[Figures]]:
        """As `read_figures`. One query if the history up to the last period's end is what it was
        when these series were read last."""
        until = max(period.end for each in series.values() for period in each.periods)
        with read_context(using), repeatable_read(using):
            key = using, tuple(series.items()), revision(until, using)
            if key != self._key:
                self._figures = read_figures(
                    series, using, most_rows=most_rows, read_context=read_context
                )
                self._key = key
        return self._figures


def _record(using: str, read_context: ReadContext) -> Record:
    first = first_recorded(using)
    if first is None:
        return Record(math.inf, None)
    start = bucket_containing(first)  # which pruning does not change
    return Record(start, joined.joined_before(start, using, read_context))


def _in_order(history: History) -> Iterator[BitMap]:
    """The users of each range, in the order of their numbers."""
    numbers = range(len(history.ranges))
    ordinals = _Ordinals()
    waiting: dict[int, BitMap] = {}
    due = 0
    for number, users in history.iter_users(numbers, with_members=True):
        waiting[number] = ordinals.members(users)
        while due in waiting:
            yield waiting.pop(due)
            due += 1


class _Ordinals:
    """Numbers for users without a LastSeen row."""

    def __init__(self) -> None:
        self.by_key: dict[Any, int] = {}

    def members(self, users: Users) -> BitMap:
        if not users.without_ordinal:
            return users.members
        numbers = [
            self.by_key.setdefault(key, LARGEST - len(self.by_key)) for key in users.without_ordinal
        ]
        return users.members | bitmap(numbers)
