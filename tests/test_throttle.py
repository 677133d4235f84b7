from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.core.cache import caches
from django.core.checks import run_checks
from django.core.management import call_command
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from souvenirs.control import souvenez
from souvenirs.models import Souvenir
from souvenirs.periods import Interval
from souvenirs.recording import memory
from souvenirs.recording.memory import Memory
from souvenirs.recording.throttle import CLAIM_SECONDS, throttle
from tests import servers
from tests.people import User, ours, with_databases

NOON = datetime(2024, 5, 14, 12, tzinfo=timezone.utc)
SLOT = Interval(0.0, 3600.0)


@pytest.fixture
def shared_cache(redis_url: str) -> Iterator[Any]:
    """The site's cache is a real Redis, so that processes share their claims."""
    caches_setting = {
        "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": redis_url}
    }
    with override_settings(CACHES=caches_setting):
        caches["default"].clear()
        yield caches["default"]
        disconnect()


def disconnect() -> None:
    """Close the connections of this thread's cache if it is Redis; Django leaves them open until
    exit."""
    client = getattr(caches["default"], "_cache", None)
    for pool in getattr(client, "_pools", {}).values():
        pool.disconnect()


# Memory


def test_memory__is_bounded() -> None:
    memory: Memory[int, int] = Memory(100)
    for key in range(10_000):
        memory[key] = key
        assert len(memory) <= 200


def test_memory__keeps_used_entries() -> None:
    memory: Memory[str, int] = Memory(10)
    memory["used"] = 1
    for key in range(1000):
        memory[str(key)] = key
        if key % 5 == 0:
            assert memory.get("used") == 1
    assert memory.get("3") is None


@given(st.lists(st.tuples(st.integers(0, 30), st.integers()), max_size=200))
def test_memory__returns_only_the_last_value(items: list[tuple[int, int]]) -> None:
    memory: Memory[int, int] = Memory(5)
    truth: dict[int, int] = {}
    for key, value in items:
        assert memory.get(key) in (None, truth.get(key))
        memory[key] = truth[key] = value
        assert memory.get(key) == value


def test_memory__of_a_site_without_tenants_costs_one_plain_lookup() -> None:
    memory: Memory[int, int] = Memory(10)
    memory[1] = 1
    assert type(memory.young) is dict


def test_memory__separates_scopes_in_all_generations() -> None:
    with override_settings(SOUVENIRS_SCOPE="tests.test_throttle.tenant"):
        memory: Memory[int, str] = Memory(3)
        for key in range(2):
            for name in ("a", "b"):
                SCOPE.append(name)
                memory[key] = f"{name}{key}"
        for key in range(2):
            for name in ("a", "b", "c"):
                SCOPE.append(name)
                assert memory.get(key) == (None if name == "c" else f"{name}{key}")


SCOPE: list[str] = []


def tenant() -> str:
    return SCOPE[-1]


# Claims


@pytest.mark.parametrize("is_shared", [True, False])
def test_claim__is_granted_to_one_of_many_threads(request: Any, is_shared: bool) -> None:
    if is_shared:
        request.getfixturevalue("shared_cache")
    barrier = threading.Barrier(8)
    granted = []

    def compete() -> None:
        barrier.wait()
        granted.append(throttle.claim(1, SLOT, 3600.0).granted)
        disconnect()

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(granted) == [False] * 7 + [True]


def test_claim__distinguishes_a_claimed_slot_from_a_written_one(shared_cache: Any) -> None:
    with time_machine.travel(NOON, tick=False):
        claim = throttle.claim(1, SLOT, 3600.0)
        assert throttle.claim(1, SLOT, 3600.0).until == NOON.timestamp() + CLAIM_SECONDS
        throttle.confirm(claim, SLOT)
        assert throttle.claim(1, SLOT, 3600.0).until == SLOT.end


def test_claim__lasts_for_the_slot_not_for_the_caches_default_timeout(shared_cache: Any) -> None:
    now = NOON.timestamp()
    with time_machine.travel(NOON, tick=False):
        slot = Interval(now, now + 3600)
        claim = throttle.claim(1, slot, 3600.0)
        key = shared_cache.make_key(claim.key)
        client = shared_cache._cache.get_client(key)
        assert 0 < client.ttl(key) <= CLAIM_SECONDS
        throttle.confirm(claim, slot)
        assert 3000 < client.ttl(key) <= 3600


def test_release__allows_another_claim(shared_cache: Any) -> None:
    throttle.release(throttle.claim(1, SLOT, 3600.0))
    assert throttle.claim(1, SLOT, 3600.0).granted


def test_claim__cache_keys_are_distinct_and_not_readable(shared_cache: Any) -> None:
    awkward = ["ada@example.org", "ada example", "x" * 300, "é\n", "1"]
    claims = [throttle.claim(user_pk, SLOT, 3600.0) for user_pk in [*awkward, 1]]
    assert all(claim.granted for claim in claims)
    assert not any("example" in claim.key for claim in claims)
    assert all(len(claim.key) < 100 for claim in claims)


DATABASE_CACHE = "django.core.cache.backends.db.DatabaseCache"


