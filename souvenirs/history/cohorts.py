"""Growth, retention and active days of consecutive periods: sets of users -> numbers. Pure.

One ascending sweep over the users of disjoint intervals answers several series of periods at once.
Users are numbers in bitmaps. In a period P, which follows the period P - 1 of its series:

    new          active in P and never before, and not joined before the record began
    retained     active in P and in P - 1
    resurrected  active in P, not in P - 1, and not new
    churned      active in P - 1 and not in P

So active = new + retained + resurrected, and active(P) - active(P - 1) = new + resurrected -
churned. The users new in P are its cohort; how many of them are active in P + k is its retention at
age k.

What the record does not reach back to is None, or left out: growth of a period whose previous one
began before the record, the cohort of a period that did so itself. The first activity of users who
joined before the record is unknown, so they are never new. Where it is not known when users
joined, there are no new and resurrected users, and no cohorts, in periods that begin in the
record's first SETTLING_SECONDS: most of those who seem new then are not.
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
    """What is known of the time before the history.

    start: when the record begins, unix seconds.
    joined_before: the users who joined before that; None if that is not known.
    """

    start: float
    joined_before: BitMap | None

    def knows_first_activity(self, period: Interval) -> bool:
        """Whether users can be said to be new in this period."""
        settled = self.start if self.joined_before is not None else self.start + SETTLING_SECONDS
        return settled <= period.start


class Growth(NamedTuple):
    """Users of a period, compared with the period before. None: not known."""

    new: int | None
    retained: int
    resurrected: int | None
    churned: int


class Retention(NamedTuple):
    """How many users a cohort has, and how many of them were active in a period."""

    cohort: int
    retained: int


@dataclass(frozen=True)
class Series:
    """Consecutive periods, each of which begins where the one before ends, and what is asked.

    ages: of cohorts, in periods. 0 is the cohort itself.
    window: also count on how many of the last so many periods users were active; 0: do not.
    """

    periods: tuple[Interval, ...]
    ages: tuple[int, ...] = ()
    window: int = 0


class Figures(NamedTuple):
    """What there is to say of one period.

    active: its users.
    growth: None if the period before is not in the series, or began before the record.
    retention: by age, that of the cohort which was so many periods old. Without those that are not
        in the series, or not known.
    active_days: how many users were active in exactly n of the `window` periods that end with this
        one, at n; 0 at 0. None if the series does not ask for it, or begins within the window.
    is_window_known: whether the window began after the record did.
    """

    period: Interval
    active: int
    growth: Growth | None
    retention: Mapping[int, Retention]
    active_days: list[int] | None
    is_window_known: bool


def parts_of(series: Iterable[Series]) -> list[Interval]:
    """The disjoint intervals, in ascending order, that all periods of the series are made of."""
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

    In memory are, of each series, all users, its cohorts up to the highest age, and the users of
    the periods of its window.
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
        self.number = 0  # of the period that the next part is in
        self.before = before  # everybody active before that period
        self.members = bitmap()  # of the period so far
        self.previous: BitMap | None = None
        self.cohorts: deque[BitMap | None] = deque(maxlen=max(series.ages, default=0) + 1)
        self.counter = WindowCounter(series.window) if series.window else None

    def add(self, part: Interval, members: BitMap) -> Figures | None:
        """Add the users of the next part. Return the figures of the period if that completes it."""
        periods = self.series.periods
        if self.number == len(periods):
            return None
        period = periods[self.number]
        if part.end <= period.start:  # of another series, which begins earlier
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
    """In how many of the last `length` sets each user is: a binary number for each user, whose
    digits are bitmaps, so that all are added to at once."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.sets: deque[BitMap] = deque()
        self.digits = [bitmap() for _ in range(length.bit_length())]

    def add(self, members: BitMap) -> None:
        """Move the window on to this set."""
        if len(self.sets) == self.length:
            borrow = self.sets.popleft()
            for n, digit in enumerate(self.digits):
                self.digits[n], borrow = digit ^ borrow, borrow - digit
        self.sets.append(members)
        carry = members
        for n, digit in enumerate(self.digits):
            self.digits[n], carry = digit ^ carry, digit & carry

    def distribution(self) -> list[int]:
        """How many users are in exactly n of the sets, at n; 0 at 0."""
        counts = [0] * (self.length + 1)
        everybody = bitmap()
        for digit in self.digits:
            everybody |= digit
        self._count(everybody, len(self.digits), 0, counts)
        return counts

    def _count(self, users: BitMap, digits: int, number: int, counts: list[int]) -> None:
        """Count users whose number begins with these digits of `number`."""
        if not users:
            return
        if not digits:
            counts[number] = len(users)
            return
        digit = self.digits[digits - 1]
        self._count(users & digit, digits - 1, number + (1 << digits - 1), counts)
        self._count(users - digit, digits - 1, number, counts)
