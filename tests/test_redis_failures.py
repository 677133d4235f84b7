"""The Redis of last-seen times fails in many ways, and the site goes on.

No request fails or waits for long, no pending write is lost, scrapes keep answering, and everything
is back to normal when the server works again.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import pytest
import redis
import time_machine
from django.contrib.auth.models import User
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path

from souvenirs.control import last_seen, souvenez
from souvenirs.lastseen import get_store, pending, writer
from souvenirs.lastseen.members import member_of
from souvenirs.lastseen.redis import RedisStore
from souvenirs.lastseen.shards import Shards
from souvenirs.models import LastSeen, Rollup, Souvenir
from souvenirs.signals import souvenir_recorded
from tests import failing, servers, stores
from tests.failing import BreakerClock, errors, frozen
from tests.stores import REDIS, collect, windows

pytestmark = [
    pytest.mark.own_site,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
]

clock = failing.clock

SECONDS = 0.3  # how long the site waits for Redis
NOON = datetime(2024, 5, 14, 12, tzinfo=timezone.utc)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
NAMES = ["ada", "barbara", "edith", "grace", "hedy", "joan"]


def who(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username())


urlpatterns = [path("who/", who)]


class Case(NamedTuple):
    """A kind of failure. loses: the data in Redis may be lost. entry: the store's setting."""

    entry: dict[str, Any]
    broken: Callable[[], Any]
    cause: str
    loses: bool = False


def entry(location: Any, **more: Any) -> dict[str, Any]:
    options = {"socket_timeout": SECONDS, "socket_connect_timeout": SECONDS}
    return {**REDIS, "LOCATION": location, "OPTIONS": options, **more}


def redis_stopped(stack: ExitStack, request: Any) -> Case:
    nodes = servers.RedisNodes(stack, request.getfixturevalue("tmp_path"))
    port = servers.free_port()
    nodes.start(port)

    @contextmanager
    def broken() -> Iterator[None]:
        nodes.kill(port)
        yield
        nodes.start(port)

    return Case(entry(nodes.urls), broken, "Error 111", loses=True)


def redis_frozen(stack: ExitStack, request: Any) -> Case:
    url, process = stack.enter_context(servers.redis())
    return Case(entry(url), lambda: frozen(process.pid), "Timeout")


def redis_full(stack: ExitStack, request: Any) -> Case:
    url, _ = stack.enter_context(servers.redis())
    port = str(servers.port_of(url))

    @contextmanager
    def broken() -> Iterator[None]:
        servers.redis_cli("-p", port, "config", "set", "maxmemory", "1")
        yield
        servers.redis_cli("-p", port, "config", "set", "maxmemory", "0")

    return Case(entry(url), broken, "maxmemory")


def cluster_node_frozen(stack: ExitStack, request: Any) -> Case:
    nodes = request.getfixturevalue("redis_cluster")
    for port in nodes.processes:
        nodes.cli(port, "flushall")

    @contextmanager
    def broken() -> Iterator[None]:
        with frozen(nodes.processes[port_of_ada()].pid):
            yield
        wait_for_cluster(nodes)

    return Case(entry(nodes.urls, CLUSTER=True), broken, "Timeout")


def cluster_node_killed(stack: ExitStack, request: Any) -> Case:
    """It comes back empty."""
    nodes = stack.enter_context(servers.redis_cluster())

    @contextmanager
    def broken() -> Iterator[None]:
        port = port_of_ada()
        nodes.kill(port)
        yield
        nodes.start(port)
        wait_for_cluster(nodes)

    return Case(entry(nodes.urls, CLUSTER=True), broken, "Error 111", loses=True)


def cluster_failover(stack: ExitStack, request: Any) -> Case:
    nodes = stack.enter_context(servers.redis_cluster(replicas=1))

    @contextmanager
    def broken() -> Iterator[None]:
        master = port_of_ada()
        nodes.kill(master)
        yield
        others = [port for port in nodes.processes if port != master]
        for port in others:
            servers.wait_until(
                lambda: nodes.cli(port, "cluster", "nodes").count("master") == 4  # noqa: B023
            )
        wait_for_cluster(nodes, *others)

    return Case(entry(nodes.urls, CLUSTER=True), broken, "Error 111", loses=True)


