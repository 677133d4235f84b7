"""Last-seen times in the hour that occurs twice on local clocks: windows are never short, and they
are exact if the database column distinguishes the two passes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.test import override_settings

from souvenirs.lastseen import table
from souvenirs.lastseen.base import LastSeenUpdate
from souvenirs.lastseen.database import DatabaseStore
from souvenirs.periods import RepeatedHour, midnight, repeated_hour
from tests.history import HOUR, MINUTE, at
from tests.people import User, ours, with_databases

TURNS = {
    "Europe/Paris": (2024, 10, 27, 1),
    "America/Havana": (2024, 11, 3, 5),  # from one o'clock to midnight
    "Australia/Lord_Howe": (2024, 4, 6, 15),  # by half an hour
}


def turn_of(zone: str) -> int:
    return int(datetime(*TURNS[zone], tzinfo=timezone.utc).timestamp())  # type: ignore[misc]


def shown(t: float, zone: str) -> datetime:
    return datetime.fromtimestamp(t, ZoneInfo(zone)).replace(tzinfo=None, fold=0)


@pytest.mark.parametrize("zone", TURNS)
def test_repeated_hour__contains_all_repeated_times(zone: str) -> None:
    turn = turn_of(zone)
    times = range(turn - 3 * HOUR, turn + 3 * HOUR, 5 * MINUTE)
    walls = [shown(t, zone) for t in times]
    twice = [t for t, wall in zip(times, walls) if walls.count(wall) == 2]
    assert twice
    expected = RepeatedHour(twice[0], turn, twice[-1] + 5 * MINUTE)
    for t in times:
        assert repeated_hour(t + 0.5, ZoneInfo(zone)) == (expected if t in twice else None)


@pytest.mark.parametrize("zone", ["Europe/Paris", "UTC", "Asia/Kolkata"])
def test_repeated_hour__is_rare(zone: str) -> None:
    noon = int(datetime(2024, 5, 14, 12, tzinfo=timezone.utc).timestamp())
    assert repeated_hour(noon, ZoneInfo(zone)) is None
    spring = int(datetime(2024, 3, 31, 1, tzinfo=timezone.utc).timestamp())
    assert [repeated_hour(spring + t, ZoneInfo(zone)) for t in (-1, 0, 1)] == [None] * 3
    assert repeated_hour(0, timezone.utc) is None


@pytest.fixture(params=TURNS)
def zone(request: Any) -> Iterator[str]:
    with override_settings(TIME_ZONE=request.param):
        yield request.param


@with_databases
def test_count__around_the_repeated_hour(zone: str) -> None:
    """Each time, a new user is seen and an earlier one returns."""
    turn = turn_of(zone)
    is_exact = settings.USE_TZ or ours().features.supports_timezones
    store = DatabaseStore({})
    truth: dict[Any, int] = {}
    keys: list[Any] = []
    times = {*range(turn - 90 * MINUTE, turn + 100 * MINUTE, 10 * MINUTE)}
    times |= {turn + offset for offset in (-61, -60, -1, 1, 60, HOUR - 1, HOUR + 1)}
    for number, now in enumerate(sorted(times)):
        keys.append(User.objects.create(username=f"u{number}").pk)
        visitors = {keys[-1], keys[len(keys) * number % 7 % len(keys)]}
        with at(now):
            for key in visitors:
                table.touch(LastSeenUpdate(user_pk=key, seen=now, slot_start=now, latest=now + 60))
                truth[key] = now
        cuts = [now - offset * MINUTE for offset in (0, 15, 30, 60, 65, 90, 24 * 60)]
        cuts += [turn - HOUR, turn - 1, turn]
        cuts.append(midnight(shown(now, zone).date(), ZoneInfo(zone)))
        counts = store.count(cuts, now + 60, using=ours().alias)
        hour = repeated_hour(turn, ZoneInfo(zone))
        assert hour is not None
        for cut in cuts:
            least = sum(t >= cut for t in truth.values())
            most = sum(t >= cut - (hour.turn - hour.start) for t in truth.values())
            if is_exact or not (hour.start < cut < hour.end):
                most = least
            assert least <= counts.since[cut] <= most, (now - turn, cut - turn)
        if is_exact or not (hour.turn <= now < hour.end):
            assert counts.newest == now
