"""Real databases of souvenirs that fail in many ways and recover. A module that uses them imports
the fixtures."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import MySQLdb
import psycopg
import pytest
from django.core.management import call_command
from django.db import connections
from django.test import override_settings

from souvenirs.breaker import PROBE_SECONDS
from tests import servers

LOCK_SECONDS = 0.6  # how long the site waits for a lock
CONNECT_SECONDS = 2  # how long it waits for a connection

Entry = dict[str, Any]


class Case(NamedTuple):
    """A kind of failure, and what its error message contains."""

    broken: Callable[[], AbstractContextManager[None]]
    cause: str


class UseCounter:
    """Counts how often the test's thread uses the database of souvenirs."""

    times = 0

    def add(self) -> None:
        self.times += 1


@pytest.fixture
def use_counter() -> UseCounter:
    return UseCounter()


@pytest.fixture
def keep_history_in(
    add_database: Callable[[str, Entry], None], use_counter: UseCounter
) -> Iterator[Callable[..., None]]:
    """`keep_history_in(entry)` stores souvenirs in that database until the test ends."""

    def keep(entry: Entry, *, migrate: bool = True) -> None:
        add_database("history", entry)
        wrapper = connections["history"]
        ensure_connection = wrapper.ensure_connection

        def counted() -> None:  # called for each statement
            use_counter.add()
            ensure_connection()

        wrapper.ensure_connection = counted  # type: ignore[method-assign]
        if migrate:
            call_command("migrate", database="history", verbosity=0)

    with override_settings(DATABASE_ROUTERS=["tests.users.routers.History"]):
        yield keep


def in_postgresql(entry: Entry, database: str = "") -> psycopg.Connection[Any]:
    """Another client's connection, in autocommit mode."""
    return psycopg.connect(
        host=entry["HOST"],
        port=entry["PORT"],
        user=entry["USER"],
        dbname=database or entry["NAME"],
        autocommit=True,
        connect_timeout=5,
    )


def in_mariadb(entry: Entry) -> MySQLdb.Connection:
    return MySQLdb.connect(host=entry["HOST"], port=int(entry["PORT"]), user=entry["USER"])