def port_of_ada() -> int:
    """The port of the node that has the first visitor."""
    shards = store().shards
    key = shards.key_of(member_of(User.objects.get(username="ada").pk))
    port: int = shards.client.get_node_from_key(key).port
    return port


def wait_for_cluster(nodes: servers.RedisNodes, *ports: int) -> None:
    for port in ports or nodes.processes:
        servers.wait_until(
            lambda: "cluster_state:ok" in nodes.cli(port, "cluster", "info")  # noqa: B023
        )


def wait_for_sentinel(url: str, master: int) -> None:
    sentinel: Any = redis.Sentinel([("127.0.0.1", servers.port_of(url))])  # type: ignore

    def has_switched() -> bool:
        with suppress(redis.ConnectionError):  # while it checks whether that master is well
            return bool(sentinel.discover_master("souvenirs") == ("127.0.0.1", master))
        return False

    servers.wait_until(has_switched)


def sentinel_failover(stack: ExitStack, request: Any) -> Case:
    url, nodes = stack.enter_context(servers.redis_sentinel())

    @contextmanager
    def broken() -> Iterator[None]:
        master, replica = nodes.processes
        nodes.kill(master)
        yield
        wait_for_sentinel(url, replica)

    return Case(entry(url, SENTINEL="souvenirs"), broken, "111", loses=True)


def sentinel_master_frozen(stack: ExitStack, request: Any) -> Case:
    url, nodes = stack.enter_context(servers.redis_sentinel())
    master, replica = nodes.processes

    @contextmanager
    def broken() -> Iterator[None]:
        with frozen(nodes.processes[master].pid):
            yield
            wait_for_sentinel(url, replica)

    return Case(entry(url, SENTINEL="souvenirs"), broken, "Timeout", loses=True)


CASES = [
    redis_stopped,
    redis_frozen,
    redis_full,
    cluster_node_frozen,
    cluster_node_killed,
]
FAILOVERS = [cluster_failover, sentinel_failover, sentinel_master_frozen]


@pytest.fixture(
    params=[*CASES, *(pytest.param(each, marks=pytest.mark.soak) for each in FAILOVERS)],
    ids=lambda case: case.__name__,
)
def case(request: Any) -> Iterator[Case]:
    with ExitStack() as stack:
        made = request.param(stack, request)
        with site(made.entry):
            yield made


@contextmanager
def site(entry: dict[str, Any]) -> Iterator[None]:
    with override_settings(SOUVENIRS_LAST_SEEN_STORE=entry):
        yield
        stores.retire(store())


class Crowd:
    """Signed-in users. results: the results of their visits, according to the signal."""

    def __init__(self) -> None:
        self.results: list[str] = []
        self.using_threads: list[str] = []  # the threads that use Redis
        self.clients = {name: Client() for name in NAMES}
        for name, client in self.clients.items():
            client.force_login(User.objects.create(username=name))

    def note(self, result: str, count: int, **kwargs: Any) -> None:
        self.results.extend([result] * count)

    def visit(self) -> None:
        """All users visit a page, one after the other, without waiting for Redis."""
        self.results.clear()
        self.using_threads.clear()
        for name, client in self.clients.items():
            response = client.get("/who/")
            assert (response.status_code, response.content.decode()) == (200, name)
        assert threading.current_thread().name not in self.using_threads


@pytest.fixture
def crowd(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crowd]:
    crowd = Crowd()
    ask: Any = Shards.client.fget  # type: ignore[attr-defined]

    def noted(self: Shards) -> Any:
        crowd.using_threads.append(threading.current_thread().name)
        return ask(self)

    monkeypatch.setattr(Shards, "client", property(noted))
    souvenir_recorded.connect(crowd.note)
    yield crowd
    souvenir_recorded.disconnect(crowd.note)


