from __future__ import annotations

from typing import Any

import pytest
from django.db import router
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from souvenirs.control import souvenez
from souvenirs.history import counting, pruning, rollups
from souvenirs.models import LastSeen, Souvenir
from souvenirs.periods import BUCKET, bucket_containing
from souvenirs_metrics import history
from souvenirs_metrics.conf import conf
from tests.history import DAY, HOUR, MINUTE, at, clear, people, record, roll_up, to_when, unix
from tests.people import ours, with_databases

pytestmark = with_databases

T = unix(2024, 5, 14)
WINDOWS = {"1h": HOUR, "90m": 90 * MINUTE, "1d": DAY}


def values(instants: range, **labels: str) -> dict[tuple[str, int], float]:
    """What is written, by window and instant, as the reference implementation reads it."""
    text = "".join(history.openmetrics(instants, labels))
    families = list(text_string_to_metric_families(text))
    assert [(family.name, family.type) for family in families] == [
        ("souvenirs_active_users", "gauge")
    ]
    for sample in families[0].samples:
        assert sample.labels == {**labels, "window": sample.labels["window"]}
    return {(s.labels["window"], int(float(s.timestamp))): s.value for s in families[0].samples}


def brute(
    facts: list[tuple[Any, float]], instants: range, limit: int, first: float
) -> dict[tuple[str, int], float]:
    """The users who were active in each window that does not begin before `first`, at the bound of
    slots at or before each instant. With limit 0 each instant is such a bound."""
    expected = {}
    for name, seconds in conf.windows.items():
        for instant in instants:
            end = instant // limit * limit if limit else instant
            start = (end - seconds) // limit * limit if limit else end - seconds
            if first <= start:
                expected[name, instant] = len({who for who, t in facts if start <= t < end})
    return expected


moments = st.integers(T, T + 2 * DAY) | st.integers(0, 2 * 24 * 4).map(lambda n: T + n * BUCKET)
activity = st.lists(st.tuples(st.integers(0, 4), moments), max_size=20)


