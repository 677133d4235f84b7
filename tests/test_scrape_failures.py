"""Real servers fail, and /metrics has everything that can be read: it answers 200 within the
scraper's timeout, with souvenirs_up 0 and one line in the log, and it recovers without help."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client, override_settings
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as parse_text

from souvenirs import timestamps
from souvenirs.conf import conf as souvenirs_conf
from souvenirs.control import souvenez
from souvenirs.history import maintenance
from souvenirs.periods import previous_calendar_period
from souvenirs_metrics import exposition
from souvenirs_metrics.collector import SouvenirsCollector
from souvenirs_metrics.readers import load_readers
from souvenirs_metrics.readers.base import Families, ReadContext, Reader
from souvenirs_metrics.readers.previous_periods import PreviousPeriods
from tests import failing, servers
from tests.failing import (
    AWAY,
    REFUSING,
    Case,
    Entry,
    cases,
    in_mariadb,
    in_postgresql,
    new_database,
    postgresql_pid,
)
from tests.test_collector import ACCOUNTS, ACTIVITY, ALWAYS, GROWTH, LAG, PREVIOUS

use_counter, keep_history_in, case = failing.use_counter, failing.keep_history_in, failing.case

Samples = dict[str, float]
Keep = Callable[..., None]

SCRAPE_SECONDS = 2
WAIT_SECONDS = 60

pytestmark = [
    pytest.mark.own_site,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("souvenirs_metrics.urls"),
]

EVERYTHING = ACTIVITY | LAG | PREVIOUS | GROWTH | ACCOUNTS | ALWAYS


def scrape(seconds: float = SCRAPE_SECONDS) -> dict[str, Metric]:
    """Our families on the page by name, except those of process counters."""
    headers = {"X-Prometheus-Scrape-Timeout-Seconds": str(seconds)}
    response = Client().get("/metrics", headers=headers)
    assert response.status_code == 200
    assert "NaN" not in response.text
    return {
        family.name: family for family in parse_text(response.text) if family.name in EVERYTHING
    }


def names(families: dict[str, Metric]) -> set[str]:
    return set(families)


def value(families: dict[str, Metric], name: str, label: str = "") -> float:
    (sample,) = [s for s in families[name].samples if not label or label in s.labels.values()]
    return sample.value


wait_until = partial(servers.wait_until, seconds=WAIT_SECONDS)


def scrape_until(is_so: Callable[[dict[str, Metric]], bool]) -> dict[str, Metric]:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so(families := scrape()):
        assert time.monotonic() < deadline, families
        time.sleep(0.1)
    return families


def is_up(families: dict[str, Metric]) -> bool:
    return value(families, "souvenirs_up") == 1


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The errors logged since the last call."""

    def lines() -> list[str]:
        found = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
        caplog.clear()
        return found

    return lines


@pytest.fixture
def ada() -> User:
    return User.objects.create(username="ada")


def be_active(user: User) -> None:
    """Record activity now, yesterday (which is due to be rolled up), and years before (which is
    rolled up)."""
    now = datetime.now(timezone.utc)
    souvenez(user, when=now - timedelta(days=800))
    maintenance.roll_up()
    yesterday = previous_calendar_period("day", now.timestamp(), souvenirs_conf.zone)
    souvenez(user, when=timestamps.to_datetime(yesterday.start))
    souvenez(user)


# The database of souvenirs fails. The users' database is separate, and works

HISTORY = ACTIVITY | LAG | PREVIOUS | GROWTH
LOST: dict[str, set[str]] = {
    "postgresql_stopped": HISTORY,
    # No time remains for the parts after them
    "postgresql_frozen": HISTORY | ACCOUNTS,
    "postgresql_silent": HISTORY | ACCOUNTS,
    "mariadb_frozen": HISTORY | ACCOUNTS,
    "postgresql_locked": PREVIOUS | GROWTH,
    "postgresql_before_migrate": HISTORY,
    "mariadb_before_migrate": HISTORY,
    "sqlite_before_migrate": HISTORY,
    # These can be read
    "postgresql_read_only": set(),
    "mariadb_without_rights": set(),
    "sqlite_read_only": set(),
    "sqlite_locked": set(),
}


@cases(*AWAY, *REFUSING)
def test_scrape__of_a_failing_database(
    case: Case, ada: User, request: pytest.FixtureRequest, errors: Callable[[], list[str]]
) -> None:
    lost = LOST[request.node.callspec.id]
    if "before_migrate" not in request.node.callspec.id:
        be_active(ada)
        connections["history"].close()
    errors()
    with case.broken():
        # On a case that the deadline does not end, a slow machine needs more time
        found = scrape(SCRAPE_SECONDS if lost >= ACCOUNTS else WAIT_SECONDS)
        assert names(found) == EVERYTHING - lost
        assert is_up(found) == (not lost)
        assert lost >= ACCOUNTS or value(found, "souvenirs_registered_users") == 1
        lines: list[str] = []
        wait_until(lambda: bool(lines.extend(errors()) or lines))
        (line,) = lines
        if lost:
            assert line.startswith("Left ")
        else:
            assert line.startswith("Rolled up nothing: ")
        assert case.cause in line or "did not answer within" in line
    scrape_until(is_up)


