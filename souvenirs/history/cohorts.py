"""Compute growth, retention and active days of consecutive periods from sets of users. Pure.

One ascending sweep over the users of disjoint intervals covers several series of periods at once.
Users are numbers in bitmaps. In a period P, which follows the period P - 1 of its series:

    new          active in P and never before, and not joined before the record began
    retained     active in P and in P - 1
    resurrected  active in P, not in P - 1, and not new
    churned      active in P - 1 and not in P

So active = new + retained + resurrected, and active(P) - active(P - 1) = new + resurrected -
churned. The new users of P are its cohort; the number of them active in P + k is its retention at
age k.

Figures that would need an earlier start of the record are None, or left out: the growth of a period
whose previous period began before the record, and the cohort of a period that did so itself. The
first activity of users who joined before the record is unknown, so they are never new. If it is not
known when users joined, there are no new and resurrected users, and no cohorts, in periods that
begin in the record's first SETTLING_SECONDS: most users who seem new then are not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from souvenirs.bitmaps import bitmap
from souvenirs.periods import Interval

if TYPE_CHECKING:
    from pyroaring import BitMap

SETTLING_SECONDS = 28 * 24 * 60 * 60


class Record(NamedTuple):
    """What is known about the time before the history.

    start: when the record begins, Unix seconds.
    joined_before: the users who joined before that; None if that is not known.
    """

    start: float
    joined_before: BitMap | None

    def knows_first_activity(self, period: Interval) -> bool:
        """Return True if it is known which users are new in this period."""
        settled = self.start if self.joined_before is not None else self.start + SETTLING_SECONDS
        return settled <= period.start


class Growth(NamedTuple):
    """Users of a period, compared with the period before it. None: not known."""

    new: int | None
    retained: int
    resurrected: int | None
    churned: int


class Retention(NamedTuple):
    """The size of a cohort, and the number of its users active in a period."""

    cohort: int
    retained: int


@dataclass(frozen=True)
class Series:
    """Consecutive periods, each beginning where the previous one ends, and the figures to compute.

    ages: the ages of cohorts, in periods; 0 is the cohort itself.
    window: also count in how many of the last `window` periods users were active; 0: do not.
    """

    periods: tuple[Interval, ...]
    ages: tuple[int, ...] = ()
    window: int = 0


class Figures(NamedTuple):
    """The figures of one period.

    active: the number of its users.
    growth: None if the period before it is not in the series, or began before the record.
    retention: by age, the retention of the cohort that was so many periods old. Cohorts that are
        not in the series, or not known, are left out.
    active_days: at index n, the number of users active in exactly n of the `window` periods that
        end with this one; 0 at index 0. None if the series has no window, or begins within it.
    is_window_known: whether the record began before the window.
    """

    period: Interval
    active: int
    growth: Growth | None
    retention: Mapping[int, Retention]
    active_days: list[int] | None
    is_window_known: bool


def parts_of(series: Iterable[Series]) -> list[Interval]:
    """Return the disjoint intervals, in ascending order, that make up all periods of the series."""
    cuts = sorted({bound for each in series for period in each.periods for bound in period})
    return [Interval(*bounds) for bounds in pairwise(cuts)]


def sweep(
    series: Mapping[str, Series],
    record: Record,
    before: BitMap,
    parts: Iterable[tuple[Interval, BitMap]],
) -> Iterator[tuple[str, Figures]]:
    """Yield the figures of all periods of these series, by name, each as soon as it is complete.

    before: the users who were active before the first of `parts`.
    parts: `parts_of` the series, in order, each with its users.

    For each series, memory holds all users, its cohorts up to the highest age, and the users of the
    periods of its window.
    """
    sweeps = {name: _Sweep(each, record, before) for name, each in series.items() if each.periods}
    for part, members in parts:
        for name, each in sweeps.items():
            if figures := each.add(part, members):
                yield name, figures


class _Sweep:
    """One series of a sweep."""

    def __init__(self, series: Series, record: Record, before: BitMap) -> None:
        self.series, self.record = series, record
        self.number = 0  # index of the period that contains the next part
        self.before = before  # all users active before that period
        self.members = bitmap()  # the period's users so far
        self.previous: BitMap | None = None
        self.cohorts: deque[BitMap | None] = deque(maxlen=max(series.ages, default=0) + 1)
        self.counter = WindowCounter(series.window) if series.window else None

    def add(self, part: Interval, members: BitMap) -> Figures | None:
        """Add the users of the next part. Return the figures of the period that this completes."""
        periods = self.series.periods
        if self.number == len(periods):
            return None
        period = periods[self.number]
        if part.end <= period.start:  # for another series, which begins earlier
            self.before = self.before | members
            return None
        self.members = self.members | members
        if part.end < period.end:
            return None
        figures = self._figures(period)
        self.before = self.before | self.members
        self.previous, self.members = self.members, bitmap()
        self.number += 1
        return figures

    def _figures(self, period: Interval) -> Figures:
        members, record = self.members, self.record
        cohort = None
        if record.knows_first_activity(period):
            cohort = members - self.before
            if record.joined_before:
                cohort -= record.joined_before
        self.cohorts.appendleft(cohort)
        growth = None
        if self.previous is not None and record.start <= self.series.periods[self.number - 1].start:
            retained = members.intersection_cardinality(self.previous)
            new = None if cohort is None else len(cohort)
            growth = Growth(
                new,
                retained,
                None if new is None else len(members) - retained - new,
                len(self.previous) - retained,
            )
        retention = {}
        for age in self.series.ages:
            old = self.cohorts[age] if age < len(self.cohorts) else None
            if old is not None:
                retention[age] = Retention(len(old), members.intersection_cardinality(old))
        active_days, is_window_known = None, False
        if self.counter is not None:
            self.counter.add(members)
            first = self.number - self.series.window + 1
            if first >= 0:
                active_days = self.counter.distribution()
                is_window_known = record.start <= self.series.periods[first].start
        return Figures(period, len(members), growth, retention, active_days, is_window_known)


class WindowCounter:
    """Count in how many of the last `length` sets each user is. The counts are binary numbers whose
    digits are bitmaps, so that the counts of all users are increased at once."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.sets: deque[BitMap] = deque()
        self.digits = [bitmap() for _ in range(length.bit_length())]

    def add(self, members: BitMap) -> None:
        """Move the window forward to this set."""
        if len(self.sets) == self.length:
            borrow = self.sets.popleft()
            for n, digit in enumerate(self.digits):
                self.digits[n], borrow = digit ^ borrow, borrow - digit
        self.sets.append(members)
        carry = members
        for n, digit in enumerate(self.digits):
            self.digits[n], carry = digit ^ carry, digit & carry

    def distribution(self) -> list[int]:
        """Return, at index n, the number of users in exactly n of the sets; 0 at index 0."""
        counts = [0] * (self.length + 1)
        users = bitmap()
        for digit in self.digits:
            users |= digit
        self._count(users, len(self.digits), 0, counts)
        return counts

    def _count(self, users: BitMap, digits: int, number: int, counts: list[int]) -> None:
        """Count users by their number, given that it begins with the digits of `number` above the
        lowest `digits` ones."""
        if not users:
            return
        if not digits:
            counts[number] = len(users)
            return
        digit = self.digits[digits - 1]
        self._count(users & digit, digits - 1, number + (1 << digits - 1), counts)
        self._count(users - digit, digits - 1, number, counts)