def new_database(entry: Entry, **options: Any) -> Entry:
    """Create an empty database on the server of `entry`."""
    name = f"history_{time.monotonic_ns()}"
    is_postgresql = "postgresql" in entry["ENGINE"]
    session = in_postgresql(entry) if is_postgresql else in_mariadb(entry)
    session.cursor().execute(f"CREATE DATABASE {name}")
    session.close()
    return {**entry, "NAME": name, "OPTIONS": options}


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Freeze a server and its children. The system still accepts connections on its behalf."""
    pids = [pid]
    stop(pid)  # first, so that it neither starts nor reaps children
    try:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pids.append(int(child))
            stop(int(child))
        yield
    finally:
        for each in reversed(pids):
            os.kill(each, signal.SIGCONT)


def stop(pid: int) -> None:
    """Stop the process; return when all its threads have stopped."""
    os.kill(pid, signal.SIGSTOP)
    for thread in Path(f"/proc/{pid}/task").iterdir():
        while (thread / "stat").read_text().rpartition(")")[2].split()[0] not in "TXZ":
            time.sleep(0.01)


def postgresql_pid(entry: Entry) -> int:
    with in_postgresql(entry) as session:
        row = session.execute("SHOW data_directory").fetchone()
    assert row
    return int((Path(row[0]) / "postmaster.pid").read_text().split()[0])


def postgresql_stopped(request: Any, keep: Callable[..., None]) -> Case:
    stack = ExitStack()
    request.addfinalizer(stack.close)
    server = stack.enter_context(servers.restartable("postgresql"))
    keep({**server.entry, "CONN_MAX_AGE": None})

    @contextmanager
    def broken() -> Iterator[None]:
        server.stop()
        try:
            yield
        finally:
            server.start()

    return Case(broken, "connection")


def postgresql_frozen(request: Any, keep: Callable[..., None]) -> Case:
    entry = new_database(request.getfixturevalue("postgresql"), connect_timeout=CONNECT_SECONDS)
    keep(entry)
    connections["history"].close()
    return Case(lambda: frozen(postgresql_pid(entry)), "timeout")


def postgresql_silent(request: Any, keep: Callable[..., None]) -> Case:
    """A listener accepts connections at the server's address and never answers. To a client, that
    looks like a frozen server."""
    entry = new_database(request.getfixturevalue("postgresql"), connect_timeout=CONNECT_SECONDS)
    keep(entry)
    connections["history"].close()

    @contextmanager
    def broken() -> Iterator[None]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            options = connections["history"].settings_dict
            options["PORT"] = str(listener.getsockname()[1])
            try:
                yield
            finally:
                options["PORT"] = entry["PORT"]

    return Case(broken, "timeout")


def mariadb_frozen(request: Any, keep: Callable[..., None]) -> Case:
    """Freezes while a connection to it is open, and used."""
    entry = new_database(
        request.getfixturevalue("mariadb"),
        connect_timeout=CONNECT_SECONDS,
        read_timeout=CONNECT_SECONDS,
    )
    keep({**entry, "CONN_MAX_AGE": None})
    cursor = in_mariadb(entry).cursor()
    cursor.execute("SELECT @@pid_file")
    pid = int(Path(cursor.fetchone()[0]).read_text())
    cursor.connection.close()
    return Case(lambda: frozen(pid), "Lost connection")


def postgresql_read_only(request: Any, keep: Callable[..., None]) -> Case:
    entry = new_database(request.getfixturevalue("postgresql"))
    keep(entry)

    @contextmanager
    def broken() -> Iterator[None]:
        connections["history"].close()
        setting = f"ALTER DATABASE {entry['NAME']} {{}} default_transaction_read_only"
        with in_postgresql(entry, "postgres") as session:
            session.execute(setting.format("SET") + " = on")  # type: ignore[arg-type]
            yield
            session.execute(setting.format("RESET"))  # type: ignore[arg-type]
        connections["history"].close()

    return Case(broken, "read-only transaction")


def mariadb_without_rights(request: Any, keep: Callable[..., None]) -> Case:
    entry = new_database(request.getfixturevalue("mariadb"))
    keep(entry)

    @contextmanager
    def broken() -> Iterator[None]:
        connections["history"].close()
        session = in_mariadb(entry)
        cursor = session.cursor()
        cursor.execute("CREATE USER reader@'%'")
        cursor.execute(f"GRANT SELECT ON {entry['NAME']}.* TO reader@'%'")
        connections["history"].settings_dict["USER"] = "reader"
        try:
            yield
        finally:
            connections["history"].settings_dict["USER"] = entry["USER"]
            connections["history"].close()
            cursor.execute("DROP USER reader@'%'")
            session.close()

    return Case(broken, "command denied")


def sqlite_read_only(request: Any, keep: Callable[..., None]) -> Case:
    file = request.getfixturevalue("tmp_path") / "history.sqlite3"
    entry = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": {"uri": True}}
    keep({**entry, "NAME": f"file:{file}"})

    @contextmanager
    def broken() -> Iterator[None]:
        connections["history"].close()
        connections["history"].settings_dict["NAME"] = f"file:{file}?mode=ro"
        try:
            yield
        finally:
            connections["history"].close()
            connections["history"].settings_dict["NAME"] = f"file:{file}"

    return Case(broken, "readonly database")


def sqlite_locked(request: Any, keep: Callable[..., None]) -> Case:
    file = str(request.getfixturevalue("tmp_path") / "history.sqlite3")
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": file}
    keep({**entry, "OPTIONS": {"timeout": LOCK_SECONDS}})

    @contextmanager
    def broken() -> Iterator[None]:
        session = sqlite3.connect(file)
        session.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            session.rollback()
            session.close()

    return Case(broken, "database is locked")


@contextmanager
def locked(entry: Entry, table: str) -> Iterator[None]:
    with in_postgresql(entry) as session, session.transaction():
        session.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")  # type: ignore[arg-type]
        yield


def postgresql_locked(request: Any, keep: Callable[..., None]) -> Case:
    options = f"-c lock_timeout={int(LOCK_SECONDS * 1000)}"
    entry = new_database(request.getfixturevalue("postgresql"), options=options)
    keep(entry)
    cause = "lock timeout"
    return Case(lambda: locked(entry, "souvenirs_souvenir"), cause)


def before_migrate(entry: Entry, cause: str, keep: Callable[..., None]) -> Case:
    keep(entry, migrate=False)

    @contextmanager
    def broken() -> Iterator[None]:
        yield
        call_command("migrate", database="history", verbosity=0)

    return Case(broken, cause)


def postgresql_before_migrate(request: Any, keep: Callable[..., None]) -> Case:
    entry = new_database(request.getfixturevalue("postgresql"))
    return before_migrate(entry, 'relation "souvenirs_', keep)


def mariadb_before_migrate(request: Any, keep: Callable[..., None]) -> Case:
    entry = new_database(request.getfixturevalue("mariadb"))
    return before_migrate(entry, "doesn't exist", keep)


def sqlite_before_migrate(request: Any, keep: Callable[..., None]) -> Case:
    file = str(request.getfixturevalue("tmp_path") / "history.sqlite3")
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": file}
    return before_migrate(entry, "no such table: souvenirs_", keep)


AWAY = [postgresql_stopped, postgresql_frozen, postgresql_silent, mariadb_frozen]
REFUSING = [
    postgresql_read_only,
    postgresql_locked,
    postgresql_before_migrate,
    mariadb_without_rights,
    mariadb_before_migrate,
    sqlite_read_only,
    sqlite_locked,
    sqlite_before_migrate,
]


@pytest.fixture
def case(request: Any, keep_history_in: Callable[..., None]) -> Case:
    made: Case = request.param(request, keep_history_in)
    return made


def cases(*functions: Callable[..., Case]) -> pytest.MarkDecorator:
    ids = [function.__name__ for function in functions]
    soak = {postgresql_silent: pytest.mark.soak}
    params = [pytest.param(each, marks=soak.get(each, [])) for each in functions]
    return pytest.mark.parametrize("case", params, indirect=True, ids=ids)


# Breakers, and what they log


class BreakerClock:
    """A monotonic clock that stands still, so that a slow machine does not cause a second probe."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def pass_period(self) -> None:
        self.now += PROBE_SECONDS


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> BreakerClock:
    clock = BreakerClock()
    monkeypatch.setattr("souvenirs.breaker.time", clock)
    return clock


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The logged errors, with their causes."""
    return [
        f"{record.getMessage()} {record.exc_info and record.exc_info[1]}"
        for record in caplog.records
        if record.name == "souvenirs" and record.levelno == logging.ERROR
    ]
