"""Growth, retention and active days equal brute force, even after rows are pruned or deleted."""

from __future__ import annotations

import random
from contextlib import nullcontext
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings as site_settings
from django.db import connections, router
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from souvenirs.bitmaps import bitmap, union
from souvenirs.history import cohorts, figures, joined, pruning, repair
from souvenirs.history.cohorts import Record, Series, WindowCounter
from souvenirs.history.figures import KeptFigures, read_figures
from souvenirs.models import DirtyBucket, LastSeen, Souvenir
from souvenirs.periods import Interval
from tests import growth
from tests.history import DAY, HOUR, at, clear, record, roll_up, to_when, unix
from tests.people import User, ours, with_databases

pytestmark = with_databases

ZONES = ["Europe/Paris", "America/St_Johns", "Pacific/Apia"]
START = unix(2024, 3, 5, 14, 20)
NOW = START + 45 * DAY
PARIS = ZoneInfo("Europe/Paris")
has_date_joined = "string" not in site_settings.SHAPE


def join(name: str, t: float) -> Any:
    user = User(username=name)
    if has_date_joined:
        user.date_joined = to_when(t)
    user.save()
    return user


# The sweep

sets = st.lists(st.sets(st.integers(0, 40), max_size=12), min_size=2, max_size=9)


@given(sets=sets, length=st.integers(1, 9))
def test_window_counter__equals_brute_force(sets: list[set[int]], length: int) -> None:
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
    known = Record(start * DAY, None if joined is None else bitmap(joined))
    series = {"day": Series(days, ages=(0, 1, 3))}
    swept = [found for _, found in cohorts.sweep(series, known, before, zip(days, users))]
    assert [found.active for found in swept] == [len(each) for each in users]
    for last, found in pairwise(swept):
        if last.period.start < known.start:
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


def test_sweep__of_several_series_equals_one_sweep_of_each() -> None:
    chance = random.Random(1)
    days = tuple(Interval(n * DAY, (n + 1) * DAY) for n in range(60))
    users = [bitmap(chance.sample(range(500), 30)) for _ in days]
    known = Record(0, bitmap(range(100)))
    weeks = tuple(Interval(n * 7 * DAY, (n + 1) * 7 * DAY) for n in range(2, 8))
    series = {
        "day": Series(days[20:55], ages=(1, 7), window=28),
        "week": Series(weeks, ages=(0, 1, 2)),
    }

    def users_in(interval: Interval) -> Any:
        inside = [u for d, u in zip(days, users) if interval.start <= d.start < interval.end]
        return union([bitmap(), *inside])

    parts = cohorts.parts_of(series.values())
    of_parts = [(part, users_in(part)) for part in parts]
    before = users_in(Interval(0, parts[0].start))
    together = list(cohorts.sweep(series, known, before, of_parts))
    for name, each in series.items():
        start = each.periods[0].start
        rest = [(part, members) for part, members in of_parts if part.start >= start]
        alone = cohorts.sweep({name: each}, known, users_in(Interval(0, start)), rest)
        assert [found for found in together if found[0] == name] == list(alone)


# What happened


def play(visits: list[tuple[int, int, int]], zone: str, ages: list[int], steps: list[str]) -> None:
    """Compare with brute force after each step. visits: (who, day, second of the day)."""
    clear()
    User.objects.all().delete()
    clear()
    facts = [(who, START + day * DAY + second) for who, day, second in visits]
    first = min(t for _, t in facts)
    joined = {who: min(first + age * DAY, NOW) for who, age in enumerate(ages)}
    kept = KeptFigures()
    with override_settings(TIME_ZONE=zone), at(NOW):
        users = {who: join(f"user{who}", t) for who, t in joined.items()}
        rows = [Souvenir(user_id=users[who].pk, when=to_when(t)) for who, t in facts]
        Souvenir.objects.bulk_create(rows)
        check(facts, joined, zone, kept)
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
            check(facts, joined, zone, kept)


STEPS = ["roll up", "prune", "delete", "record late", "repair"]


@pytest.mark.slow
@given(
    visits=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 44) | st.integers(0, 9), st.integers(0, DAY)),
        min_size=1,
        max_size=30,
    ),
    zone=st.sampled_from(ZONES),
    ages=st.lists(st.integers(-40, 40), min_size=6, max_size=6),
    steps=st.permutations(STEPS),
)
def test_read_figures__equals_brute_force(
    visits: list[tuple[int, int, int]], zone: str, ages: list[int], steps: list[str]
) -> None:
    play(visits, zone, ages, steps)


@pytest.mark.slow
def test_read_figures__equals_brute_force_in_an_example() -> None:
    chance = random.Random(3)
    visits = [
        (who, day, chance.randrange(DAY)) for who in range(6) for day in chance.sample(range(45), 9)
    ]
    play(visits, "Europe/Paris", [-9, 0, 3, -30, 20, 8], STEPS)


def check(
    facts: list[tuple[int, float]], joined: dict[int, float], zone: str, kept: KeptFigures
) -> None:
    truth = growth.Truth(facts, joined if has_date_joined else None)
    using = router.db_for_read(Souvenir)
    series = {
        name: Series(growth.calendar(name, START - DAY, NOW, ZoneInfo(zone)), ages, window)
        for name, ages, window in [("day", (0, 1, 7), 28), ("week", (1, 4), 0), ("month", (1,), 0)]
    }
    expected = {name: truth.figures(each) for name, each in series.items()}
    assert read_figures(series, using) == expected
    closed = {"day": Series(series["day"].periods[:-1], (0, 1, 7), 28)}
    for _ in range(2):
        assert kept.read(closed, using) == {"day": expected["day"][:-1]}


