"""The demo's people: their past and their live visits follow the same schedule."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from demo.population import DAY, Crowd, Schedule, midnight, past_visits
from demo.rhythm import activity

pytestmark = pytest.mark.own_site

OPENED = midnight(date(2025, 1, 6))  # a Monday
WEEKS = 12
END = midnight(date(2025, 1, 6) + timedelta(weeks=WEEKS))  # clocks change the day before
CROWD = Crowd(opened=OPENED, weeks=WEEKS, accounts=400)


@pytest.fixture(scope="module")
def visits() -> dict[str, list[float]]:
    """When each person was seen in the past."""
    people = CROWD.people(until=END)
    return {person.username: list(past_visits(person, OPENED, END)) for person in people}


def seen(visits: dict[str, list[float]], start: float, end: float) -> set[str]:
    return {name for name, times in visits.items() if any(start <= t < end for t in times)}


def test_crowd__has_its_accounts_after_its_weeks() -> None:
    assert [person.number for person in CROWD.people()] == list(range(1, 401))
    later = CROWD.people(until=OPENED + 2 * WEEKS * 7 * DAY)
    assert [person.joined for person in later] == sorted(person.joined for person in later)
    assert len(later) > 600  # and goes on growing


def test_crowd__is_the_same_after_a_restart(tmp_path: Path) -> None:
    CROWD.save(tmp_path / "crowd.json")
    assert Crowd.load(tmp_path / "crowd.json").people() == CROWD.people()


def test_crowd__people_join_leave_and_come_back(visits: dict[str, list[float]]) -> None:
    weeks = [
        seen(visits, OPENED + n * 7 * DAY, OPENED + (n + 1) * 7 * DAY) for n in range(WEEKS - 1)
    ]
    ever = weeks[0]
    resurrected = 0
    for before, active in pairwise(weeks):
        assert active - ever  # new
        assert before - active  # churned
        assert len(before & active) > len(before) / 2  # retained
        resurrected += len((active & ever) - before)
        ever |= active
    assert resurrected > 20


def test_past__can_be_continued_at_any_time() -> None:
    for person in CROWD.people()[:50]:
        for t in (OPENED + 40 * DAY, OPENED + 40.5 * DAY + 1):
            parts = [*past_visits(person, OPENED, t), *past_visits(person, t, END)]
            assert parts == list(past_visits(person, OPENED, END))


@pytest.mark.parametrize("day", [2, 6, 48, 80])
def test_live__users_of_an_hour_equal_those_of_the_past(
    visits: dict[str, list[float]], day: int
) -> None:
    schedule = Schedule(CROWD)
    for hour in (0, 4, 9, 13, 20, 23):
        end = OPENED + day * DAY + hour * 3_600
        about = {name for t in range(int(end) - 3_600, int(end), 15) for name in schedule.about(t)}
        may_differ = seen(visits, end - 3_615, end - 3_600) | seen(visits, end - 15, end)
        assert about ^ seen(visits, end - 3_600, end) <= may_differ


def test_rhythm__evenings_are_busier_than_nights_and_weekdays_than_weekends(
    visits: dict[str, list[float]],
) -> None:
    times = [t for each in visits.values() for t in each if t > OPENED + 28 * DAY]
    busy = sum(activity(t) > 0.8 for t in times) / sum(
        activity(t) > 0.8 for t in range(int(OPENED + 28 * DAY), int(END), 600)
    )
    calm = sum(activity(t) < 0.2 for t in times) / sum(
        activity(t) < 0.2 for t in range(int(OPENED + 28 * DAY), int(END), 600)
    )
    assert busy > 4 * calm > 0