def test_scrape__without_the_right_to_read_a_table(
    postgresql: Entry, keep_history_in: Keep, ada: User, errors: Callable[[], list[str]]
) -> None:
    entry = new_database(postgresql)
    keep_history_in(entry)
    be_active(ada)
    role = f"reader_{entry['NAME']}"
    with in_postgresql(entry) as session:
        for statement in (
            f"CREATE ROLE {role} LOGIN",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",
            f"REVOKE SELECT ON souvenirs_lastseen FROM {role}",
        ):
            session.execute(statement)  # type: ignore[arg-type]
    connections["history"].close()
    connections["history"].settings_dict["USER"] = role
    found = scrape()
    assert (
        names(found) == EVERYTHING - ACTIVITY - PREVIOUS - GROWTH
    )  # they look for users without an ordinal
    assert not is_up(found)
    (line,) = errors()  # the upkeep, which fails with the same cause, logs no other line
    assert line == (
        "Left active_users, previous_periods, closed_periods out of the metrics: ProgrammingError:"
        " permission denied for table souvenirs_lastseen"
    )


# Failures during the collection


class Interruption(Reader):
    """Does something once, when it is read."""

    name, families = "interruption", ()

    def __init__(self, happening: Callable[[], None]) -> None:
        self.happenings = [happening]

    def read(self, now: float, context: ReadContext) -> Families:
        if self.happenings:
            self.happenings.pop()()
        return []


def interrupted(happening: Callable[[], None]) -> SouvenirsCollector:
    """A collector during whose first collection this happens, after the activity was read."""
    readers = load_readers()
    activity = [reader.name for reader in readers].index("active_users")
    readers.insert(activity + 1, Interruption(happening))
    return SouvenirsCollector(lambda: readers)


def collecting() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "souvenirs-collection"]


def mariadb_pid(entry: Entry) -> int:
    session = in_mariadb(entry)
    cursor = session.cursor()
    cursor.execute("SELECT @@pid_file")
    pid = int(Path(cursor.fetchone()[0]).read_text())
    session.close()
    return pid


@pytest.mark.parametrize("engine", ["postgresql", "mariadb"])
def test_scrape__of_a_server_that_freezes_meanwhile(
    engine: str,
    request: pytest.FixtureRequest,
    keep_history_in: Keep,
    ada: User,
    monkeypatch: pytest.MonkeyPatch,
    errors: Callable[[], list[str]],
) -> None:
    entry = new_database(request.getfixturevalue(engine))
    keep_history_in(entry)
    be_active(ada)
    pid = (postgresql_pid if engine == "postgresql" else mariadb_pid)(entry)
    with ExitStack() as stack:
        collector = interrupted(lambda: stack.enter_context(failing.frozen(pid)))
        monkeypatch.setattr(exposition, "collector", collector)
        found = scrape()
        assert names(found) == ALWAYS | ACTIVITY
        assert value(found, "souvenirs_active_users", "1h") == 1
        assert not is_up(found)
        (line,) = errors()
        assert line.startswith(
            "Left rollup_lag, previous_periods, accounts, closed_periods,"
            " active_accounts, segments out of the metrics: the database did not answer within "
        )
        # The thread does not wait for a server that may never answer
        wait_until(lambda: not collecting())
        for _ in range(2):
            assert not is_up(scrape(1))
            assert len(collecting()) <= 1
    assert names(scrape_until(is_up)) == EVERYTHING


@pytest.mark.parametrize("engine", ["postgresql", "mariadb"])
def test_scrape__of_a_connection_terminated_meanwhile(
    engine: str,
    request: pytest.FixtureRequest,
    keep_history_in: Keep,
    ada: User,
    monkeypatch: pytest.MonkeyPatch,
    errors: Callable[[], list[str]],
) -> None:
    entry = new_database(request.getfixturevalue(engine))
    keep_history_in(entry)
    be_active(ada)

    def end() -> None:  # and accept no new ones
        if engine == "postgresql":
            with in_postgresql(entry, "postgres") as session:
                name = entry["NAME"]
                session.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")  # type: ignore[arg-type]
                session.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                    [name],
                )
        else:
            session = in_mariadb(entry)
            cursor = session.cursor()
            cursor.execute(
                "SELECT id FROM information_schema.processlist WHERE db = %s", [entry["NAME"]]
            )
            for (number,) in cursor.fetchall():
                cursor.execute("KILL CONNECTION %s", [number])
            session.close()

    monkeypatch.setattr(exposition, "collector", interrupted(end))
    found = scrape()
    assert not is_up(found)
    assert names(found) >= ALWAYS | ACTIVITY | ACCOUNTS
    assert names(found) < EVERYTHING
    (line,) = errors()
    assert line.startswith("Left rollup_lag")
    connections["history"].close()
    if engine == "postgresql":
        with in_postgresql(entry, "postgres") as session:
            session.execute(
                f"ALTER DATABASE {entry['NAME']} ALLOW_CONNECTIONS true"  # type: ignore[arg-type]
            )
    assert names(scrape_until(is_up)) == EVERYTHING


