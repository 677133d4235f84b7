from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from souvenirs import timestamps
from souvenirs.history import counting, maintenance, plans, pruning
from souvenirs.models import DirtyBucket, Souvenir
from souvenirs.periods import Interval
from tests.people import User, ours, with_databases

pytestmark = with_databases

HOUR, DAY = 3_600, 86_400
START = int(datetime(2024, 3, 30, tzinfo=timezone.utc).timestamp())  # clocks change the next day


def make_users(count: int) -> list[Any]:
    return [User.objects.create(username=f"user{i}") for i in range(count)]


def record(user: Any, *times: float) -> None:
    Souvenir.objects.bulk_create(
        Souvenir(user_id=user.pk, when=timestamps.to_datetime(t)) for t in times
    )


times = st.integers(START, START + 4 * DAY) | st.sampled_from(
    [START + hours * HOUR for hours in range(96)]
)
ranges_of_times = st.lists(st.builds(Interval, times, times), max_size=12)


@given(
    history=st.lists(st.tuples(st.integers(0, 4), times), max_size=30),
    ranges=ranges_of_times,
)
def test_count_users_of_ranges__equals_brute_force(
    history: list[tuple[int, int]], ranges: list[Interval]
) -> None:
    users = list(User.objects.order_by("username")) or make_users(5)
    Souvenir.objects.all().delete()
    for who, t in history:
        record(users[who], t)
    rows = [(who, timestamps.to_datetime(t)) for who, t in history]
    expected = [
        len(
            {
                who
                for who, when in rows
                if timestamps.to_datetime(a) <= when < timestamps.to_datetime(b)
            }
        )
        for a, b in ranges
    ]
    assert counting.count_users_of_ranges(ranges) == expected
    named = {f"period {i}": interval for i, interval in enumerate(ranges)}
    using = Souvenir.objects.db
    counted = counting.count_users_of_periods(named, using, most_rows=1_000)
    assert counted == dict(zip(named, expected))


def count_days(days: int) -> tuple[list[int], list[str]]:
    """The counts of this many days, and the queries that they took."""
    ranges = [Interval(START + i * DAY, START + (i + 1) * DAY) for i in range(days)]
    with CaptureQueriesContext(ours()) as captured:
        counts = counting.count_users_of_ranges(ranges)
    queries = [query["sql"] for query in captured if "SELECT" in query["sql"][:9]]
    return [i for i, count in enumerate(counts) if count], queries


@pytest.mark.parametrize("days", [2, 400, 401, 1000])
def test_count_users_of_ranges__takes_one_query_for_rows(days: int) -> None:
    [user] = make_users(1)
    record(user, START, START + DAY + 5, START + (days - 1) * DAY)
    DirtyBucket.objects.all().delete()  # as if they had been recorded in time
    active, queries = count_days(days)
    assert active == sorted({0, 1, days - 1})
    assert len(queries) == 3  # marks, watermark


@pytest.mark.parametrize("days", [7, 60, 900])
def test_count_users_of_ranges__takes_six_queries_at_most_of_the_history(days: int) -> None:
    [user] = make_users(1)
    record(user, START, START + DAY + 5, START + (days - 1) * DAY)
    maintenance.roll_up()
    active, queries = count_days(days)
    assert active == sorted({0, 1, days - 1})
    assert len(queries) <= 6  # marks, watermark; months, days, buckets; members


def test_count_users_of_ranges__of_very_many_stale_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make_users(2)
    record(first, START, START + 50 * DAY)
    maintenance.roll_up()
    monkeypatch.setattr(plans, "MAX_MARKED_INTERVALS", 10)
    record(second, *range(START + HOUR, START + 40 * DAY, HOUR))
    ranges = [Interval(START + i * DAY, START + (i + 10) * DAY) for i in range(45)]
    expected = [(i == 0 or i > 40) + (i < 40) for i in range(45)]
    assert counting.count_users_of_ranges(ranges) == expected
    _, queries = count_days(45)
    assert len(queries) <= 8


def test_count_users_of_ranges__of_no_ranges_takes_no_query() -> None:
    assert count_days(0) == ([], [])


def test_count_users_of_ranges__reads_ranges_from_the_index() -> None:
    users = make_users(2)
    for user in users:
        record(user, *range(START, START + 2_000 * HOUR, HOUR))
    DirtyBucket.objects.all().delete()
    ranges = [Interval(START + i * DAY, START + (i + 1) * DAY) for i in range(3)]
    with ours().cursor() as cursor:
        if ours().vendor == "postgresql":
            cursor.execute("ANALYZE souvenirs_souvenir")
    with CaptureQueriesContext(ours()) as captured:
        assert counting.count_users_of_ranges(ranges) == [2, 2, 2]
    [query] = [query for query in captured if "souvenirs_souvenir" in query["sql"]]
    is_loop = ours().vendor == "postgresql"  # one plan for all ranges
    with ours().cursor() as cursor:
        explain = "EXPLAIN QUERY PLAN " if ours().vendor == "sqlite" else "EXPLAIN "
        cursor.execute(explain + query["sql"])
        plan = str(cursor.fetchall())
    assert plan.count("souvenirs_when_user") >= (1 if is_loop else len(ranges))


def test_first_recorded__is_the_oldest_row() -> None:
    assert counting.first_recorded() is None
    [user] = make_users(1)
    record(user, START + 5, START, START + DAY)
    assert counting.first_recorded() == START


def test_first_recorded__of_pruned_history_is_to_the_quarter() -> None:
    [user] = make_users(1)
    record(user, START + 5, START + DAY)
    maintenance.roll_up()
    assert counting.first_recorded() == START + 5
    pruning.prune(older_than=DAY)
    assert counting.first_recorded() == START


def test_count_users_of_periods__leaves_out_periods_with_many_rows() -> None:
    [user] = make_users(1)
    record(user, START - HOUR, START + DAY)
    DirtyBucket.objects.all().delete()
    maintenance.roll_up(buckets=4)  # the first hour of the day
    hours = {n: Interval(START - HOUR, START + int(n) * HOUR) for n in ("0", "1", "2", "3")}
    counts = counting.count_users_of_periods(hours, Souvenir.objects.db, most_rows=8)
    assert counts == {"0": 1, "1": 1, "2": 1}
