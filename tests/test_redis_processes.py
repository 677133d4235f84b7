"""Several processes of a site with one Redis: whatever the order of their writes, the result is
right."""

from __future__ import annotations

import math
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.contrib.auth.models import User
from django.test import override_settings

from souvenirs import periods
from souvenirs.conf import conf
from souvenirs.control import souvenez
from souvenirs.lastseen import get_store, use_store, writer
from souvenirs.lastseen.base import LastSeenCounts
from souvenirs.lastseen.members import member_of
from souvenirs.lastseen.redis import RedisStore
from souvenirs.lastseen.table import slot_start
from souvenirs.models import Souvenir
from souvenirs.recording import memory
from souvenirs.recording.memory import MAX_USERS, RecentMemory
from souvenirs.recording.throttle import throttle
from souvenirs_metrics.conf import conf as metrics_conf
from tests import servers, stores
from tests.failing import frozen
from tests.stores import REDIS, Samples, collect, using, windows

pytestmark = [pytest.mark.own_site, pytest.mark.django_db(transaction=True)]

NOON = datetime(2024, 5, 14, 12, tzinfo=timezone.utc)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


class Process:
    """Simulates a process: it has a separate store and memory. Nothing is written automatically."""

    def __init__(self, entry: dict[str, Any]) -> None:
        params = {key: value for key, value in entry.items() if key != "BACKEND"}
        self.store = RedisStore(params)
        self.store.writer._wake_thread = lambda: None  # type: ignore[method-assign]
        self.handled: RecentMemory[Any] = RecentMemory(MAX_USERS)

    @contextmanager
    def running(self) -> Iterator[None]:
        before = get_store(), memory.recent_users
        use_store(self.store)
        memory.recent_users = self.handled
        try:
            yield
        finally:
            use_store(before[0])
            memory.recent_users = before[1]

    def do(self, what: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        with self.running():
            return what(*arguments, **more)

    def do_while_frozen(self, server: Any, what: Callable[..., Any], *arguments: Any) -> None:
        """Do it while the server is frozen; the resulting writes wait."""
        with frozen(server.pid):
            self.do(what, *arguments)
            assert not self.write()

    def write(self) -> bool:
        """Do what its thread does, as if five seconds had passed since the last attempt. Return
        False if Redis is down."""
        for _ in range(2):  # it may have a connection to a server that has stopped
            self.store.breaker.untried()
            if self.store.flush():
                self.store.writer.confirm_pending()
                return not self.store.writer.pending
        return False


@pytest.fixture
def clock() -> Iterator[Any]:
    with time_machine.travel(NOON, tick=False) as traveller:
        yield traveller


@pytest.fixture
def server() -> Iterator[Any]:
    with servers.redis() as (_, process):
        yield process


@pytest.fixture
def site(server: Any) -> Iterator[RedisStore]:
    options = {"socket_timeout": 0.2, "socket_connect_timeout": 0.2}
    url = f"redis://127.0.0.1:{server.args[2]}"
    with using({**REDIS, "LOCATION": url, "OPTIONS": options}) as store:
        yield store


@pytest.fixture
def processes(site: RedisStore) -> list[Process]:
    from django.conf import settings

    return [Process(settings.SOUVENIRS_LAST_SEEN_STORE) for _ in range(2)]


@pytest.fixture
def user() -> Any:
    return User.objects.create(pk=5, username="ana")


def seen_in_redis(site: RedisStore, user_pk: int = 5) -> datetime | None:
    seen = site.shards.get(member_of(user_pk))
    return None if seen is None else datetime.fromtimestamp(seen, timezone.utc)


def test_pending_time__does_not_replace_a_newer_one(
    site: RedisStore, processes: list[Process], user: Any, clock: Any, server: Any
) -> None:
    a, b = processes
    a.do(souvenez, user)
    assert a.write()
    clock.shift(MINUTE)
    a.do_while_frozen(server, souvenez, user)
    clock.shift(5 * MINUTE)
    b.do(souvenez, user)
    assert b.write()
    assert a.write()
    assert seen_in_redis(site) == NOON + 6 * MINUTE


def test_pending_first_souvenir__loses_no_later_time(
    site: RedisStore, processes: list[Process], user: Any, clock: Any, server: Any
) -> None:
    a, b = processes
    a.do_while_frozen(server, souvenez, user)
    clock.shift(30 * MINUTE)
    b.do(souvenez, user)
    assert b.write()
    assert a.write()
    assert seen_in_redis(site) == NOON + 30 * MINUTE


def test_lost_first_souvenir__is_restored_by_the_next_visit(
    site: RedisStore, processes: list[Process], user: Any, clock: Any, server: Any
) -> None:
    a, b = processes
    a.do_while_frozen(server, souvenez, user)
    clock.shift(5 * MINUTE)
    b.do(souvenez, user)
    assert b.write()
    assert seen_in_redis(site) == NOON + 5 * MINUTE


def test_lost_first_souvenir__is_restored_by_scrapes(
    site: RedisStore, processes: list[Process], user: Any, clock: Any, server: Any
) -> None:
    processes[0].do_while_frozen(server, souvenez, user)
    clock.shift(2 * HOUR)
    collect()
    assert windows(collect())["1d"] == 1


def test_deleted_user__is_not_recreated_by_a_pending_time(
    site: RedisStore, processes: list[Process], user: Any, clock: Any, server: Any
) -> None:
    a, b = processes
    a.do_while_frozen(server, souvenez, user)
    b.do(user.delete)
    assert b.write()
    assert a.write()
    assert site.shards.count([0], 2**40).since == {0: 0}


def test_pending_deletion__keeps_a_new_user_with_the_same_key(
    site: RedisStore, processes: list[Process], user: Any, clock: Any, server: Any
) -> None:
    a, b = processes
    a.do(souvenez, user)
    assert a.write()
    a.do_while_frozen(server, user.delete)
    clock.shift(HOUR)
    b.do(souvenez, User.objects.create(pk=5, username="bob"))
    assert b.write()
    assert a.write()
    assert seen_in_redis(site) == NOON + HOUR


def test_time__of_a_wrong_clock_is_corrected_after_a_wipe(
    site: RedisStore, processes: list[Process], user: Any, clock: Any
) -> None:
    a, _ = processes
    for ahead in (timedelta(), 3 * HOUR, -3 * HOUR + 10 * MINUTE):
        clock.shift(ahead)
        a.do(souvenez, user)
    assert a.write()
    site.shards.client.flushall()
    collect()
    clock.shift(10 * MINUTE)
    a.do(souvenez, user)
    assert a.write()
    assert seen_in_redis(site) == NOON + 20 * MINUTE


def test_longer_limit__does_not_delay_the_table(site: RedisStore, user: Any, clock: Any) -> None:
    with override_settings(SOUVENIRS_METRICS_WINDOWS=["3h"]):
        clock.move_to(NOON.replace(hour=1))
        for when in (NOON.replace(hour=1), NOON):
            clock.move_to(when)
            souvenez(user, ratelimit=86_400)
        clock.shift(5 * MINUTE)
        site.flush()
        site.shards.client.flushall()
        for _ in range(2):
            assert windows(collect()) == {"3h": 1}


def test_bulk_create__does_not_wait_and_is_written_later(
    site: RedisStore, user: Any, clock: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr("souvenirs.breaker.PROBE_SECONDS", 0.1)
    people = [user, User.objects.create(username="bob")]
    with frozen(server.pid):
        with site.writer._sending:  # blocks the writer
            Souvenir.objects.bulk_create([Souvenir(user=each, when=NOON) for each in people])
        assert site.writer.pending
    servers.wait_until(lambda: not site.writer.pending)
    servers.wait_until(lambda: seen_in_redis(site) == NOON)


def test_fork__while_a_thread_uses_a_cluster_does_not_hang(cluster_entry: Any) -> None:
    with using(cluster_entry) as store:
        store.on_table_updated({1: 5})
        store.flush()
        with store.shards.client.nodes_manager._lock:
            if (pid := os.fork()) == 0:
                signal.alarm(20)
                os._exit(store.shards.get(b"1") != 5)
        assert os.waitpid(pid, 0)[1] == 0


def test_exit__soon_after_a_failure_still_writes(site: RedisStore) -> None:
    site.breaker.failure(TimeoutError())
    with site.writer._starting:
        site.writer._thread = threading.current_thread()
    site.on_table_updated({1: 5})
    site.close()
    assert site.shards.get(b"1") == 5


def test_writer_thread__is_replaced_after_it_died(site: RedisStore) -> None:
    dead = threading.Thread(target=int)
    dead.start()
    dead.join()
    site.writer._thread = dead
    site.writer._has_work.set()
    site.on_table_updated({1: 5})
    servers.wait_until(lambda: site.shards.get(b"1") == 5)


# Random events

NAMES = ["10m", "1h", "90m", "2h", "3h", "1d", "7d"]
STEPS = {
    "visit": 60, "pass time": 35, "scrape": 20, "write": 10, "wake": 8, "create": 6, "delete": 4,
    "backfill": 3, "freeze": 1.5, "kill": 1, "flushall": 1, "evict": 0.7, "lose": 0.5,
}  # fmt: skip


class World:
    """A site of three processes, an exporter, and what users really did. Every step may meet a
    failure."""

    def __init__(self, seed: int, stack: ExitStack, path: Path) -> None:
        self.random = random.Random(seed)
        self.nodes = servers.RedisNodes(stack, path)
        self.port = servers.free_port()
        self.nodes.start(self.port)
        options = {"socket_timeout": 0.15, "socket_connect_timeout": 0.15}
        entry = {**REDIS, "LOCATION": self.nodes.urls, "OPTIONS": options}
        changes = {"SOUVENIRS_LAST_SEEN_STORE": entry, "SOUVENIRS_METRICS_WINDOWS": NAMES}
        stack.enter_context(override_settings(**changes))
        start = datetime(2024, 3, 29, 21, 7, 3, tzinfo=timezone.utc)
        self.clock: Any = stack.enter_context(time_machine.travel(start, tick=False))
        self.processes = [Process(entry) for _ in range(4)]
        self.exporter = self.processes[-1]
        self.users = {n: User.objects.create(pk=n, username=f"u{n}") for n in range(1, 26)}
        self.seen: dict[int, float] = {}
        self.state = "up"

    def random_user(self) -> int:
        weights = [1 / (1 + number % 7) ** 3 for number in self.users]
        return self.random.choices(list(self.users), weights)[0]

    def random_server(self) -> Process:
        return self.random.choice(self.processes[:-1])

    def now(self) -> datetime:
        return datetime.now(timezone.utc)

    def visit(self) -> None:
        number = self.random_user()
        self.random_server().do(souvenez, self.users[number])
        self.seen[number] = max(self.seen.get(number, 0), self.now().timestamp())

    def backfill(self) -> None:
        number = self.random_user()
        when = self.now() - self.random.choice([10 * MINUTE, 2 * HOUR, 25 * HOUR])
        self.random_server().do(souvenez, self.users[number], when=when)
        self.seen[number] = max(self.seen.get(number, 0), when.timestamp())

    def pass_time(self) -> None:
        self.write()
        seconds = self.random.choice([5, 40, 70, 300, 1000, 1800, 3700, 11000])
        self.clock.shift(timedelta(seconds=seconds * self.random.uniform(0.5, 1)))

    def write(self) -> None:
        """All processes write, in random order."""
        for process in self.random.sample(self.processes, len(self.processes)):
            assert process.write() or self.state != "up"

    def delete(self) -> None:
        self.write()
        number = self.random_user()
        self.random_server().do(self.users.pop(number).delete)
        self.seen.pop(number, None)
        for process in self.processes:  # a new user with the key is a new person one slot later
            process.handled.clear()
        throttle._local.clear()
        self.write()

    def create(self) -> None:
        free = set(range(1, 31)).difference(self.users)
        if free:
            number = self.random.choice(sorted(free))
            self.users[number] = User.objects.create(pk=number, username=f"u{number}")

    def flushall(self) -> None:
        if self.state == "up":
            self.nodes.cli(self.port, "flushall")

    def evict(self) -> None:
        if self.state == "up":
            key = self.random.choice(self.exporter.store.shards.keys)
            self.nodes.cli(self.port, "del", key)

    def lose(self) -> None:
        pending = self.random_server().store.writer.pending
        with pending._lock:
            pending._moves.clear()
            pending._overflowed = True

    def freeze(self) -> None:
        if self.state == "up":
            self.nodes.processes[self.port].send_signal(signal.SIGSTOP)
            self.state = "frozen"

    def kill(self) -> None:
        if self.state == "up":
            self.nodes.kill(self.port)
            self.state = "dead"

    def wake(self) -> None:
        if self.state == "frozen":
            self.nodes.processes[self.port].send_signal(signal.SIGCONT)
        elif self.state == "dead":
            self.nodes.start(self.port)
        self.state = "up"
        self.write()

    def scrape(self) -> None:
        self.write()
        counts: list[LastSeenCounts] = []
        store = self.exporter.store
        activity = RedisStore.count

        def noted(*args: Any, **more: Any) -> LastSeenCounts:
            counts.append(activity(store, *args, **more))
            return counts[-1]

        store.count = noted  # type: ignore[method-assign]
        self.compare(self.exporter.do(collect), counts[0].exact_from)

    def compare(self, samples: Samples, exact_from: float) -> None:
        now = self.now().timestamp()

        def count(cut: float) -> int:
            start = cut if cut >= exact_from else slot_start(cut)
            return sum(math.floor(seen) >= start for seen in self.seen.values())

        for name, seconds in metrics_conf.windows.items():
            cut = (now - seconds) // 60 * 60
            if ("active_users", name) in samples:
                assert samples["active_users", name] == count(cut), (name, exact_from - now)
            else:
                assert samples["up",] == 0
                assert seconds < 7200
                assert cut < exact_from
        for name in periods.NAMES:
            cut = periods.calendar_period(name, now, conf.zone).start
            assert samples["calendar_active_users", name] == count(cut)


SEEDS = range(int(os.environ.get("SOAK_SEEDS", "3")))


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.soak if seed else []) for seed in SEEDS]
)
def test_site__with_all_events_in_random_order(seed: int, tmp_path: Path) -> None:
    """For a longer run by hand: SOAK_SEEDS=100 pytest tests/test_redis_processes.py -k
    random_order"""
    with ExitStack() as stack:
        world = World(seed, stack, tmp_path)
        steps = [step.replace(" ", "_") for step in STEPS]
        for step in world.random.choices(steps, list(STEPS.values()), k=300):
            getattr(world, step)()
        world.wake()
        world.scrape()
        for process in world.processes:
            stores.retire(process.store)