@with_databases
def test_database_cache__is_not_used(django_assert_num_queries: Any) -> None:
    entry = {"BACKEND": DATABASE_CACHE, "LOCATION": "nowhere"}
    with override_settings(CACHES={"default": entry}), django_assert_num_queries(0):
        granted = [throttle.claim(1, SLOT, 3600.0).granted for _ in range(2)]
        (message,) = [each for each in run_checks() if "SOUVENIRS_CACHE_NAME" in each.msg]
    assert granted == [True, False]
    assert message.id == "souvenirs.W005"


@pytest.fixture
def database_cache(transactional_db: None) -> Iterator[None]:
    """The site's cache is a table of its database."""
    with override_settings(CACHES={"default": {"BACKEND": DATABASE_CACHE, "LOCATION": "cached"}}):
        call_command("createcachetable")
        yield
        with connections[DEFAULT_DB_ALIAS].cursor() as cursor:
            cursor.execute("DROP TABLE cached")


@with_databases
# SQLite allows one writer
@pytest.mark.where("sqlite" not in settings.DATABASES["default"]["ENGINE"])
@pytest.mark.usefixtures("database_cache")
@pytest.mark.parametrize("when", [None, NOON])
def test_visit__does_not_wait_for_another_transaction(when: datetime | None) -> None:
    user = User.objects.create(username="ada")
    is_recorded, is_over = threading.Event(), threading.Event()

    def record() -> None:
        try:
            souvenez(user, when)
        finally:
            connections.close_all()

    def record_and_linger() -> None:
        with transaction.atomic(), transaction.atomic(using=ours().alias):
            souvenez(user, when)
            is_recorded.set()
            is_over.wait(30)
        connections.close_all()

    lingering, visit = threading.Thread(target=record_and_linger), threading.Thread(target=record)
    lingering.start()
    assert is_recorded.wait(30)
    throttle.clear()  # the other visit is in another process
    visit.start()
    visit.join(10)
    was_waiting = visit.is_alive()
    is_over.set()
    lingering.join()
    visit.join()
    assert not was_waiting
    assert Souvenir.objects.count() == 2


def test_shared_cache__two_sites_do_not_limit_each_others_users(shared_cache: Any) -> None:
    with time_machine.travel(NOON, tick=False):
        for secret, granted in [("staging", True), ("production", True), ("staging", False)]:
            with override_settings(SECRET_KEY=secret):
                assert throttle.claim(1, SLOT, 3600.0).granted is granted


@with_databases
def test_shared_cache__processes_share_the_limit(shared_cache: Any) -> None:
    user = User.objects.create(username="ada")
    with time_machine.travel(NOON, tick=False) as traveller:
        assert souvenez(user) == "added"
        throttle.clear()  # as in another process, or in this one after a restart
        assert souvenez(user) == "rate-limited"
        traveller.shift(timedelta(minutes=59))
        throttle.clear()
        assert souvenez(user) == "rate-limited"


@with_databases
def test_shared_cache__is_read_once_for_a_user_and_slot(
    shared_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = User.objects.create(username="ada")
    with time_machine.travel(NOON, tick=False) as traveller:
        souvenez(user)
        throttle.clear()
        souvenez(user)
        monkeypatch.setattr(throttle, "_cache", lambda: pytest.fail("read the cache"))
        for _ in range(59):
            traveller.shift(timedelta(minutes=1))
            assert souvenez(user) == "rate-limited"


@with_databases
def test_rollback__blocks_nobody_for_over_a_minute(shared_cache: Any) -> None:
    user = User.objects.create(username="ada")
    with contextlib.suppress(ZeroDivisionError), transaction.atomic(using=ours().alias):
        souvenez(user)
        raise ZeroDivisionError
    with transaction.atomic(using=ours().alias):
        assert souvenez(user) == "rate-limited"
    (key,) = shared_cache._cache.get_client().keys()
    assert shared_cache._cache.get_client().ttl(key) <= CLAIM_SECONDS
    shared_cache._cache.get_client().delete(key)  # what Redis does after that time
    later = datetime.now(timezone.utc) + timedelta(seconds=61)
    with time_machine.travel(later, tick=False), transaction.atomic(using=ours().alias):
        assert souvenez(user) == "added"


@with_databases
def test_cache__while_down_is_replaced_by_process_memory() -> None:
    user = User.objects.create(username="ada")
    port = servers.free_port()
    cache = {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": f"redis://127.0.0.1:{port}/0",
    }
    with override_settings(CACHES={"default": cache}), time_machine.travel(NOON, tick=False) as t:
        assert souvenez(user) == "added"
        for _ in range(59):
            t.shift(timedelta(minutes=1))
            assert souvenez(user) == "rate-limited"
        t.shift(timedelta(minutes=1))
        assert souvenez(user) == "added"
    assert Souvenir.objects.count() == 2


@with_databases
def test_local_memory_cache__is_left_to_the_site() -> None:
    user = User.objects.create(username="ada")
    souvenez(user)
    assert not caches["default"]._cache  # type: ignore[attr-defined]


# Processes


def test_fork__a_child_does_not_flush_its_parents_hits() -> None:
    memory.hits += 7
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        memory.hits += 2
        os.write(write, str(memory.drain_hits()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"2"
    assert memory.drain_hits() == 7


def test_hits__of_many_threads_are_all_flushed() -> None:
    told = []

    def hit() -> None:
        for _ in range(1000):
            memory.hits += 1
            told.append(memory.drain_hits())

    threads = [threading.Thread(target=hit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(told) + memory.drain_hits() == 4000
