"""Counts from rollups and rows together equal brute force over what happened."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.conf import settings as django_settings
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from souvenirs import timestamps
from souvenirs.control import active_users_between, souvenez
from souvenirs.history import counting, maintenance, progress
from souvenirs.models import DeletedMember, DirtyBucket, LastSeen, Rollup, Souvenir, Watermark
from souvenirs.periods import BUCKET, Interval, calendar_period
from tests.history import unix
from tests.people import User, ours, with_databases

pytestmark = with_databases

HOUR, DAY = 3_600, 86_400
START = unix(2024, 3, 29, 23)  # Paris: 30 March, 00:00
DAYS = 4  # clocks change on the second day, and a month ends with it


def to_when(t: float) -> datetime:
    return timestamps.to_datetime(t)


def clear() -> None:
    for model in (Souvenir, LastSeen, Rollup, DirtyBucket, DeletedMember, Watermark):
        model.objects.all().delete()


def people(count: int = 6) -> list[Any]:
    users = list(User.objects.order_by("username"))
    return users or [User.objects.create(username=f"user{i}") for i in range(count)]


instants = st.integers(0, DAYS * 96).map(lambda n: START + n * BUCKET) | st.floats(
    START, START + DAYS * DAY
).map(lambda t: round(t, 3))
facts = st.tuples(st.integers(0, 5), instants)
ranges = st.lists(st.builds(Interval, instants, instants), min_size=1, max_size=12)


@given(
    history=st.lists(st.tuples(facts, instants), max_size=40),
    rolls=st.lists(instants, max_size=4),
    bounds=ranges,
    at=instants,
)
def test_count__equals_that_of_the_rows_for_any_state_of_rollups(
    history: list[tuple[tuple[int, float], float]],
    rolls: list[float],
    bounds: list[Interval],
    at: float,
) -> None:
    clear()
    users = people()
    events: list[tuple[float, int, float | None]] = [(t, who, when) for (who, when), t in history]
    events += [(t, -1, None) for t in rolls]
    for t, who, when in sorted(events, key=lambda event: event[0]):
        with time_machine.travel(t, tick=False):
            if when is None:
                maintenance.roll_up()
            else:
                Souvenir.objects.create(user_id=users[who].pk, when=to_when(when))
    expected = [
        {users[who].pk for (who, when), _ in history if start <= when < end}
        for start, end in bounds
    ]
    with time_machine.travel(at, tick=False):
        assert counting.count_users_of_ranges(bounds) == [len(each) for each in expected]
        start, end = (to_when(t) for t in bounds[0])
        assert {user.pk for user in active_users_between(start, end)} == expected[0]


# Zones whose days do not begin at quarters of an hour, and the times at which they are irregular
ODD = [
    ("Africa/Monrovia", unix(1972, 1, 7)),  # 44 minutes and 30 seconds behind UTC until then
    ("Europe/Amsterdam", unix(1937, 6, 30)),  # 19 minutes and 32 seconds ahead
    ("Australia/Lord_Howe", unix(2024, 4, 6, 15)),  # set back by half an hour
    ("Pacific/Apia", unix(2011, 12, 30, 10)),  # a day is skipped
    ("Asia/Kathmandu", unix(1985, 12, 31, 18)),  # set forward by a quarter of an hour
]
near = st.integers(-3 * 96, 3 * 96).map(lambda n: n * BUCKET)
far = st.sampled_from([-90, -65, -33, -31, 0, 0, 0, 32, 64]).map(lambda n: n * DAY)
shifts = st.builds(lambda a, b, c: a + b + c, near, far, st.sampled_from([0, 0, 1, -1, 450]))


@pytest.mark.slow
# otherwise the two passes of a repeated time are the same
@pytest.mark.where(django_settings.USE_TZ)
@pytest.mark.parametrize(("zone", "center"), ODD)
@given(
    history=st.lists(st.tuples(st.integers(0, 3), shifts), min_size=1, max_size=15),
    rolls=st.lists(shifts, max_size=3),
    bounds=st.lists(st.tuples(shifts, shifts), min_size=1, max_size=12),
    buckets=st.none() | st.integers(1, 9),
)
def test_count__equals_that_of_the_rows_in_irregular_time_zones(
    zone: str,
    center: int,
    history: list[tuple[int, float]],
    rolls: list[float],
    bounds: list[tuple[float, float]],
    buckets: int | None,
) -> None:
    clear()
    users = people()
    rows = [(who, center + shift) for who, shift in history]
    events = sorted([*((t, who) for who, t in rows), *((center + shift, -1) for shift in rolls)])
    ranges = [Interval(center + start, center + end) for start, end in bounds]
    ranges += [calendar_period("day", each.start, ZoneInfo(zone)) for each in ranges]
    ranges += [calendar_period("month", each.start, ZoneInfo(zone)) for each in ranges]
    with override_settings(TIME_ZONE=zone):
        for t, who in events:
            with time_machine.travel(t, tick=False):
                if who < 0:
                    maintenance.roll_up(buckets)
                else:
                    Souvenir.objects.create(user_id=users[who].pk, when=to_when(t))
        with time_machine.travel(events[-1][0] + 2 * DAY, tick=False):
            for _ in range(2):
                expected = [len({who for who, t in rows if a <= t < b}) for a, b in ranges]
                assert counting.count_users_of_ranges(ranges) == expected
                maintenance.roll_up()
        assert not DirtyBucket.objects.exists()
        assert not list(unaligned())


def unaligned() -> Iterator[Rollup]:
    return (each for each in Rollup.objects.all() if each.start % BUCKET or each.end % BUCKET)


@pytest.mark.where(django_settings.USE_TZ)
def test_roll_up__continues_at_a_quarter_of_an_hour_if_months_do_not_begin_at_one() -> None:
    clear()
    users = people()
    month = unix(1971, 12, 1, 0, 44) + 30
    stops: list[int] = []
    with override_settings(TIME_ZONE="Africa/Monrovia"):
        Souvenir.objects.create(user_id=users[0].pk, when=to_when(month - 20 * DAY))
        with time_machine.travel(month + 40 * DAY, tick=False):
            maintenance.roll_up(on_step=lambda _: stops.append(watermark()))
    assert len(stops) >= 4
    assert {stop % BUCKET for stop in stops} == {0}


def watermark() -> int:
    return progress.watermark(ours().alias).rolled_up


def test_roll_up__after_the_clock_was_set_back_includes_live_souvenirs() -> None:
    clear()
    users = people()
    for t, who in [(START + DAY, 0), (START + HOUR, 1)]:
        with time_machine.travel(t, tick=False):
            souvenez(users[who].pk)
            maintenance.roll_up()
    with time_machine.travel(START + 2 * DAY, tick=False):
        day = [Interval(START, START + DAY), Interval(START, START + 2 * DAY)]
        assert counting.count_users_of_ranges(day) == [1, 2]
        maintenance.roll_up()
        assert counting.count_users_of_ranges(day) == [1, 2]


def test_roll_up__creates_few_rollups_for_a_long_time_without_users() -> None:
    clear()
    users = people()
    steps: list[Interval] = []
    for t in (START, START + 400 * DAY):
        with time_machine.travel(t, tick=False):
            souvenez(users[0].pk)
    with time_machine.travel(START + 401 * DAY, tick=False):
        maintenance.roll_up(on_step=steps.append)
    kinds = [kind for (kind,) in Rollup.objects.order_by("start").values_list("kind")]
    assert kinds.count(Rollup.BUCKET) == kinds.count(Rollup.DAY) == 2
    assert kinds.count(Rollup.MONTH) == 14
    assert len(steps) < 25


def test_roll_up__an_old_souvenir_gets_its_day_and_month() -> None:
    clear()
    users = people()
    with time_machine.travel(START + 40 * DAY, tick=False):
        Souvenir.objects.create(user_id=users[0].pk, when=to_when(START + 39 * DAY))
        maintenance.roll_up()
        Souvenir.objects.create(user_id=users[1].pk, when=to_when(START - 300 * DAY))
        maintenance.roll_up()
    kinds = Rollup.objects.filter(start__lt=START - 200 * DAY).values_list("kind", flat=True)
    assert sorted(kinds) == [Rollup.BUCKET, Rollup.DAY, Rollup.MONTH]


def test_roll_up__a_late_souvenir_counts_in_a_closed_day_and_month() -> None:
    clear()
    users = people()
    spans = [calendar_period(name, START, ZoneInfo("Europe/Paris")) for name in ("day", "month")]
    with time_machine.travel(START + 40 * DAY, tick=False):
        for n, count in [(0, 1), (1, 2), (0, 2)]:
            Souvenir.objects.create(user_id=users[n].pk, when=to_when(START + n * BUCKET))
            assert counting.count_users_of_ranges(spans) == [count, count]
            maintenance.roll_up()
            assert counting.count_users_of_ranges(spans) == [count, count]


def test_lag__is_the_age_of_the_oldest_bucket_that_is_due() -> None:
    clear()
    users = people()
    using = ours().alias

    def lag(t: float) -> float:
        return progress.lag(t, using)

    assert lag(START) == 0
    with time_machine.travel(START + 5, tick=False):
        souvenez(users[0].pk)
    assert lag(START + BUCKET + 60) == 0  # within the grace period
    with time_machine.travel(START + 3 * HOUR, tick=False):
        assert lag(START + 3 * HOUR) > 2 * HOUR
        maintenance.roll_up()
        assert lag(START + 3 * HOUR) == 0
        Souvenir.objects.create(user_id=users[1].pk, when=to_when(START + HOUR))
        assert lag(START + 3 * HOUR) == 2 * HOUR - BUCKET
        maintenance.roll_up()
        assert lag(START + 3 * HOUR) == 0


def test_roll_up__in_small_steps_gives_the_same_result() -> None:
    clear()
    users = people()
    with time_machine.travel(START + 2 * DAY, tick=False):
        for n in range(40):
            t = START + n * 50 * 60
            Souvenir.objects.create(user_id=users[n % 5].pk, when=to_when(t))

        def state() -> set[Any]:
            fields = ("kind", "start", "end", "active_users")
            return set(Rollup.objects.values_list(*fields))

        sizes = []
        while progress.lag(START + 2 * DAY, ours().alias):
            before = Rollup.objects.filter(kind=Rollup.BUCKET).count()
            maintenance.roll_up(buckets=4)
            sizes.append(Rollup.objects.filter(kind=Rollup.BUCKET).count() - before)
        in_steps = state()
        Rollup.objects.all().delete()
        Watermark.objects.all().delete()
        maintenance.roll_up()
        assert state() == in_steps
    assert len(sizes) > 30
    assert max(sizes) <= 4