@pytest.fixture
def traveller() -> Iterator[Any]:
    with time_machine.travel(NOON, tick=False) as made:
        yield made


def store() -> RedisStore:
    made = get_store()
    assert isinstance(made, RedisStore)
    return made


def test_redis__failure_does_no_harm_and_loses_nothing(
    case: Case,
    crowd: Crowd,
    clock: BreakerClock,
    traveller: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store().resync()
    early = User.objects.create(username="early")
    souvenez(early)
    traveller.shift(30 * MINUTE)
    souvenez(early)
    assert collect()["up",] == 1

    with case.broken():
        for result in ("added", "rate-limited"):
            traveller.shift(MINUTE)
            crowd.visit()
            assert crowd.results == [result] * len(NAMES)
            assert not store().flush()
            clock.pass_period()
            assert not store().flush()
        assert len(store().writer.pending) == len(NAMES)
        (message,) = errors(caplog)
        assert case.cause in message
        assert last_seen(early) == NOON
        samples = collect()
        assert (samples["up",], windows(samples)) == (0, dict.fromkeys(["1d", "7d", "30d"], 7))
        assert samples["calendar_active_users", "day"] == 7
        User.objects.get(username="hedy").delete()
        del crowd.clients["hedy"]

    clock.pass_period()
    collect()  # this resyncs it if something was lost
    samples = collect()
    expected = {"1h": 6, "1d": 6, "7d": 6, "30d": 6}
    if case.loses:
        del expected["1h"]
    assert (samples["up",], windows(samples)) == (not case.loses, expected)
    seen = dict.fromkeys(crowd.clients, NOON + 32 * MINUTE)
    early_seen = times()["early"]  # a part of the servers may have lost nothing
    assert early_seen == NOON + 30 * MINUTE or (case.loses and early_seen == NOON)
    assert times() == {**seen, "early": early_seen}
    traveller.shift(MINUTE)
    crowd.visit()
    seen = dict.fromkeys(crowd.clients, NOON + 33 * MINUTE)
    assert store().flush()
    assert times() == {**seen, "early": early_seen}
    assert Souvenir.objects.count() == LastSeen.objects.count() == 6
    assert store().shards.count([0], 2**40).since == {0: 6}

    traveller.shift(HOUR)
    samples = collect()
    assert (samples["up",], windows(samples)["1h"]) == (1, 5)


def times() -> dict[str, datetime]:
    """The users in Redis."""
    shards = store().shards
    found = {user.username: shards.get(member_of(user.pk)) for user in User.objects.all()}
    return {
        name: datetime.fromtimestamp(seen, timezone.utc) for name, seen in found.items() if seen
    }


def test_sentinel__change_of_master_is_followed(
    crowd: Crowd, clock: BreakerClock, traveller: Any
) -> None:
    """A failover started by an operator; in test_redis__failure... masters fail."""
    with (
        servers.redis_sentinel() as (url, nodes),
        site(entry(url, SENTINEL="souvenirs")),
    ):
        store().resync()
        crowd.visit()
        assert store().flush()
        master, replica = nodes.processes
        nodes.cli(master, "set", "after", "that")
        servers.wait_until(lambda: nodes.cli(replica, "get", "after") == "that\n")
        servers.redis_cli("-p", str(servers.port_of(url)), "sentinel", "failover", "souvenirs")
        wait_for_sentinel(url, replica)
        nodes.cli(master, "replicaof", "127.0.0.1", str(replica))  # Sentinel does this later
        traveller.shift(MINUTE)
        crowd.visit()
        for _ in range(2):  # the first try may only discover the change
            clock.pass_period()
            store().flush()
        assert not store().writer.pending
        collect()  # the new master may lack the last moments of the old one
        assert times() == dict.fromkeys(NAMES, NOON + MINUTE)


def test_address__without_a_redis_server(crowd: Crowd, clock: BreakerClock, traveller: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        for more in ({}, {"CLUSTER": True}, {"SENTINEL": "souvenirs"}):
            with site(entry(url, **more)):
                for _ in range(2):
                    crowd.visit()
                    assert "failed" not in crowd.results
                    assert collect()["up",] == 0
                    crowd.using_threads.clear()
                    for _ in range(3):
                        collect()
                        assert last_seen(User.objects.get(username="ada"))
                    assert crowd.using_threads == []  # until the breaker allows a probe
                    clock.pass_period()
                    traveller.shift(MINUTE)


def test_pending_writes__overflow_causes_a_resync(
    crowd: Crowd, clock: BreakerClock, traveller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "MAX_PENDING", 4)
    with servers.redis() as (url, process), site(entry(url)):
        store().resync()
        with frozen(process.pid):
            crowd.visit()
            assert not store().flush()
        assert len(store().writer.pending) <= 4
        clock.pass_period()
        for _ in range(2):
            samples = collect()
            assert samples["up",] == 0
            assert windows(samples) == dict.fromkeys(["1d", "7d", "30d"], 6)
            assert store().shards.count([], 0).is_whole
        assert set(times()) == set(NAMES)


def test_pending_writes__are_written_after_the_outage_without_another_visit(
    crowd: Crowd, clock: BreakerClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PROBE_SECONDS", 0.1)  # for the thread that writes
    with servers.redis() as (url, process), site(entry(url)):
        store().resync()
        with frozen(process.pid):
            crowd.visit()
            assert not store().flush()
        clock.pass_period()
        servers.wait_until(lambda: not store().writer.pending)
        servers.wait_until(lambda: set(times()) == set(NAMES))


def test_pending_writes__wait_for_the_node_that_is_down(
    crowd: Crowd, clock: BreakerClock, request: Any
) -> None:
    with ExitStack() as stack:
        case = cluster_node_frozen(stack, request)
        stack.enter_context(site(case.entry))
        ada = User.objects.get(username="ada").pk
        shards = store().shards
        port = port_of_ada()
        elsewhere = next(
            number
            for number in range(1_000_000, 2_000_000)
            if shards.client.get_node_from_key(shards.key_of(b"%d" % number)).port != port
        )
        with case.broken():
            store().on_table_updated({ada: 5, elsewhere: 6})
            clock.pass_period()
            store().on_table_updated({elsewhere: 7})
            assert store().writer.pending
        clock.pass_period()
        assert store().get(ada) == 5
        assert store().get(elsewhere) == 7


def test_pending_writes__stay_with_the_parent_of_a_fork(crowd: Crowd) -> None:
    with site(entry(f"redis://127.0.0.1:{servers.free_port()}")):
        crowd.visit()
        assert store().writer.pending
        with store().writer.pending._lock, store().writer._sending:
            if (pid := os.fork()) == 0:
                store().on_table_updated({1: 5})
                os._exit(10 * store().flush() + len(store().writer.pending))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_database__outage_leaves_the_windows_of_redis(crowd: Crowd, missing_table: Any) -> None:
    with servers.redis() as (url, _), site(entry(url)):
        store().resync()
        crowd.visit()
        for model in (Souvenir, LastSeen):
            with missing_table(model):
                samples = collect()
                assert windows(samples) == dict.fromkeys(["1h", "1d", "7d", "30d"], 6)


def test_rollup_souvenirs__rolls_up_while_redis_is_down(
    crowd: Crowd, traveller: Any, caplog: pytest.LogCaptureFixture
) -> None:
    away = entry(f"redis://127.0.0.1:{servers.free_port()}")
    with site(away):
        crowd.visit()
        traveller.shift(HOUR)
        call_command("rollup_souvenirs", verbosity=0, repair=True)
    assert Rollup.objects.get(kind=Rollup.BUCKET).active_users == len(NAMES)
    told = " ".join(errors(caplog))
    assert "Refilling Redis with last-seen times failed" in told
    assert "Could not remove deleted users" in told
