"""Shared by the tests of the history: facts, brute force, and a second process to race with."""

from __future__ import annotations

import copy
import io
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import time_machine
from django.db import OperationalError, connections, router, transaction

from souvenirs import timestamps
from souvenirs.history import counting, maintenance
from souvenirs.models import (
    AccountTotals,
    DeletedMember,
    DirtyBucket,
    LastSeen,
    Rollup,
    Souvenir,
    UserDeletion,
    Watermark,
)
from souvenirs.periods import BUCKET, Interval, bucket_containing
from souvenirs.recording.throttle import throttle
from tests.people import User

T = TypeVar("T")

MINUTE, HOUR, DAY = 60, 3_600, 86_400


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Facts = Iterable[tuple[Any, float]]  # (who, when) of all activity


def unix(*args: int) -> int:
    return int(datetime(*args, tzinfo=timezone.utc).timestamp())  # type: ignore[arg-type,misc]


def at(t: float) -> Any:
    """Freeze the time at `t` in the block."""
    return time_machine.travel(t, tick=False)


def roll_up(t: float) -> None:
    with at(t):
        maintenance.roll_up()


def to_when(t: float) -> datetime:
    return timestamps.to_datetime(t)


def clear() -> None:
    """Delete all history."""
    for model in (
        Souvenir,
        LastSeen,
        Rollup,
        DirtyBucket,
        DeletedMember,
        UserDeletion,
        Watermark,
        AccountTotals,
    ):
        model.objects.all().delete()
    throttle.clear()


def people(count: int) -> list[Any]:
    return [User.objects.create(username=f"user{i}") for i in range(count)]


def record(user: Any, *times: float) -> None:
    Souvenir.objects.bulk_create(Souvenir(user_id=user.pk, when=to_when(t)) for t in times)


def brute(facts: Facts, start: float, end: float) -> int:
    return len({who for who, t in facts if start <= t < end})


def known(facts: Facts) -> list[tuple[Any, float]]:
    """What pruning keeps of facts: the bucket. They count in ranges that contain the whole
    bucket."""
    return [(who, bucket_containing(t)) for who, t in facts]


def assert_counts(facts: Facts, extra: Iterable[Interval] = ()) -> None:
    """Compare each pair of bucket boundaries, and `extra`, with brute force over `facts`."""
    facts = list(facts)
    buckets = {bucket_containing(t) for _, t in facts}
    starts = sorted({*buckets, *(bucket + BUCKET for bucket in buckets)})
    ranges = [Interval(a, b) for a in starts for b in starts if a < b]
    ranges += [Interval(starts[0] - 40 * DAY, starts[-1] + 40 * DAY), *extra]
    expected = [brute(facts, *each) for each in ranges]
    counted = counting.count_users_of_ranges(ranges)
    assert dict(zip(ranges, counted)) == dict(zip(ranges, expected))


class Statements:
    """An execute_wrapper that calls `do` before the statement with this number, counted from 0."""

    def __init__(self, number: int, do: Callable[[], object]) -> None:
        self.number, self.do = number, do
        self.left = number + 1

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            self.sql = sql
            self.do()
        return execute(sql, params, many, context)


class Before:
    """An execute_wrapper that calls `do` before the first statement that matches the pattern."""

    def __init__(self, pattern: str, do: Callable[[], object]) -> None:
        self.pattern, self.do = re.compile(pattern), do
        self.is_done = False

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if not self.is_done and self.pattern.match(sql):
            self.is_done = True
            self.do()
        return execute(sql, params, many, context)


# Parts of the errors that a losing transaction gets: SQLite, PostgreSQL (also in another isolation
# level), MariaDB
REFUSALS = ("locked", "lock timeout", "could not serialize", "Lock wait timeout")


def is_refusal(error: OperationalError) -> bool:
    return any(words in str(error) for words in REFUSALS)


