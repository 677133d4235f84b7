"""Who uses the site, and what they did before it started. Made up, but the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from random import Random

from demo.rhythm import HOURS, WEEKDAYS, ZONE

PASSWORD = "souvenirs"  # of all people but the admin
ADMIN = "admin"
DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class Person:
    """A user to be. `eagerness` is the share of days (0 to 1) on which they come, on weekdays."""

    number: int
    eagerness: float
    lateness: float

    @property
    def username(self) -> str:
        return f"user{self.number:04}"

    @property
    def is_active(self) -> bool:
        """Whether they may sign in: one in 25 was sent away."""
        return self.number % 25 != 0

    def joined(self, start: float, end: float) -> float:
        """When they signed up, in unix seconds: most before `start`, some between it and `end`."""
        return start - DAY + (end - start) * max(0.0, self.lateness - 0.7) / 0.3


def people(count: int) -> list[Person]:
    random = Random(1)
    return [
        Person(number=n, eagerness=random.betavariate(1.2, 2), lateness=random.random())
        for n in range(1, count + 1)
    ]


def past_visits(person: Person, start: float, end: float) -> Iterator[float]:
    """When the person was active between two unix times: at most once in an hour, in order.

    It depends on person and day alone, so the past can be continued from where it ended.
    """
    day, last = (datetime.fromtimestamp(t, ZONE).date() for t in (start, end))
    while day <= last:
        for t in visits_of_day(person, day):
            if start <= t < end:
                yield t
        day += timedelta(days=1)


def visits_of_day(person: Person, day: date) -> Iterator[float]:
    random = Random(f"{person.number} {day}")
    if random.random() >= person.eagerness * WEEKDAYS[day.weekday()]:
        return
    for hour in sorted(set(random.choices(range(24), HOURS, k=random.randint(1, 5)))):
        clock = time(hour, random.randrange(60), random.randrange(60))
        yield datetime.combine(day, clock, ZONE).timestamp()
