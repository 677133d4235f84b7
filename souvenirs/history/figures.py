"""Compute the figures of series of periods from the history: see cohorts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from souvenirs.bitmaps import bitmap, union
from souvenirs.history import cohorts
from souvenirs.history.cohorts import Figures, Record, Series
from souvenirs.history.counting import first_recorded
from souvenirs.history.joined import JoinedBefore, keys_joined_before
from souvenirs.history.plans import History
from souvenirs.history.progress import revision
from souvenirs.isolation import repeatable_read
from souvenirs.lastseen.base import ReadContext
from souvenirs.periods import EARLIEST, Interval, bucket_containing

if TYPE_CHECKING:
    from pyroaring import BitMap

LARGEST = 2**32 - 1  # the largest number in a bitmap; LastSeen ids have 31 bits


def read_figures(
    series: Mapping[str, Series],
    using: str,
    *,
    most_rows: float = math.inf,
    read_context: ReadContext = nullcontext,
) -> dict[str, list[Figures]]:
    """Return the figures of all periods of each series, in ascending order. All are from one
    snapshot. The number of queries depends neither on the number of periods nor on the length of
    the history.

    most_rows: return an empty dictionary if the rows of more than this many buckets would have to
        be read, because the history before the last period's end is not rolled up.
    read_context: the context in which to query each database.

    The users of all periods of the series are in memory at the same time.
    """
    if not any(each.periods for each in series.values()):
        return {name: [] for name in series}
    with read_context(using), repeatable_read(using) as is_snapshot:
        parts = _read_parts(series, using, is_snapshot, most_rows)
        return parts.figures(JoinedBefore(), 0, read_context) if parts else {}


class KeptFigures:
    """Figures of closed periods, which the process keeps until the history changes. Thread-safe: a
    key and its figures are replaced in one step."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, dict[str, list[Figures]]] = (None, {})
        self._joined = JoinedBefore()

    def read(
        self,
        series: Mapping[str, Series],
        using: str,
        *,
        most_rows: float = math.inf,
        read_context: ReadContext = nullcontext,
    ) -> dict[str, list[Figures]]:
        """Like `read_figures`, for periods that are over. Takes one query if the history before the
        last period's end has not changed since the same series were read."""
        until = max(period.end for each in series.values() for period in each.periods)
        with read_context(using), repeatable_read(using) as is_snapshot:
            state = revision(until, using)
            key = using, tuple(series.items()), state
            kept_key, figures = self._kept
            if kept_key == key:
                return figures
            parts = _read_parts(series, using, is_snapshot, most_rows)
            if parts is None:  # keep nothing: rolling up may not change the revision
                return {}
            figures = parts.figures(self._joined, state.deletions, read_context)
            self._kept = key, figures
        return figures


@dataclass
class _Parts:
    """The input of a sweep."""

    series: Mapping[str, Series]
    using: str
    record_start: float | None
    before: BitMap
    users: list[tuple[Interval, BitMap]]
    without_ordinal: Mapping[Any, int]  # numbers of users without a LastSeen row, by their keys

    def figures(
        self, joined: JoinedBefore, deletions: int, read_context: ReadContext
    ) -> dict[str, list[Figures]]:
        found: dict[str, list[Figures]] = {name: [] for name in self.series}
        record = self._record(joined, deletions, read_context)
        for name, figures in cohorts.sweep(self.series, record, self.before, self.users):
            found[name].append(figures)
        return found

    def _record(self, joined: JoinedBefore, deletions: int, read_context: ReadContext) -> Record:
        start = self.record_start
        if start is None:
            return Record(math.inf, None)
        users = union([self.before, *(users for _, users in self.users)])
        found = joined.among(users, start, deletions, self.using, read_context)
        if found is not None and self.without_ordinal:
            keys = keys_joined_before(start, self.without_ordinal, read_context)
            found = found | bitmap(self.without_ordinal[key] for key in keys)
        return Record(start, found)


def _read_parts(
    series: Mapping[str, Series], using: str, is_snapshot: bool, most_rows: float
) -> _Parts | None:
    intervals = cohorts.parts_of(series.values())
    ranges = [Interval(EARLIEST, intervals[0].start), *intervals]
    history = History(ranges, using, is_snapshot)
    numbers = range(len(ranges))
    if sum(history.row_buckets(number) for number in numbers) > most_rows:
        return None
    without_ordinal: dict[Any, int] = {}
    found = dict.fromkeys(numbers, bitmap())
    for number, users in history.iter_users(numbers, with_members=True):
        found[number] = users.members
        for key in users.without_ordinal:
            found[number].add(without_ordinal.setdefault(key, LARGEST - len(without_ordinal)))
    first = first_recorded(using)
    before, *rest = found.values()
    return _Parts(
        series,
        using,
        None if first is None else bucket_containing(first),  # pruning does not change it
        before,
        list(zip(intervals, rest)),
        without_ordinal,
    )