class Pooler:
    """Accepts connections for a PostgreSQL server, and can withhold the queries sent on them."""

    def __init__(self, port: int) -> None:
        self.is_silent = False
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = str(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [client, server]
                for source, target in [(client, server), (server, client)]:
                    thread = threading.Thread(target=self._pass, args=[source, target], daemon=True)
                    thread.start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                is_question = data[:1] in (b"Q", b"P")  # and not the start of a session
                if not (self.is_silent and is_question):
                    target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def test_scrape__of_a_server_that_accepts_but_never_answers(
    postgresql: Entry, keep_history_in: Keep, ada: User, errors: Callable[[], list[str]]
) -> None:
    pooler = Pooler(int(postgresql["PORT"]))
    # Django itself sets this zone when it connects
    entry = {**new_database(postgresql), "PORT": pooler.port, "TIME_ZONE": "Asia/Tokyo"}
    try:
        keep_history_in(entry)
        be_active(ada)
        connections["history"].close()
        assert is_up(scrape())
        pooler.is_silent = True
        for lines in (1, 0):  # the same cause is logged once a minute
            assert names(scrape()) - ACCOUNTS == ALWAYS  # accounts are cached for a minute
            assert len(errors()) == lines
            wait_until(lambda: not collecting())
        pooler.is_silent = False
        assert names(scrape_until(is_up)) == EVERYTHING
        connections["history"].close()
    finally:
        pooler.close()


def test_scrape__of_a_server_that_never_answers_until_it_is_replaced(
    postgresql: Entry, keep_history_in: Keep, ada: User
) -> None:
    """For example in a failover, after which the old connections stay silent for hours."""
    old, new = Pooler(int(postgresql["PORT"])), Pooler(int(postgresql["PORT"]))
    try:
        keep_history_in({**new_database(postgresql), "PORT": old.port})
        be_active(ada)
        assert is_up(scrape())
        old.is_silent = True
        for _ in range(3):  # more than one, each on a new connection
            assert not is_up(scrape(1))
        connections["history"].close()
        connections["history"].settings_dict["PORT"] = new.port
        assert names(scrape_until(is_up)) == EVERYTHING
        assert len(collecting()) <= 1
        connections["history"].close()
    finally:
        old.close()
        new.close()


# Statements that take too long


@pytest.mark.parametrize("engine", ["postgresql", "mariadb", "sqlite"])
def test_scrape__of_a_statement_that_takes_too_long(
    engine: str,
    request: pytest.FixtureRequest,
    keep_history_in: Keep,
    ada: User,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    errors: Callable[[], list[str]],
) -> None:
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "history")}
    if engine != "sqlite":
        entry = new_database(request.getfixturevalue(engine))
    keep_history_in(entry)
    be_active(ada)
    connections["history"].close()
    statement = {
        "postgresql": "SELECT pg_sleep(1000)",
        "mariadb": "SELECT SLEEP(1000)",
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        " SELECT MAX(i) FROM n",
    }[engine]

    def dawdle(self: Any, now: float, context: ReadContext) -> Families:
        with context("history"), connections["history"].cursor() as cursor:
            cursor.execute(statement)
        return []

    with monkeypatch.context() as patch:
        patch.setattr(PreviousPeriods, "read", dawdle)
        found = scrape()
    assert names(found) == EVERYTHING - PREVIOUS - ACCOUNTS - GROWTH
    assert not is_up(found)
    (line,) = errors()
    assert line.startswith("Left ")
    wait_until(lambda: not collecting())
    if engine == "postgresql":  # and it does not continue in the server
        with in_postgresql(entry) as session:
            running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(1000)'"
            wait_until(lambda: session.execute(running).fetchone() == (0,))
    assert names(scrape_until(is_up)) == EVERYTHING


# The cache fails


def test_scrape__while_redis_is_down() -> None:
    redis = {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": f"redis://127.0.0.1:{servers.free_port()}/0",
    }
    with override_settings(CACHES={"default": redis}):
        assert is_up(scrape())
