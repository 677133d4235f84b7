"""Old souvenirs are deleted, and the numbers of the past stay."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections

from souvenirs import timestamps
from souvenirs.control import active_users_between, count_active_users, souvenez
from souvenirs.history import counting, maintenance, progress, pruning
from souvenirs.models import DirtyBucket, Souvenir
from souvenirs.periods import BUCKET, Interval
from tests.history import (
    DAY,
    HOUR,
    assert_counts,
    at,
    clear,
    people,
    record,
    roll_up,
    to_when,
    unix,
)
from tests.people import ours, with_databases

pytestmark = with_databases

T = unix(2024, 5, 14, 22)  # Paris: midnight of the 15th
NOW = T + 3 * DAY
FACTS = [(who, T + who * 100 + n * 5 * HOUR) for who in range(4) for n in range(12)]


@pytest.fixture
def users() -> list[Any]:
    users = people(4)
    for who, user in enumerate(users):
        record(user, *(t for other, t in FACTS if other == who))
    return users


def times() -> list[float]:
    rows = Souvenir.objects.order_by("when").values_list("when", flat=True)
    return [timestamps.to_seconds(when) for when in rows]


def test_prune__keeps_younger_rows(users: list[Any]) -> None:
    roll_up(NOW)
    with at(NOW):
        deleted = pruning.prune(DAY)
        until = (NOW - DAY) // BUCKET * BUCKET
        assert times() == sorted(t for _, t in FACTS if t >= until)
        assert deleted == sum(t < until for _, t in FACTS) > 0
        assert_counts(FACTS)


def test_prune__deletes_only_rolled_up_rows(users: list[Any]) -> None:
    with at(NOW):
        assert pruning.prune(0) == 0
    roll_up(T + DAY)
    with at(NOW):
        assert pruning.prune(0) > 0
        assert times() == sorted(t for _, t in FACTS if t >= progress.due_until(T + DAY))
        assert_counts(FACTS)


def test_prune__works_in_batches(users: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "BATCH_SIZE", 7)
    roll_up(NOW)
    batches: list[int] = []

    def look(deleted: int) -> None:
        batches.append(deleted)
        assert not ours().in_atomic_block
        assert_counts(FACTS)

    with at(NOW):
        assert pruning.prune(0, on_batch=look) == len(FACTS) == sum(batches)
    assert set(batches[:-1]) == {7}


def test_prune__continues_after_an_interruption(
    users: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "BATCH_SIZE", 7)
    roll_up(NOW)

    def interrupt(deleted: int) -> None:
        raise KeyboardInterrupt

    with at(NOW):
        with pytest.raises(KeyboardInterrupt):
            pruning.prune(0, on_batch=interrupt)
        assert Souvenir.objects.count() == len(FACTS) - 7
        assert_counts(FACTS)
        assert pruning.prune(0) == len(FACTS) - 7
        assert_counts(FACTS)
        assert pruning.prune(0) == 0


def test_prune__floors_bounds_in_pruned_history_to_the_quarter(users: list[Any]) -> None:
    roll_up(NOW)
    t = FACTS[0][1]  # the only ones in their quarter: users 0 to 3, 100 seconds apart
    bounds = [Interval(t + 150, t + HOUR), Interval(t - HOUR, t + 150), Interval(t + 150, t + 250)]
    assert counting.count_users_of_ranges(bounds) == [2, 2, 1]
    with at(NOW):
        pruning.prune(DAY)
        assert counting.count_users_of_ranges(bounds) == [4, 0, 0]
        assert set(active_users_between(to_when(t + 150), to_when(t + HOUR))) == set(users)
        young = Interval(NOW - DAY + 1, NOW - 1)
        assert count_active_users(to_when(young.start), to_when(young.end)) == len(
            {who for who, t in FACTS if young.start <= t < young.end}
        )


def test_prune__adds_souvenirs_that_come_afterwards(users: list[Any]) -> None:
    roll_up(NOW)
    with at(NOW):
        pruning.prune(0)
        [late] = [type(users[0]).objects.create(username="late")]
        record(late, FACTS[0][1] + 7, T - DAY)
        facts = [*FACTS, ("late", FACTS[0][1] + 7), ("late", T - DAY)]
        assert_counts(facts)
        maintenance.roll_up()
        assert_counts(facts)
        assert pruning.prune(0) == 2
        assert_counts(facts)


def test_prune__does_not_lose_rows_missing_from_rollups(users: list[Any]) -> None:
    roll_up(NOW)
    record(users[0], T + 9 * HOUR)
    facts = [*FACTS, (0, T + 9 * HOUR)]
    DirtyBucket.objects.all().delete()  # as if rows had been written without a mark
    with at(NOW):
        pruning.prune(0)
        assert_counts(facts)


def run_concurrently(*work: Callable[[], object]) -> None:
    """Run all of it at the same time in threads; raise the first error."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(work))

    def do(each: Callable[[], object]) -> None:
        try:
            barrier.wait()
            each()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=do, args=[each]) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.slow
@pytest.mark.where(ours().vendor != "sqlite")  # SQLite in memory does not wait for locks
def test_prune__several_at_once_while_users_are_recorded(
    users: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "BATCH_SIZE", 16)
    clear()
    facts = [(who, T + who * 100 + n * HOUR) for who in range(4) for n in range(40)]
    for who, user in enumerate(users):
        record(user, *(t for other, t in facts if other == who))
    roll_up(NOW)
    recorded: list[tuple[int, float]] = []

    def write() -> None:
        for n in range(40):
            t = T + 50 + n * HOUR
            souvenez(users[n % 4], when=to_when(t), ratelimit=False)
            recorded.append((n % 4, t))

    with at(NOW):
        run_concurrently(lambda: pruning.prune(0), write, lambda: pruning.prune(0))
        assert_counts(facts + recorded)
        maintenance.roll_up()
        pruning.prune(0)
        assert_counts(facts + recorded)
    assert len(recorded) == 40
    assert not Souvenir.objects.exists()
