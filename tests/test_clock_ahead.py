"""A machine's clock was hours ahead and has been corrected: the times that it recorded must not
stay."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from django.core.management import call_command

from souvenirs.control import last_seen, souvenez
from souvenirs.history import maintenance, repair
from souvenirs.lastseen import future
from souvenirs.lastseen.base import LastSeenStore
from souvenirs.logs import LogLimit
from souvenirs.models import LastSeen, Souvenir
from tests import servers, stores
from tests.history import DAY, HOUR, MINUTE, at, people, to_when, unix
from tests.people import ours, with_databases

store = stores.store

pytestmark = with_databases

NOW = unix(2024, 5, 15, 10)
AHEAD = NOW + 5 * HOUR
WARNING = "Last-seen times in the future"


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(future, "_log_limit", LogLimit())


@pytest.fixture
def users(store: LastSeenStore) -> list[Any]:
    """Three users: two were here a few minutes ago, when the clock was right, and all of them when
    it was ahead."""
    users = people(3)
    for minutes, user in enumerate(users[:2], 20):
        with at(NOW - minutes * MINUTE):
            souvenez(user)
    for user in users:
        for minute in range(2):  # the second one creates no souvenir
            with at(AHEAD + minute * MINUTE):
                souvenez(user)
    for user in users:  # a thread writes them to Redis
        servers.wait_until(lambda key=user.pk: store.get(key) == AHEAD + MINUTE)  # type: ignore[misc]
    return users


def scrape(t: float) -> stores.Samples:
    with at(t):
        return stores.collect()


def repair_by_command() -> None:
    call_command("rollup_souvenirs", "--repair", verbosity=0)


def roll_up_by_command() -> None:
    call_command("rollup_souvenirs", verbosity=0)


CURES = [stores.collect, repair.repair, maintenance.roll_up, repair_by_command, roll_up_by_command]


@pytest.mark.parametrize("cure", CURES)
def test_future_times__are_set_back_to_the_newest_past_souvenir(
    users: list[Any], cure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    if cure is stores.collect:  # the collection reads first, and corrects afterwards
        assert scrape(NOW)["active_users", "1h"] == 0
    with at(NOW):
        cure()
        assert [last_seen(user) for user in users] == [
            to_when(NOW - 20 * MINUTE),
            to_when(NOW - 21 * MINUTE),
            None,
        ]
    assert WARNING in caplog.text
    samples = scrape(NOW + MINUTE)
    assert samples["active_users", "1h"] == 2
    assert samples["calendar_active_users", "day"] == 2
    assert samples["last_seen_timestamp_seconds",] == NOW - 20 * MINUTE
    caplog.clear()
    ghosts = scrape(AHEAD + 10 * MINUTE)
    assert ghosts["active_users", "1h"] == 0
    assert WARNING not in caplog.text
    assert Souvenir.objects.count() == 5  # the recorded souvenirs stay


def test_future_times__of_a_returning_user_are_corrected_at_once(users: list[Any]) -> None:
    with at(NOW):
        souvenez(users[2])
        maintenance.roll_up()
        assert last_seen(users[2]) == to_when(NOW)


def test_future_times__within_clock_differences_are_left_alone(
    store: LastSeenStore, caplog: pytest.LogCaptureFixture
) -> None:
    (user,) = people(1)
    with at(NOW + 100):
        souvenez(user)
    with at(NOW):
        maintenance.roll_up()
        repair.repair()
        assert last_seen(user) == to_when(NOW + 100)
    assert WARNING not in caplog.text


@pytest.mark.parametrize("limit", [1, 2, None])
def test_set_back__works_in_batches(
    users: list[Any], limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(future, "BATCH_SIZE", 2)
    with at(NOW):
        for _ in range(6):  # three in the table, and three that may share a shard
            maintenance.set_back_last_seen(limit)
        assert last_seen(users[0]) == to_when(NOW - 20 * MINUTE)
        assert last_seen(users[2]) is None
    assert LastSeen.objects.count() == 3


def test_warning__is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "souvenirs"):
        for number in range(3):
            future.warn(number)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("Last-seen times in the future: 1.")


def test_set_back__takes_one_query_if_all_times_are_right(
    store: LastSeenStore, django_assert_num_queries: Any
) -> None:
    (user,) = people(1)
    with at(NOW - DAY):
        souvenez(user)
    with at(NOW):
        store.flush()
        with django_assert_num_queries(1, connection=ours()):
            maintenance.set_back_last_seen(5_000)
