"""Growth, retention and active days are what brute force counts, whatever becomes of the rows."""

from __future__ import annotations

import random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings as site_settings
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from souvenirs import reports
from souvenirs.bitmaps import bitmap
from souvenirs.history import cohorts, pruning, repair
from souvenirs.history.cohorts import Record, Series, WindowCounter
from souvenirs.periods import Interval, previous_calendar_period
from tests import growth
from tests.history import DAY, at, clear, record, roll_up, to_when, unix
from tests.people import User, with_databases

pytestmark = with_databases

ZONES = ["Europe/Paris", "America/St_Johns", "Pacific/Apia"]
START = unix(2024, 3, 5, 14, 20)
NOW = START + 75 * DAY
has_date_joined = "string" not in site_settings.SHAPE


def join(name: str, t: float) -> Any:
    user = User(username=name)
    if has_date_joined:
        user.date_joined = to_when(t)
    user.save()
    return user


# The sweep

sets = st.lists(st.sets(st.integers(0, 40), max_size=12), min_size=1, max_size=9)


@given(sets=sets, length=st.integers(1, 9))
def test_window_counter__is_what_brute_force_counts(sets: list[set[int]], length: int) -> None:
    counter = WindowCounter(length)
    for number, each in enumerate(sets):
        counter.add(bitmap(each))
        window = sets[max(0, number + 1 - length) : number + 1]
        times = [sum(user in each for each in window) for user in range(41)]
        expected = [0, *(times.count(n) for n in range(1, length + 1))]
        assert counter.distribution() == expected


@given(sets=sets, joined=st.none() | st.sets(st.integers(0, 40)), start=st.integers(-40, 5))
def test_sweep__keeps_its_identities(
    sets: list[set[int]], joined: set[int] | None, start: int
) -> None:
    before, *users = map(bitmap, sets)
    days = tuple(Interval(n * DAY, (n + 1) * DAY) for n in range(len(users)))
    record = Record(start * DAY, None if joined is None else bitmap(joined))
    series = {"day": Series(days, ages=(0, 1, 3))}
    swept = [found for _, found in cohorts.sweep(series, record, before, zip(days, users))]
    assert [found.active for found in swept] == [len(each) for each in users]
    for last, found in zip([None, *swept], swept):
        if last is None or last.period.start < record.start:
            assert found.growth is None
            continue
        assert found.growth is not None
        new, retained, resurrected, churned = found.growth
        assert churned == last.active - retained
        assert (new is None) == (resurrected is None) == (0 not in found.retention)
        if new is not None and resurrected is not None:
            assert found.active == new + retained + resurrected
            assert found.active - last.active == new + resurrected - churned
            assert found.retention[0] == (new, new)


def test_sweep__series_of_other_lengths_are_those_of_their_own() -> None:
    chance = random.Random(1)
    days = tuple(Interval(n * DAY, (n + 1) * DAY) for n in range(60))
    users = [bitmap(chance.sample(range(500), 30)) for _ in days]
    record = Record(0, bitmap(range(100)))
    weeks = tuple(Interval(n * 7 * DAY, (n + 1) * 7 * DAY) for n in range(2, 8))
    series = {
        "day": Series(days[20:55], ages=(1, 7), window=28),
        "week": Series(weeks, ages=(0, 1, 2)),
    }
    parts = cohorts.parts_of(series.values())
    of_parts = [
        (
            part,
            bitmap().union(*(u for d, u in zip(days, users) if part.start <= d.start < part.end)),
        )
        for part in parts
    ]
    before = bitmap().union(*(u for d, u in zip(days, users) if d.end <= parts[0].start))
    together = list(cohorts.sweep(series, record, before, of_parts))
    for name, each in series.items():
        start = each.periods[0].start
        alone = cohorts.sweep(
            {name: each},
            record,
            bitmap().union(*(u for d, u in zip(days, users) if d.end <= start)),
            [(part, members) for part, members in of_parts if part.start >= start],
        )
        assert [found for found in together if found[0] == name] == list(alone)


# The reports


@pytest.fixture
def no_zone() -> None:
    pass


visits = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 74) | st.integers(0, 9), st.integers(0, DAY)),
    min_size=1,
    max_size=40,
)


@given(
    visits=visits,
    zone=st.sampled_from(ZONES),
    ages=st.lists(st.integers(-40, 60), min_size=6, max_size=6),
    steps=st.permutations(["roll up", "prune", "delete", "repair", "record late"]),
)
def test_reports__are_what_brute_force_counts(
    visits: list[tuple[int, int, int]], zone: str, ages: list[int], steps: list[str]
) -> None:
    clear()
    User.objects.all().delete()
    clear()
    facts = [(who, START + day * DAY + second) for who, day, second in visits]
    first = min(t for _, t in facts)
    joined = {who: min(first + age * DAY, NOW) for who, age in enumerate(ages)}
    with override_settings(TIME_ZONE=zone), at(NOW):
        users = {who: join(f"user{who}", t) for who, t in joined.items()}
        for who, t in facts:
            record(users[who], t)
        check(facts, joined, zone)
        for step in steps:
            if step == "roll up":
                roll_up(NOW)
            elif step == "prune":
                pruning.prune(20 * DAY)
            elif step == "delete":
                users.pop(0).delete()
                del joined[0]
            elif step == "repair":
                repair.repair()
            else:
                record(users[1], START + 12 * DAY)
                facts.append((1, START + 12 * DAY))
            check(facts, joined, zone)


def check(facts: list[tuple[int, float]], joined: dict[int, float], zone: str) -> None:
    truth = growth.Truth(facts, joined if has_date_joined else None)
    for name in ("day", "week", "month"):
        assert list(growth.differences(truth, name, NOW, ZoneInfo(zone), reports)) == []
    days: list[Interval] = []
    for _ in range(28):
        start = days[0].start if days else NOW
        days.insert(0, previous_calendar_period("day", start, ZoneInfo(zone)))
    found = [row["usage"]["active_users"] for row in reports.active_days()]
    assert found == truth.active_days(days)
