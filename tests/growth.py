"""Brute-force growth, retention and active days, computed from facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from souvenirs.history.cohorts import Figures, Growth, Retention, Series
from souvenirs.periods import BUCKET, Interval, calendar_period

DAY = 86_400


class Truth:
    def __init__(
        self, facts: Sequence[tuple[Any, float]], joined: Mapping[Any, float] | None
    ) -> None:
        """facts: (who, when) of all activity.
        joined: when the existing users joined. None: unknown."""
        self.facts, self.joined = facts, joined or {}
        self.start = min(t for _, t in facts) // BUCKET * BUCKET
        self.settled = self.start + (28 * DAY if joined is None else 0)
        self.first: dict[Any, float] = {}
        for who, t in facts:
            self.first[who] = min(t, self.first.get(who, t))
        self._active: dict[Interval, set[Any]] = {}

    def active(self, period: Interval) -> set[Any]:
        if period not in self._active:
            users = {who for who, t in self.facts if period.start <= t < period.end}
            self._active[period] = users
        return self._active[period]

    def cohort(self, period: Interval) -> set[Any] | None:
        if period.start < self.settled:
            return None
        return {
            who
            for who, t in self.first.items()
            if period.start <= t < period.end and self.joined.get(who, t) >= self.start
        }

    def growth(self, previous: Interval | None, period: Interval) -> Growth | None:
        if previous is None or previous.start < self.start:
            return None
        active, before, new = self.active(period), self.active(previous), self.cohort(period)
        return Growth(
            None if new is None else len(new),
            len(active & before),
            None if new is None else len(active - before - new),
            len(before - active),
        )

    def retention(self, cohort: Interval, period: Interval) -> Retention | None:
        users = self.cohort(cohort)
        return None if users is None else Retention(len(users), len(users & self.active(period)))

    def active_days(self, days: Sequence[Interval]) -> list[int]:
        sets = [self.active(day) for day in days]
        times = [sum(who in each for each in sets) for who in self.first]
        return [0, *(times.count(n) for n in range(1, len(days) + 1))]

    def figures(self, series: Series) -> list[Figures]:
        found = []
        for n, period in enumerate(series.periods):
            of_ages = {
                age: self.retention(series.periods[n - age], period)
                for age in series.ages
                if age <= n
            }
            window = series.periods[max(0, n + 1 - series.window) : n + 1]
            is_whole = 0 < series.window == len(window)
            found.append(
                Figures(
                    period,
                    len(self.active(period)),
                    self.growth(series.periods[n - 1] if n else None, period),
                    {age: each for age, each in of_ages.items() if each is not None},
                    self.active_days(window) if is_whole else None,
                    is_whole and self.start <= window[0].start,
                )
            )
        return found


def calendar(name: str, start: float, end: float, zone: ZoneInfo) -> tuple[Interval, ...]:
    """The calendar periods from the one that contains `start` up to `end`, which cuts off the
    last."""
    found = []
    while start < end:
        period = calendar_period(name, start, zone)
        found.append(Interval(period.start, min(period.end, end)))
        start = period.end
    return tuple(found)
