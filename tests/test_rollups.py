"""Rollups and rows together count what brute force counts over what happened."""

from __future__ import annotations

import random
from datetime import datetime, timezone
from typing import Any

import pytest
import time_machine
from django.test import override_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from souvenirs import clock, counting, pruning, rollups
from souvenirs.control import active_users_between
from souvenirs.models import LastSeen, Rollup, Souvenir, StaleMark, Watermark
from souvenirs.periods import BUCKET, Interval
from tests.people import User, ours, with_databases

pytestmark = with_databases

HOUR, DAY = 3_600, 86_400
START = int(datetime(2024, 3, 29, 23, tzinfo=timezone.utc).timestamp())  # Paris: 30 March, 00:00
DAYS = 4  # clocks change on the second; a month ends with it


def to_when(t: float) -> datetime:
    return clock.to_datetime(t)


def clear() -> None:
    for model in (Souvenir, LastSeen, Rollup, StaleMark, Watermark):
        model.objects.all().delete()


def people(count: int = 6) -> list[Any]:
    users = list(User.objects.order_by("username"))
    return users or [User.objects.create(username=f"user{i}") for i in range(count)]


instants = st.integers(0, DAYS * 96).map(lambda n: START + n * BUCKET) | st.floats(
    START, START + DAYS * DAY
).map(lambda t: round(t, 3))
facts = st.tuples(st.integers(0, 5), instants)
ranges = st.lists(st.builds(Interval, instants, instants), min_size=1, max_size=12)
deep = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(
    history=st.lists(st.tuples(facts, instants), max_size=40),
    rolls=st.lists(instants, max_size=4),
    asked=ranges,
    at=instants,
)
@deep
def test_count__is_that_of_the_rows_however_much_is_rolled_up_of_them(
    history: list[tuple[tuple[int, float], float]],
    rolls: list[float],
    asked: list[Interval],
    at: float,
) -> None:
    clear()
    users = people()
    events: list[tuple[float, int, float | None]] = [(t, who, when) for (who, when), t in history]
    events += [(t, -1, None) for t in rolls]
    for t, who, when in sorted(events, key=lambda event: event[0]):
        with time_machine.travel(t, tick=False):
            if when is None:
                rollups.roll_up()
            else:
                Souvenir.objects.create(user_id=users[who].pk, when=to_when(when))
    expected = [
        {users[who].pk for (who, when), _ in history if start <= when < end} for start, end in asked
    ]
    with time_machine.travel(at, tick=False):
        assert counting.count_users_of_ranges(asked) == [len(each) for each in expected]
        start, end = (to_when(t) for t in asked[0])
        assert {user.pk for user in active_users_between(start, end)} == expected[0]