def test_read_figures__counts_users_without_a_last_seen_row() -> None:
    """Raw SQL creates such users."""
    with at(NOW):
        users = [join("old", START - DAY), join("new", START + DAY)]
        facts = [(0, START), (0, START + 9 * DAY), (1, START + 9 * DAY), (1, START + 10 * DAY)]
        for who, t in facts:
            record(users[who], t)
        LastSeen.objects.all().delete()
        check(facts, {0: START - DAY, 1: START + DAY}, "Europe/Paris", KeptFigures())


# Queries


def last_days(count: int) -> dict[str, Series]:
    days = growth.calendar("day", NOW - count * DAY, NOW, PARIS)[:-1]
    return {"day": Series(days, ages=(1, 7))}


def queries_of(kept: KeptFigures, series: dict[str, Series]) -> int:
    with CaptureQueriesContext(ours()) as ours_, CaptureQueriesContext(connections["default"]) as d:
        assert kept.read(series, router.db_for_read(Souvenir), most_rows=8)
    both = [*ours_, *(d if ours() is not connections["default"] else [])]
    return sum(query["sql"].lstrip("(").startswith("SELECT") for query in both)


def test_kept_figures__take_one_query_until_the_history_changes() -> None:
    users = [join(f"user{n}", START + n * DAY) for n in range(3)]
    for day in range(40):
        record(users[day % 3], START + day * DAY)
    roll_up(NOW)
    kept, taken = KeptFigures(), []
    with at(NOW):
        for days in 20, 40:
            taken.append(queries_of(kept, last_days(days)))
            assert queries_of(kept, last_days(days)) == 1
        record(users[0], NOW - 3 * DAY)
        assert queries_of(kept, last_days(20)) > 1
        assert queries_of(kept, last_days(20)) == 1
        record(users[0], NOW - HOUR)  # today
        assert queries_of(kept, last_days(20)) == 1
    assert taken[1] <= taken[0] <= 9


def test_kept_figures__of_periods_not_rolled_up_are_absent_and_not_kept() -> None:
    user = join("user", START)
    record(user, START, *(NOW - n * DAY for n in range(1, 5)))
    DirtyBucket.objects.all().delete()
    kept, using = KeptFigures(), router.db_for_read(Souvenir)
    with at(NOW):
        assert kept.read(last_days(9), using, most_rows=8) == {}
        assert kept.read(last_days(9), using)["day"][-1].active == 1
        roll_up(NOW)
        assert kept.read(last_days(9), using, most_rows=8)["day"][-1].active == 1


@pytest.mark.skipif(not has_date_joined, reason="users have no date_joined")
def test_joined_before__is_right_if_threads_use_it_at_the_same_time(monkeypatch: Any) -> None:
    record(early := join("early", START - DAY), START)
    record(join("late", START + DAY), START + 2 * DAY)
    ids, using = bitmap(LastSeen.objects.values_list("pk", flat=True)), router.db_for_read(Souvenir)
    kept, look_up = joined.JoinedBefore(), joined._joined

    def founders(t: float) -> set[Any]:
        found = kept.among(ids, t, 0, using, nullcontext)
        return set(LastSeen.objects.filter(pk__in=found).values_list("user_id", flat=True))

    def interrupted(*args: Any) -> Any:
        found = look_up(*args)
        monkeypatch.undo()
        assert founders(START) == {early.pk}  # in another thread
        return found

    monkeypatch.setattr(joined, "_joined", interrupted)
    assert len(founders(START + 9 * DAY)) == 2
    assert founders(START) == {early.pk}


@pytest.mark.skipif(not has_date_joined, reason="it is not known when users joined")
@pytest.mark.parametrize("most", [0, joined.MAX_ORDINALS])  # of the users that are looked up
def test_joined_before__finds_each_of_many_users(most: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(joined, "MAX_ORDINALS", most)
    chance = random.Random(1)
    joined_at = {n: START + chance.choice([-DAY, DAY]) for n in range(70)}
    users = {n: join(f"user{n}", t) for n, t in joined_at.items()}
    for user in users.values():
        record(user, START + 2 * DAY)
    using = router.db_for_read(Souvenir)
    ordinals = dict(LastSeen.objects.values_list("user_id", "pk"))
    found = joined.JoinedBefore().among(bitmap(ordinals.values()), START, 0, using, nullcontext)
    early = {ordinals[users[n].pk] for n, t in joined_at.items() if t < START}
    assert set(found or ()) == early
    assert 0 < len(early) < 70


def test_kept_figures__look_up_only_newcomers_whose_join_date_is_not_known_yet(
    monkeypatch: Any,
) -> None:
    users = [join(f"user{n}", START - DAY) for n in range(4)]
    record(users[0], START)
    record(users[1], NOW - 3 * DAY)
    roll_up(NOW)
    looked_up: list[Any] = []
    among = figures.JoinedBefore.among

    def noting(self: Any, *args: Any) -> Any:
        found = among(self, *args)
        looked_up.append(set(self._kept[1]))
        return found

    monkeypatch.setattr(figures.JoinedBefore, "among", noting)
    kept, using = KeptFigures(), router.db_for_read(Souvenir)
    new = []
    for t in NOW, NOW + DAY:
        with at(t):
            record(users[2], NOW + HOUR)
            roll_up(t)
            days = growth.calendar("day", NOW - 9 * DAY, t, PARIS)[:-1]
            found = kept.read({"day": Series(days)}, using)["day"]
            new.append([each.growth and each.growth.new for each in found])
    if has_date_joined:
        assert sum(n for of_run in new for n in of_run if n) == 0
