"""What the people of the demo did in twenty weeks, computed with plain sets: the data of the
pictures."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise
from typing import NamedTuple

from demo.population import DAY, Crowd, local_day, midnight, past_visits

WEEKS = 20
FIRST = date(2025, 1, 6)  # a Monday


class Growth(NamedTuple):
    new: int
    retained: int
    resurrected: int
    churned: int


def days() -> list[set[int]]:
    """The users who were active on each day."""
    crowd = Crowd(opened=midnight(FIRST), weeks=WEEKS, accounts=600)
    active: list[set[int]] = [set() for _ in range(WEEKS * 7)]
    end = midnight(FIRST + timedelta(weeks=WEEKS))
    for person in crowd.people(until=end - DAY):
        for t in past_visits(person, crowd.opened, end):
            active[(local_day(t) - FIRST).days].add(person.number)
    return active


def weeks(active: list[set[int]]) -> list[set[int]]:
    return [set().union(*active[n : n + 7]) for n in range(0, len(active), 7)]


def growth(periods: list[set[int]]) -> list[Growth]:
    """The growth of each period except the first, which has no previous one."""
    seen, found = set(periods[0]), []
    for before, active in pairwise(periods):
        new, retained = active - seen, active & before
        found.append(
            Growth(len(new), len(retained), len(active - new - retained), len(before - active))
        )
        seen |= active
    return found


def retention(periods: list[set[int]]) -> list[list[float]]:
    """For the new users of each period except the first: the share active 0, 1, 2... periods
    later."""
    seen, found = set(periods[0]), []
    for number, active in enumerate(periods[1:], 1):
        cohort = active - seen
        found.append([len(cohort & later) / len(cohort) for later in periods[number:]])
        seen |= active
    return found


def active_days(active: list[set[int]]) -> list[int]:
    """How many of the users of the last 28 days were active on 1, 2, ... 28 of them."""
    last = active[-28:]
    counts = [sum(user in day for day in last) for user in set().union(*last)]
    return [counts.count(number) for number in range(1, 29)]