@given(
    before=activity,
    after=activity,
    rolled_up=st.none() | moments,
    pruned=st.none() | st.integers(HOUR, DAY),
    deleted=st.sets(st.integers(0, 4), max_size=2),
    limit=st.sampled_from([3600, 900, 300, 0, 7200]),
    step=st.sampled_from([300, 900, 3600]),
    start=moments,
    zone=st.sampled_from(["UTC", "Europe/Paris", "Asia/Kolkata", "Australia/Lord_Howe"]),
)
def test_openmetrics__is_who_was_active(
    before: list[tuple[int, int]],
    after: list[tuple[int, int]],
    rolled_up: int | None,
    pruned: int | None,
    deleted: set[int],
    limit: int,
    step: int,
    start: int,
    zone: str,
) -> None:
    with override_settings(
        TIME_ZONE=zone,
        SOUVENIRS_RATELIMIT_SECONDS=limit,
        SOUVENIRS_METRICS_WINDOWS=tuple(WINDOWS),
    ):
        clear()
        users = people(5)
        try:
            for who, t in before:
                souvenez(users[who], when=to_when(t))
            if rolled_up is not None:
                roll_up(rolled_up)
                if pruned is not None:
                    with at(rolled_up):
                        pruning.prune(older_than=pruned)
            for who, t in after:
                souvenez(users[who], when=to_when(t))
            for who in deleted:
                users[who].delete()
            first = counting.first_recorded()
            without_rows = rollups.watermark(router.db_for_read(Souvenir)).pruned
            facts = [
                # To the quarter: they count once it is over, as long as a window has some of it
                (
                    who,
                    bucket_containing(t) + BUCKET - 1 if who in deleted or t < without_rows else t,
                )
                for who, t in before + after
            ]
            instants = range(-(-start // step) * step, T + 60 * HOUR, step)
            expected = {} if first is None else brute(facts, instants, limit, first)
            assert values(instants) == expected
        finally:
            for user in users:
                if user.pk is not None:
                    user.delete()


def test_openmetrics__knows_a_user_without_last_seen_again() -> None:
    ada, bob = people(2)
    for user in (ada, bob):
        record(user, T + 5, T + HOUR + 5, T + 2 * HOUR + 5)
    LastSeen.objects.filter(user_id=ada.pk).delete()
    found = values(range(T + 2 * HOUR, T + 27 * HOUR, HOUR))
    assert found["1h", T + 2 * HOUR] == 2
    assert found["1d", T + 26 * HOUR] == 2


@override_settings(SOUVENIRS_RATELIMIT_SECONDS=0, SOUVENIRS_METRICS_WINDOWS=["1h"])
@pytest.mark.parametrize("start", [T, T + 125 * MINUTE])  # of which a window begins in the quarter
@pytest.mark.parametrize("state", ["rows", "rolled up", "pruned"])
def test_openmetrics__knows_deleted_users_and_pruned_rows_to_the_quarter(
    start: int, state: str
) -> None:
    ada, bob = people(2)
    for user in (ada, bob):
        record(user, T, T + 62 * MINUTE)
    if state != "rows":
        roll_up(T + DAY)
    if state == "pruned":
        with at(T + DAY):
            pruning.prune(older_than=HOUR)
    ada.delete()
    to_the_quarter = [T + 15 * MINUTE - 1, T + 75 * MINUTE - 1]
    facts: list[tuple[Any, float]] = [("ada", t) for t in to_the_quarter]
    of_bob = to_the_quarter if state == "pruned" else [T, T + 62 * MINUTE]
    facts += [("bob", t) for t in of_bob]
    instants = range(start, T + 4 * HOUR, 300)
    assert values(instants) == brute(facts, instants, 0, T)


def test_openmetrics__escapes_labels() -> None:
    [user] = people(1)
    record(user, T)
    instants = range(T + HOUR, T + 2 * HOUR, HOUR)
    awkward = 'a "quoted" \\n back\\slash\nand a line, in Zürich'
    assert values(instants, job=awkward, instance="a:1") == {("1h", T + HOUR): 1}


def test_openmetrics__writes_series_by_series_in_the_order_of_time() -> None:
    [user] = people(1)
    record(user, T)
    lines = "".join(history.openmetrics(range(T + DAY, T + DAY + 900, 300), {"job": "a"}))
    assert lines == (
        "# HELP souvenirs_active_users Users seen in the rolling window that ends now.\n"
        "# TYPE souvenirs_active_users gauge\n"
        f'souvenirs_active_users{{job="a",window="1h"}} 0 {T + DAY}\n'
        f'souvenirs_active_users{{job="a",window="1h"}} 0 {T + DAY + 300}\n'
        f'souvenirs_active_users{{job="a",window="1h"}} 0 {T + DAY + 600}\n'
        f'souvenirs_active_users{{job="a",window="1d"}} 1 {T + DAY}\n'
        f'souvenirs_active_users{{job="a",window="1d"}} 1 {T + DAY + 300}\n'
        f'souvenirs_active_users{{job="a",window="1d"}} 1 {T + DAY + 600}\n'
        "# EOF\n"
    )


def test_openmetrics__without_souvenirs_has_no_samples() -> None:
    assert values(range(T, T + DAY, 300)) == {}


def test_openmetrics__reads_each_day_in_nine_queries_at_most() -> None:
    users = people(3)
    days = 10
    for user in users:
        record(user, *range(T, T + days * DAY, HOUR))
    roll_up(T + days * DAY)
    instants = range(T + 8 * DAY, T + days * DAY, 300)
    with CaptureQueriesContext(ours()) as captured:
        assert values(instants)["7d", T + 9 * DAY] == 3
    selects = [query["sql"] for query in captured if query["sql"].startswith("SELECT")]
    assert len(selects) <= 9 * days
    assert not any("souvenirs_lastseen" in sql for sql in selects)  # all of it is rolled up


@pytest.mark.own_site
@pytest.mark.parametrize(
    ("step", "limit", "size"),
    [
        (300, 3600, 3600),
        (300, 900, 900),
        (300, 1000, 1000),
        (300, 60, 300),
        (300, 300, 300),
        (300, 70, 280),
        (300, 0, 300),
        (86_400, 0, 1800),  # "90m" is no multiple of an hour
        (86_400, 3600, 3600),
        (86_400, 900, 1800),
        (86_400, 0.5, 1800),
    ],
)
def test_block_size__is_made_of_slots(step: int, limit: float, size: float) -> None:
    assert history.block_size(step, WINDOWS.values(), limit) == size


@pytest.mark.own_site
@given(
    blocks=st.lists(st.sets(st.integers(0, 6)), max_size=40),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
)
def test_sweep__counts_the_users_of_the_last_blocks(
    blocks: list[set[int]], lengths: list[int]
) -> None:
    expected = [
        [len(set().union(*blocks[max(0, n - length) : n])) for length in lengths]
        for n in range(1, len(blocks) + 1)
    ]
    given = (history.Block(list(users), []) for users in blocks)
    assert list(history.sweep(given, lengths)) == expected
