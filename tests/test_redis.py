"""The Redis store of last-seen times: its settings, keys, round trips, and how it recovers."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import time_machine
from django.conf import settings as django_settings
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import router
from django.test import override_settings

from souvenirs.control import last_seen, souvenez
from souvenirs.lastseen import get_store, pending, resync, writer
from souvenirs.lastseen.clients import group_by_node
from souvenirs.lastseen.members import member_of
from souvenirs.lastseen.pending import Move
from souvenirs.lastseen.redis import RedisStore
from souvenirs.lastseen.shards import Shards
from souvenirs.models import LastSeen
from tests import servers, stores
from tests.failing import frozen
from tests.people import NOBODY, User, column, ours, site, with_databases
from tests.stores import REDIS, collect, using, windows

NOON = datetime(2024, 5, 14, 12, tzinfo=timezone.utc)
LATER = (NOON + timedelta(days=9)).timestamp()
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture(params=["redis", pytest.param("cluster", marks=stores.OWN_SITE)])
def store(request: Any, transactional_db: None) -> Iterator[RedisStore]:
    with using(request.getfixturevalue(f"{request.param}_entry")) as made:
        yield made


@pytest.fixture
def clock() -> Iterator[Any]:
    with time_machine.travel(NOON, tick=False) as traveller:
        yield traveller


def servers_of(store: RedisStore) -> list[Any]:
    return [server for server, _ in group_by_node(store.shards.client, store.shards.keys)]


def wipe(store: RedisStore) -> None:
    for server in servers_of(store):
        server.flushall()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# Where the data is


@with_databases
def test_count__takes_one_round_trip_to_each_server(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.on_table_updated({NOBODY: 1_700_000_000})
    store.flush()
    sent: list[int] = []
    send = redis.Connection.send_packed_command

    def counted(self: Any, command: Any, **kwargs: Any) -> None:
        sent.append(self.port)
        send(self, command, **kwargs)

    monkeypatch.setattr(redis.Connection, "send_packed_command", counted)
    cuts = [1_700_000_000 - 60 * number for number in range(30)]
    activity = store.count(cuts, 1_700_000_100, using=router.db_for_read(LastSeen))
    assert set(activity.since.values()) == {1}
    assert len(sent) == len(set(sent)) == len(servers_of(store))


@with_databases
def test_count__queries_no_database(
    store: RedisStore, django_assert_num_queries: Any, clock: Any
) -> None:
    souvenez(User.objects.create(username="ana"))
    with django_assert_num_queries(0, connection=ours()):
        store.count([0], NOON.timestamp(), using=ours().alias)


@with_databases
def test_touch__is_one_zadd(store: RedisStore, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    user = User.objects.create(username="ana")
    souvenez(user)
    store.flush()
    clock.shift(MINUTE)
    sent = []
    send = redis.Connection.send_packed_command

    def counted(self: Any, command: Any, **kwargs: Any) -> None:
        sent.append(bytes(b"".join(command)))
        send(self, command, **kwargs)

    monkeypatch.setattr(redis.Connection, "send_packed_command", counted)
    souvenez(user)
    assert last_seen(user) == site(NOON + MINUTE)
    zadd, _ = sent
    assert b"ZADD" in zadd
    assert b"GT" in zadd


@pytest.mark.slow
@with_databases
def test_keys__are_spread_over_a_cluster_evenly(cluster_entry: Any) -> None:
    with using({**cluster_entry, "KEY_PREFIX": "other."}) as store:
        sizes = [len(keys) for _, keys in group_by_node(store.shards.client, store.shards.keys)]
        assert sum(sizes) == len(set(store.shards.keys)) == 16
        assert max(sizes) <= 6


@with_databases
def test_key_prefix__separates_sites(redis_entry: Any) -> None:
    with using({**redis_entry, "KEY_PREFIX": "one."}) as one:
        one.on_table_updated({NOBODY: 5})
        with using({**redis_entry, "KEY_PREFIX": "two."}) as two:
            assert two.get(NOBODY) is None
        assert one.get(NOBODY) == 5
        found = {*one.shards.client.scan_iter("one.*"), *one.shards.client.scan_iter("two.*")}
        assert {key.split(b".")[0] for key in found} == {b"one", b"two"}
        assert len(found) == 2 * 16


# Connecting


@with_databases
@pytest.mark.own_site
def test_location__with_a_password_and_tls(tmp_path: Path) -> None:
    servers.certificate(tmp_path)
    port = servers.free_port()
    options = [
        "--tls-port", str(port), "--tls-cert-file", str(tmp_path / "cert"), "--tls-key-file",
        str(tmp_path / "key"), "--tls-auth-clients", "no", "--requirepass", "a:b",
        "--tls-ca-cert-file", str(tmp_path / "cert"),
        "--unixsocket", str(tmp_path / "socket"),
    ]  # fmt: skip
    with servers.redis(None, *options):
        servers.wait_until(lambda: servers.accepts(port))
        trust = {"ssl_ca_certs": str(tmp_path / "cert")}
        tls = {**REDIS, "LOCATION": f"rediss://:a%3Ab@127.0.0.1:{port}/3", "OPTIONS": trust}
        with using(tls) as store:
            store.on_table_updated({NOBODY: 5})
            assert store.get(NOBODY) == 5
            assert store.shards.client.ping()
        socket = {**REDIS, "LOCATION": f"unix://{tmp_path}/socket?db=3"}
        with using({**socket, "OPTIONS": {"password": "a:b"}}) as store:
            assert store.shards.client.dbsize() == 16


@with_databases
@pytest.mark.own_site
def test_location__of_sentinels_with_tls(tmp_path: Path) -> None:
    servers.certificate(tmp_path)
    trust = ["--tls-ca-cert-file", str(tmp_path / "cert"), "--tls-auth-clients", "no"]
    own = ["--tls-cert-file", str(tmp_path / "cert"), "--tls-key-file", str(tmp_path / "key")]
    master, port = servers.free_port(), servers.free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(f"bind 127.0.0.1\ndir {tmp_path}\nsentinel monitor m 127.0.0.1 {master} 1\n")
    tls = [*own, *trust, "--tls-replication", "yes", "--port", "0", "--tls-port"]
    command = ["redis-server", str(config), "--sentinel", *tls, str(port)]
    ready = partial(servers.accepts, port)
    with (
        servers.redis(master, *tls, str(master)),
        servers.running(command, ready, tmp_path / "log"),
    ):
        entry = {**REDIS, "LOCATION": f"rediss://127.0.0.1:{port}", "SENTINEL": "m"}
        trusted = {"ssl_ca_certs": str(tmp_path / "cert")}
        with override_settings(SOUVENIRS_LAST_SEEN_STORE={**entry, "OPTIONS": trusted}):
            store: Any = get_store()
            servers.wait_until(lambda: knows_master(store))
            store.on_table_updated({NOBODY: 5})
            assert store.get(NOBODY) == 5
            stores.retire(store)


def knows_master(store: Any) -> bool:
    with suppress(redis.ConnectionError):
        return bool(store.shards.client.ping())
    return False


AT = {"LOCATION": "redis://a"}
BAD = [
    ({}, "LOCATION"),
    ({"LOCATION": []}, "LOCATION"),
    ({"LOCATION": 5}, "LOCATION"),
    ({"LOCATION": [None]}, "LOCATION"),
    ({"LOCATION": "127.0.0.1:6379"}, "redis://"),
    ({"LOCATION": "redis://a?bogus=1"}, "bogus"),
    ({"LOCATION": "redis://a?retry=1"}, "retry"),
    ({"LOCATION": ["redis://a", "redis://b"]}, "several URLs"),
    ({**AT, "CLUSTER": True, "SENTINEL": "b"}, "exclude each other"),
    ({"LOCATION": "redis://a/2", "CLUSTER": True}, "database"),
    ({"LOCATION": "unix:///a", "SENTINEL": "b"}, "unix"),
    ({**AT, "PREFIX": "b"}, "PREFIX"),
    ({**AT, "KEY_PREFIX": "{b}"}, "hash tag"),
    ({**AT, "KEY_PREFIX": None}, "not None"),
    ({**AT, "CLUSTER": "no"}, "CLUSTER must be .*'no'"),
    ({**AT, "WITH_TABLE": 1}, "WITH_TABLE must be .*not 1"),
    ({**AT, "SENTINEL": ""}, "SENTINEL .*not ''"),
    ({**AT, "OPTIONS": {"bogus": 1}}, "bogus"),
    ({**AT, "OPTIONS": {"bogus": 1}, "SENTINEL": "b"}, "bogus"),
    ({**AT, "OPTIONS": {"retry": 3}}, "retry"),
    ({**AT, "OPTIONS": {"port": 3}, "CLUSTER": True}, "port"),
    ({**AT, "OPTIONS": {1: 2}}, "1"),
    ({**AT, "OPTIONS": {"max_connections": "a"}}, "max_connections"),
    ({**AT, "OPTIONS": ["a"]}, "OPTIONS"),
]


@pytest.mark.parametrize(("params", "reason"), BAD)
def test_check__names_what_is_wrong(params: dict[str, Any], reason: str) -> None:
    with (
        override_settings(SOUVENIRS_LAST_SEEN_STORE={**REDIS, **params}),
        pytest.raises(SystemCheckError, match=rf"(?s)souvenirs.E005.*{reason}.*HINT"),
    ):
        call_command("check")


@pytest.mark.parametrize(
    "params",
    [
        {"LOCATION": ["redis://me:cr3t@a", "rediss://:cr3t@b:1"]},
        {"LOCATION": "redis://:a@cr3t@h:1"},
        {"LOCATION": "redis://:cr3t/x@h:1"},
        {"LOCATION": "redis://:cr3t#x@h:1"},
        {"LOCATION": "redis://:a cr3t@h:1"},
        {"LOCATION": "redis://h?password=cr3t"},
        {**AT, "OPTIONS": {"password": b"cr3t"}},
        {**AT, "OPTIONS": {"password": "'\"cr3t"}},
        {**AT, "PASSWORD": "cr3t"},
    ],
)
def test_check__shows_no_password(params: dict[str, Any]) -> None:
    wrong = {**REDIS, "X": 1, **params}
    with (
        override_settings(SOUVENIRS_LAST_SEEN_STORE=wrong),
        pytest.raises(SystemCheckError, match=r"souvenirs\.E005") as caught,
    ):
        call_command("check")
    assert "cr3t" not in str(caught.value)


def deploy_check(capsys: pytest.CaptureFixture[str]) -> str:
    call_command("check", deploy=True)
    return capsys.readouterr().err


def test_check__warns_of_a_server_that_may_evict_keys(
    redis_entry: Any, cluster_entry: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in (redis_entry, cluster_entry):
        with override_settings(SOUVENIRS_LAST_SEEN_STORE=entry):
            *_, server = servers_of(get_store())  # type: ignore[arg-type]
            assert "souvenirs.W002" not in deploy_check(capsys)
            server.config_set("maxmemory", "100mb")
            assert "souvenirs.W002" not in deploy_check(capsys)
            server.config_set("maxmemory-policy", "allkeys-lru")
            assert "souvenirs.W002" in (shown := deploy_check(capsys))
            assert "allkeys-lru" in shown
            server.config_set("maxmemory-policy", "volatile-lru")  # our keys never expire
            assert "souvenirs.W002" not in deploy_check(capsys)
            server.config_set("maxmemory-policy", "noeviction")


def test_check__warns_of_an_old_server(
    redis_entry: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("souvenirs.lastseen.redis.MIN_VERSION", (99, 1))
    with override_settings(SOUVENIRS_LAST_SEEN_STORE=redis_entry):
        assert "must be version 99.1 or later" in deploy_check(capsys)


@pytest.mark.parametrize("command", ["info", "eval", "set", "expire", "del"])
def test_check__reports_a_forbidden_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with servers.redis() as (url, _):
        port = str(servers.port_of(url))
        rules = ["on", ">pw", "~*", "+@all", f"-{command}"]
        servers.redis_cli("-p", port, "acl", "setuser", "site", *rules)
        entry = {**REDIS, "LOCATION": f"redis://site:pw@127.0.0.1:{port}"}
        with override_settings(SOUVENIRS_LAST_SEEN_STORE=entry):
            assert "souvenirs.W003" in (shown := deploy_check(capsys))
            assert command in shown


def test_check__reports_a_server_that_is_down(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {**REDIS, "LOCATION": f"redis://127.0.0.1:{servers.free_port()}"}
    with override_settings(SOUVENIRS_LAST_SEEN_STORE=entry):
        call_command("check")
        assert capsys.readouterr().err == ""
        assert "souvenirs.W003" in deploy_check(capsys)


# Visits do not wait


@with_databases
def test_visit__is_written_by_another_thread_a_moment_later(
    store: RedisStore, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    write = Shards.write

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return write(*args)

    monkeypatch.setattr(Shards, "write", noted)
    user = User.objects.create(username="ana")
    souvenez(user)
    servers.wait_until(lambda: store.shards.get(member_of(user.pk)) == NOON.timestamp())
    clock.shift(MINUTE)
    souvenez(user)
    later = (NOON + MINUTE).timestamp()
    servers.wait_until(lambda: store.shards.get(member_of(user.pk)) == later)
    user.delete()
    servers.wait_until(lambda: store.shards.count([0], LATER).since == {0: 0})
    assert set(threads) == {"souvenirs-redis-writer"}


@with_databases
def test_deletion__of_more_users_than_may_be_pending_leaves_redis_complete(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = User.objects.bulk_create(User(username=f"u{number}") for number in range(120))
    store.on_table_updated({user.pk: 1_700_000_000 for user in users})
    assert store.flush()
    monkeypatch.setattr(pending, "MAX_PENDING", 50)
    monkeypatch.setattr(writer, "BATCH_SIZE", 20)
    monkeypatch.setattr(writer, "FLUSH_DELAY", 60)  # the thread comes too late
    User.objects.exclude(username="u7").delete()
    assert store.flush()
    counts = store.shards.count([0], LATER)
    assert counts.since == {0: 1}
    assert counts.is_whole


@pytest.mark.own_site
def test_process__writes_pending_times_when_it_exits(redis_entry: Any) -> None:
    script = (
        "import sys, django; from django.conf import settings\n"
        f"settings.configure(SOUVENIRS_LAST_SEEN_STORE={redis_entry!r},"
        f" SECRET_KEY={django_settings.SECRET_KEY!r},"
        " INSTALLED_APPS=['souvenirs', 'django.contrib.auth', 'django.contrib.contenttypes'])\n"
        "django.setup()\n"
        "from souvenirs.lastseen import get_store, writer\n"
        "writer.FLUSH_DELAY = 1e6\n"
        "get_store().on_table_updated({1: 5}); get_store().on_table_updated({2: 6})\n"
    )
    with using(redis_entry) as store:
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
        assert (store.shards.get(b"1"), store.shards.get(b"2")) == (5, 6)


# Recovery


@pytest.fixture
def visits(store: RedisStore, clock: Any) -> dict[str, datetime]:
    """Users by the time when they were last seen, some in the middle of their hours."""
    times = {}
    clock.move_to(NOON - 30 * HOUR)
    for number in range(31):
        user = User.objects.create(username=f"u{number}")
        souvenez(user)
        clock.shift(50 * MINUTE)
        souvenez(user)
        times[user.username] = datetime.now(timezone.utc)
        clock.shift(10 * MINUTE)
    clock.shift(10 * MINUTE)
    store.flush()
    return times


@with_databases
def test_wiped__is_noticed_and_filled_from_the_table(
    store: RedisStore, clock: Any, visits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = collect()
    assert windows(before) == {"1h": 1, "1d": 24, "7d": 31, "30d": 31}
    assert before["up",] == 1
    assert warnings_in(caplog) == []

    wipe(store)
    for cause in ["Redis is being refilled", "Redis has been refilled"]:
        samples = collect()
        assert samples["up",] == 0
        # Counted from the beginning of the hour, so there is one more than in 24 hours
        assert windows(samples) == {"1d": 24, "7d": 31, "30d": 31}
        for period in ("day", "week", "month"):
            key = ("calendar_active_users", period)
            assert samples[key] == before[key]
        (line,) = [line for line in warnings_in(caplog) if not line.startswith("Refilled")]
        assert line.startswith(f"Left windows 1h out of the metrics: {cause}, so ")
        caplog.clear()

    clock.shift(49 * MINUTE)
    user = User.objects.create(username="late")
    souvenez(user)
    assert "1h" not in windows(collect())
    clock.shift(2 * MINUTE)
    samples = collect()
    assert samples["up",] == 1
    assert windows(samples)["1h"] == 1
    assert store.get(user.pk) == (NOON + 2 * HOUR - MINUTE).timestamp()


@pytest.mark.slow
@with_databases
def test_windows__return_as_soon_as_they_are_known(
    store: RedisStore, clock: Any, visits: Any
) -> None:
    """Windows that begin before the shards were filled are counted from the beginning of an
    hour."""
    durations = {"10m": 10, "1h": 60, "90m": 90, "2h": 120, "1d": 24 * 60}
    bob = User.objects.create(username="bob")
    for _ in range(4):
        clock.shift(MINUTE)
        souvenez(bob)
    visits["bob"] = wiped = datetime.now(timezone.utc)
    wipe(store)
    with override_settings(SOUVENIRS_METRICS_WINDOWS=list(durations)):
        for _ in range(2):
            collect()
        for minutes in range(0, 150, 5):
            known = [
                name for name, length in durations.items() if length >= 120 or minutes > length
            ]
            samples = collect()
            assert list(windows(samples)) == known, minutes
            assert samples["up",] == (len(known) == len(durations))
            for name, length in durations.items():
                if length >= 120:
                    start = datetime.now(timezone.utc) - length * MINUTE
                    start = start if start > wiped else start.replace(minute=0)
                    people = sum(when >= start for when in visits.values())
                    assert windows(samples)[name] == people, (minutes, name)
            clock.shift(5 * MINUTE)


@with_databases
def test_wiped__on_a_quiet_site_loses_nothing(store: RedisStore, clock: Any, visits: Any) -> None:
    clock.shift(3 * HOUR)
    before = collect()
    wipe(store)
    for _ in range(2):
        samples = collect()
        assert samples["up",] == 1
        assert windows(samples)["1h"] == windows(before)["1h"] == 0


@with_databases
def test_wiped__with_the_table_written_too_loses_nothing(redis_entry: Any, clock: Any) -> None:
    with using({**redis_entry, "WITH_TABLE": True}) as store:
        for number in range(3):
            souvenez(User.objects.create(username=f"u{number}"))
        clock.shift(59 * MINUTE)
        souvenez(User.objects.get(username="u0"))
        clock.shift(30 * MINUTE)
        before = collect()
        assert windows(before)["1h"] == 1
        wipe(store)
        for _ in range(2):
            samples = collect()
            assert samples["up",] == 1
            assert windows(samples) == windows(before)


@pytest.mark.slow
@with_databases
def test_move__to_redis_and_back_leaves_no_gap(redis_entry: Any, clock: Any) -> None:
    """As described in docs/scaling.md."""
    user = User.objects.create(username="ana")
    both = {**redis_entry, "WITH_TABLE": True}
    with using(both) as store:
        wipe(store)
    for entry in [stores.DATABASE, both, redis_entry, both, stores.DATABASE]:
        with override_settings(SOUVENIRS_LAST_SEEN_STORE=entry):
            for _ in range(5):
                for _ in range(2):
                    samples = collect()
                    assert samples["up",] == 1
                    assert "1h" in windows(samples)
                souvenez(user)
                assert windows(collect())["1h"] == 1
                clock.shift(25 * MINUTE)


@with_databases
def test_table__is_copied_again_while_it_is_written_too(redis_entry: Any, clock: Any) -> None:
    """Machines that are not deployed yet write only the table."""
    with using({**redis_entry, "WITH_TABLE": True}) as store:
        user = User.objects.create(username="ana")
        with override_settings(SOUVENIRS_LAST_SEEN_STORE=stores.DATABASE):
            souvenez(user)
        assert store.shards.get(member_of(user.pk)) is None
        before = store.shards.count([], 0)
        clock.shift(MINUTE)
        call_command("rollup_souvenirs", verbosity=0)
        assert store.shards.get(member_of(user.pk)) == NOON.timestamp()
        assert store.shards.count([], 0) == before


@with_databases
def test_lost_shard__is_filled_and_the_others_stay(
    store: RedisStore, clock: Any, visits: Any
) -> None:
    key = store.shards.key_of(member_of(User.objects.get(username="u7").pk))
    store.shards.client.delete(key)
    collect()
    for user in User.objects.all():
        is_lost = store.shards.key_of(member_of(user.pk)) == key
        seen = visits[user.username] - (50 * MINUTE if is_lost else timedelta())
        assert store.get(user.pk) == seen.timestamp()


@with_databases
def test_resync__keeps_newer_times_and_leaves_out_future_ones(
    store: RedisStore, clock: Any
) -> None:
    user, other = (User.objects.create(username=name) for name in "ab")
    LastSeen.objects.create(user_id=user.pk, seen=column(NOON.timestamp() - 50))
    LastSeen.objects.create(user_id=other.pk, seen=column(NOON.timestamp() + 86_400))
    wipe(store)
    store.on_table_updated({user.pk: int(NOON.timestamp())})
    store.resync()
    assert store.get(user.pk) == NOON.timestamp()
    assert store.shards.get(member_of(other.pk)) is None


@with_databases
def test_resync__runs_once_at_a_time(store: RedisStore, clock: Any, visits: Any) -> None:
    wipe(store)
    assert store.shards.lock(60)
    assert resync.resync(store.shards) is None
    store.shards.unlock()
    assert resync.resync(store.shards) == 16
    assert resync.resync(store.shards) == 0


@with_databases
def test_wiped__during_a_resync_is_noticed(
    store: RedisStore, clock: Any, visits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = resync._batches

    def interrupted() -> Iterator[Any]:
        yield from batches()
        monkeypatch.undo()
        wipe(store)

    wipe(store)
    monkeypatch.setattr(resync, "_batches", interrupted)
    store.resync()
    assert not store.shards.count([], 0).is_whole
    collect()
    assert store.shards.count([], 0).is_whole
    assert store.shards.count([0], LATER).since == {0: 31}


@with_databases
@pytest.mark.own_site
def test_restarted__with_deleted_users_counts_none_of_them(tmp_path: Path, clock: Any) -> None:
    with servers.ExitStack() as stack:
        nodes = servers.RedisNodes(stack, tmp_path)
        port = servers.free_port()
        nodes.start(port)
        with using({**REDIS, "LOCATION": nodes.urls}) as store:
            for number in range(50):
                souvenez(User.objects.create(username=f"u{number}"))
            store.flush()
            store.shards.client.save()
            User.objects.exclude(username="u0").delete()
            store.flush()
            nodes.kill(port)
            nodes.start(port)
            for _ in range(3):
                assert windows(collect())["1d"] == 1


@with_databases
@pytest.mark.own_site
def test_restarted__with_old_data_is_noticed(tmp_path: Path, clock: Any) -> None:
    with servers.ExitStack() as stack:
        nodes = servers.RedisNodes(stack, tmp_path)
        port = servers.free_port()
        nodes.start(port)
        entry = {**REDIS, "LOCATION": nodes.urls[0]}
        with using(entry) as store:
            ana, bob = (User.objects.create(username=name) for name in ("ana", "bob"))
            souvenez(ana)
            store.flush()
            store.shards.client.save()
            souvenez(bob)
            store.flush()
            nodes.kill(port)
            nodes.start(port)
            assert store.shards.client.dbsize() == 16
            assert store.shards.get(member_of(bob.pk)) is None
            assert "1h" not in windows(collect())
            assert windows(collect())["1d"] == 2
            assert store.shards.get(member_of(bob.pk)) == NOON.timestamp()


@with_databases
def test_rollup_souvenirs__resyncs_and_repair_reconciles(
    store: RedisStore, clock: Any, visits: Any
) -> None:
    wipe(store)
    call_command("rollup_souvenirs", verbosity=0)
    assert store.shards.count([0], LATER).since == {0: 31}
    store.on_table_updated({NOBODY: 5})
    call_command("rollup_souvenirs", verbosity=0, repair=True)
    assert store.shards.get(member_of(NOBODY)) is None


@with_databases
def test_scrapes__reconcile_shard_by_shard(store: RedisStore, clock: Any, visits: Any) -> None:
    store.on_table_updated({NOBODY: 5})
    for _ in range(16):
        collect()
    assert store.shards.get(member_of(NOBODY)) is None
    assert store.shards.count([0], LATER).since == {0: 31}


@with_databases
def test_reconcile__removes_members_that_are_not_keys_of_users(
    store: RedisStore, clock: Any, visits: Any
) -> None:
    """The users' keys may have had another type before."""
    keys = [b"550e8400-e29b-41d4-a716-446655440000x", b"\xf0no text"]
    store.shards.write(dict.fromkeys(keys, Move(5)), LATER)
    for _ in range(16):
        collect()
    assert store.shards.count([0], LATER).since == {0: 31}


@pytest.mark.slow
@with_databases
def test_resync__failure_is_logged_once_a_minute(
    redis_entry: Any, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with servers.redis() as (url, process), using({**redis_entry, "LOCATION": url}) as store:
        wipe(store)
        store.count([0], LATER, using=ours().alias)
        with frozen(process.pid):
            for _ in range(4):
                collect()
        assert sum("Refilling Redis" in line for line in warnings_in(caplog)) <= 1