class Rival:
    """Another process of the site, as far as the database of souvenirs can tell: in its `turn`, a
    second connection replaces ours. Neither waits long for the other's locks; `do` postpones
    refused work until `settle`.
    """

    def __init__(self, alias: str, make: Callable[[], Any]) -> None:
        self.alias, self.make = alias, make
        self.ours, self.theirs = make(), make()
        self.postponed: list[Callable[[], object]] = []
        self.blocks: list[Any] = []
        self.is_sqlite = self.ours.vendor == "sqlite"

    @contextmanager
    def turn(self) -> Iterator[None]:
        connections[self.alias] = self.theirs
        try:
            yield
        finally:
            connections[self.alias] = self.ours

    def do(self, action: Callable[[], object]) -> None:
        try:
            with self.turn(), hurried(self.theirs):
                action()
        except OperationalError as error:
            if not is_refusal(error):
                raise
            self.postponed.append(action)

    def settle(self) -> None:
        with self.turn():
            while self.postponed:
                self.postponed.pop(0)()

    def interrupt(self, ours: Callable[[], T], number: int, theirs: Callable[[], object]) -> T:
        """Run ours, and theirs before our statement with this number; whichever is refused runs
        after the other. Raise StopIteration if ours has fewer statements."""
        statements = Statements(number, lambda: self.do(theirs))
        try:
            with hurried(self.ours), self.ours.execute_wrapper(statements):
                result = ours()
        except OperationalError as error:
            if not is_refusal(error):
                raise
            self.ours.close()  # the transaction is over
            if statements.left > 0:
                self.do(theirs)
            self.settle()
            result = ours()
        self.settle()
        if statements.left > 0:
            raise StopIteration
        return result

    def begin(self) -> None:
        """Begin a transaction of the rival."""
        with self.turn():
            self.blocks.append(transaction.atomic(using=self.alias))
            self.blocks[-1].__enter__()

    def commit(self) -> None:
        """Commit the rival's transaction, if there is one."""
        with self.turn():
            if self.blocks:
                self.blocks.pop().__exit__(None, None, None)

    def start(self, action: Callable[[], object]) -> Job:
        """Run it in a thread."""
        return Job(self, action)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Job(threading.Thread):
    def __init__(self, rival: Rival, action: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.rival, self.action = rival, action
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        connection = self.rival.make()
        connections[self.rival.alias] = connection
        try:
            self.action()
        except BaseException as error:
            self.error = error
        finally:
            connection.close()
            connections.close_all()

    def wait_until_blocked(self) -> None:
        """Return when it waits for a lock (on SQLite, after a moment, because it has no list of
        locks) or has finished."""
        with self.rival.turn():
            deadline = time.monotonic() + 30
            while self.is_alive() and time.monotonic() < deadline:
                if self.rival.is_sqlite:
                    self.join(0.3)
                    return
                with connections[self.rival.alias].cursor() as cursor:
                    cursor.execute(
                        "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                        " AND datname = current_database()"
                        if self.rival.ours.vendor == "postgresql"
                        else "SELECT COUNT(*) FROM information_schema.innodb_trx"
                        " WHERE trx_state = 'LOCK WAIT'"
                    )
                    if cursor.fetchone()[0]:
                        return
                time.sleep(0.2)

    def finish(self) -> None:
        self.join(60)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


@contextmanager
def hurried(connection: Any) -> Iterator[None]:
    """On PostgreSQL, do not wait for locks in the block. Only there, because its vacuum takes some
    too."""
    if connection.vendor != "postgresql":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = 1")  # millisecond
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = 0")


def skip_locked(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    """An execute_wrapper: MariaDB cannot skip locked rows if it never waits for a lock."""
    if sql.endswith("SKIP LOCKED") and context["connection"].vendor == "mysql":
        sql = f"SET STATEMENT innodb_lock_wait_timeout=1 FOR {sql}"
    return execute(sql, params, many, context)


@contextmanager
def rivalry(directory: Path, *, strict: bool = False, seconds: float = 0.001) -> Iterator[Rival]:
    """A Rival; the two wait `seconds` for each other's locks. On SQLite both use a copy of the
    database in a file: in memory, connections share their cache and thus their locks.

    strict: the site has set a stricter isolation level than Django's (SQLite: transaction mode).
    """
    alias = router.db_for_write(Souvenir)
    usual = connections[alias]
    entry = copy.deepcopy(usual.settings_dict)
    options = entry["OPTIONS"]
    if usual.vendor == "sqlite":
        entry["NAME"] = str(directory / "site.sqlite3")
        with sqlite3.connect(entry["NAME"]) as target:
            usual.ensure_connection()
            usual.connection.backup(target)
        target.close()
        options["timeout"] = seconds
        options["init_command"] = "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
        if strict:
            options["transaction_mode"] = "IMMEDIATE"
    elif usual.vendor == "postgresql":
        if strict:
            from django.db.backends.postgresql.psycopg_any import IsolationLevel

            options["isolation_level"] = IsolationLevel.REPEATABLE_READ
    else:
        options["init_command"] = f"SET innodb_lock_wait_timeout={int(seconds)}"
        if strict:
            options["isolation_level"] = "repeatable read"
    wrapper: Any = type(usual)

    def make() -> Any:
        connection = wrapper(copy.deepcopy(entry), alias)
        connection.execute_wrappers.append(skip_locked)
        return connection

    rival = Rival(alias, make)
    connections[alias] = rival.ours
    try:
        yield rival
    finally:
        rival.close()
        connections[alias] = usual
