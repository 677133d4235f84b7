"""Who uses the site: when they join, when they stay away, and when they visit. Generated, but
deterministic: it depends on when the site opened, a person's number, and the day."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime, time, timedelta
from functools import cache
from itertools import count, takewhile
from math import sin, tau
from pathlib import Path
from random import Random
from typing import NamedTuple

from demo.rhythm import HOURS, WEEKDAYS, ZONE

PASSWORD = "souvenirs"  # of everybody except the admin
ADMIN = "admin"
DAY = 86_400

# People with an account from before the site began to remember visits
FOUNDERS_SHARE, FOUNDERS_DAYS = 0.3, 120
# They join in waves, as campaigns come and go: the number of waves within the weeks
WAVES = 4
# How long people keep coming, in days on average: some look around, some stay for weeks or months
STAYS_DAYS = (2, 20, 200)
# The share of leavers who come back, and the length of their break in days
RETURN_SHARE, BREAK_DAYS = 0.45, (8, 60)
VISIT_SECONDS = (120, 1_200)


class Visit(NamedTuple):
    """A visit from `start` to `end`, in unix seconds."""

    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Person:
    """A future user.

    eagerness: the share of weekdays (0 to 1) on which they come during one of their `stays`. They
    join at `joined`. Times are unix seconds.
    """

    number: int
    joined: float
    eagerness: float
    stays: tuple[tuple[float, float], ...]

    @property
    def username(self) -> str:
        return f"user{self.number:04}"

    @property
    def is_active(self) -> bool:
        """Whether they may sign in: one in 24 is deactivated."""
        return self.number % 24 != 0

    def visits(self, day: date) -> list[Visit]:
        """The visits that begin on a day of the site."""
        start, end = midnight(day), midnight(day + timedelta(days=1))
        stays = [stay for stay in self.stays if stay[0] < end and start < stay[1]]
        if not stays:
            return []
        random = Random(f"{self.number} {day}")
        begins = [self.joined] if start <= self.joined < end else []
        if random.random() < self.eagerness * WEEKDAYS[day.weekday()]:
            hours = set(random.choices(range(24), HOURS, k=random.randint(1, 6)))
            begins += [start + 3_600 * (hour + random.random()) for hour in sorted(hours)]
        visits = [Visit(t, t + random.uniform(*VISIT_SECONDS)) for t in begins]
        return [visit for visit in visits if any(a <= visit.start < b for a, b in stays)]


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """The people of a site that opened at a unix time. After `weeks` weeks it has `accounts`
    accounts, and people go on joining at the same rate for ever."""

    opened: float
    weeks: int
    accounts: int

    @classmethod
    def load(cls, path: Path) -> Crowd:
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def people(self, until: float | None = None) -> list[Person]:
        """The people who joined before a unix time; by default, before the weeks are over."""
        end = self.opened + self.weeks * 7 * DAY if until is None else until
        return list(takewhile(lambda person: person.joined < end, map(self.person, count(1))))

    def person(self, number: int) -> Person:
        random = Random(number)
        founders = int(FOUNDERS_SHARE * self.accounts)
        if number <= founders:
            days = (number - founders - 1) * FOUNDERS_DAYS / founders
        else:
            pace = self.weeks * 7 / (self.accounts - founders)
            days = (number - founders - random.uniform(0.1, 0.9)) * pace
            wave = self.weeks * 7 / WAVES / tau
            days += wave / 2 * sin(days / wave)
        joined = self.opened + days * DAY
        # One in six never comes: somebody else created the account for them
        stays = tuple(stays_of(random, joined)) if number % 6 else ()
        eagerness = random.betavariate(1, 0.8)
        return Person(number=number, joined=joined, eagerness=eagerness, stays=stays)


def stays_of(random: Random, joined: float) -> Iterator[tuple[float, float]]:
    """The intervals in which a person comes, one after the other."""
    start = joined
    while True:
        end = start + random.expovariate(1 / random.choice(STAYS_DAYS)) * DAY + 1
        yield start, end
        if random.random() > RETURN_SHARE:
            return
        start = end + random.uniform(*BREAK_DAYS) * DAY


def local_day(t: float) -> date:
    return datetime.fromtimestamp(t, ZONE).date()


@cache
def midnight(day: date) -> float:
    return datetime.combine(day, time(), ZONE).timestamp()


def past_visits(person: Person, start: float, end: float) -> Iterator[float]:
    """When the person was seen between two unix times: at the beginning and at the end of each
    visit.

    A visit depends only on the person and the day, so the past can be continued from where it
    ended.
    """
    day, last = local_day(start) - timedelta(days=1), local_day(end)
    while day <= last:
        for visit in person.visits(day):
            yield from (t for t in visit if start <= t < end)
        day += timedelta(days=1)


class Schedule:
    """Who is visiting the site at a given time."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.day: date | None = None
        self.visits: list[tuple[Visit, str]] = []

    def about(self, t: float) -> list[str]:
        """The names of the people who are reading at a unix time."""
        day = local_day(t)
        if day != self.day:
            self.day = day
            self.visits = [
                (visit, person.username)
                for person in self.crowd.people(until=t + 2 * DAY)
                for each in (day - timedelta(days=1), day)  # a visit may last past midnight
                for visit in person.visits(each)
            ]
        return [name for visit, name in self.visits if visit.start <= t < visit.end]
