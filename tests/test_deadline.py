from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError, connections
from hypothesis import example, given
from hypothesis import strategies as st

from souvenirs_metrics.deadline import Deadline, seconds_for
from tests import servers
from tests.failing import new_database
from tests.people import ours, with_databases

# The header


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("10", 9.5),
        ("60", 59.5),
        ("1.5", 1.125),  # a quarter less, so that something remains of a short timeout
        ("0.25", 0.1875),
        ("3600", 59.5),  # at most a minute
        ("999999999", 59.5),
        ("0.000001", 0.00000075),
        ("", 9.5),  # Prometheus's default timeout
        ("0", 9.5),
        ("-1", 9.5),
        ("10s", 9.5),
        (" 10", 9.5),
        ("1e1", 9.5),
        ("inf", 9.5),
        ("nan", 9.5),
        ("1_0", 9.5),
        ("\uff11\uff10", 9.5),
    ],
)
def test_seconds_for(header: str, seconds: float) -> None:
    assert seconds_for(header) == seconds


@given(st.text() | st.floats().map(str) | st.integers().map(str))
@example("9" * 400)
@example("10\n")
def test_seconds_for__is_always_less_than_a_sensible_timeout(header: str) -> None:
    assert 0 < seconds_for(header) < 60
    if seconds_for(header) != 9.5:
        assert seconds_for(header) < float(header)


# The database. This code runs in a separate thread, as collections do


def in_thread(read: Callable[[Deadline], Any], seconds: float = 1000) -> Any:
    """What it returns or raises, with this much time."""

    def run() -> Any:
        deadline = Deadline(seconds)
        try:
            return read(deadline)
        finally:
            deadline.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def fetch_one(statement: str) -> Any:
    with ours().cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()


def sleep() -> Any:
    """Sleep for longer than any deadline."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n"
    return fetch_one(
        {
            "postgresql": "SELECT pg_sleep(1000)",
            "mysql": "SELECT SLEEP(1000)",
            "sqlite": endless,
        }[ours().vendor]
    )


def limit() -> float:
    """The statement timeout of the session in seconds; 0 for none."""
    if ours().vendor == "postgresql":
        milliseconds = fetch_one("SELECT setting FROM pg_settings WHERE name = 'statement_timeout'")
        return float(milliseconds[0]) / 1000
    return float(fetch_one("SELECT @@SESSION.max_statement_time")[0])


is_server = pytest.mark.where(ours().vendor != "sqlite")


@with_databases
def test_read_context__the_database_aborts_statements_at_the_deadline() -> None:
    def read(deadline: Deadline) -> None:
        with deadline.read_context(ours().alias):
            fetch_one("SELECT 1")
            deadline._at = time.monotonic() + 1
            with pytest.raises(
                OperationalError, match=r"statement timeout|max_statement_time|interrupted"
            ):
                sleep()

    in_thread(read)


@is_server
@with_databases
def test_read_context__a_later_statement_has_less_time() -> None:
    def read(deadline: Deadline) -> tuple[float, float]:
        with deadline.read_context(ours().alias):
            first = limit()
            deadline._at -= 40
            return first, limit()

    first, second = in_thread(read, 100)
    assert 60 < first <= 100  # less the delay of a slow machine
    assert 0 < second <= 60
    assert first - second > 39


@is_server
@with_databases
@pytest.mark.parametrize("fails", [False, True])
def test_read_context__restores_the_session(fails: bool) -> None:
    setting = {
        "postgresql": "SET statement_timeout = '77s'",
        "mysql": "SET SESSION max_statement_time = 77",
    }[ours().vendor]

    def read(deadline: Deadline) -> float:
        with ours().cursor() as cursor:
            cursor.execute(setting)
        with deadline.read_context(ours().alias):
            assert limit() > 900
            if fails:
                deadline._at = time.monotonic() + 1
                with pytest.raises(OperationalError):
                    sleep()
                raise InterruptedError
        return limit()

    def after_failure(deadline: Deadline) -> float:
        with pytest.raises(InterruptedError):
            read(deadline)
        return limit()

    assert in_thread(after_failure if fails else read) == 77


@with_databases
def test_read_context__is_a_snapshot() -> None:
    def read(deadline: Deadline) -> bool:
        with deadline.read_context(ours().alias):
            return bool(ours().in_atomic_block)

    assert in_thread(read)


@with_databases
def test_connect_within__does_not_connect_after_the_deadline() -> None:
    def read(deadline: Deadline) -> None:
        with deadline.connect_within(ours().alias):
            fetch_one("SELECT 1")
            deadline._at = time.monotonic()
            with pytest.raises(TimeoutError):
                fetch_one("SELECT 1")
        with pytest.raises(TimeoutError), deadline.connect_within(ours().alias):
            pytest.fail("there was time")

    in_thread(read)


@with_databases
def test_connect_within__does_not_retry_an_unreachable_database(
    add_database: Callable[[str, dict[str, Any]], None],
) -> None:
    tries = []

    def read(deadline: Deadline) -> None:
        wrapper = connections["lost"]

        def connect() -> None:
            tries.append(1)
            raise OperationalError("unreachable")

        wrapper.connect = connect  # type: ignore[method-assign]
        for _ in range(3):
            with (
                pytest.raises(OperationalError, match="unreachable"),
                deadline.connect_within("lost"),
            ):
                pytest.fail("connected")

    add_database("lost", {**ours().settings_dict})
    in_thread(read)
    assert len(tries) == 1


@with_databases
@pytest.mark.parametrize("is_open", [False, True])
def test_abort__aborts_the_running_statement(is_open: bool) -> None:
    begun: list[Deadline] = []

    def read(deadline: Deadline) -> None:
        if is_open:
            ours().ensure_connection()
        with deadline.connect_within(ours().alias):
            begun.append(deadline)
            sleep()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(in_thread, read)
        while not running.done():
            for deadline in begun:
                deadline.abort()  # repeatedly, because it may not have begun
            time.sleep(0.05)
        with pytest.raises(OperationalError):
            running.result()
    begun[0].abort()  # on a closed connection it does nothing
    if ours().vendor == "postgresql":  # the server has not noticed yet
        fetch_one(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(1%'"
            " AND pid <> pg_backend_pid()"
        )


@with_databases
def test_watched__aborts_the_running_statement_at_the_deadline() -> None:
    def read(deadline: Deadline) -> None:
        with deadline.watched(), deadline.connect_within(ours().alias):
            sleep()

    with pytest.raises(OperationalError):
        in_thread(read, 1)
    if ours().vendor == "postgresql":  # the server has aborted it, too
        running = (
            "SELECT COUNT(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(1%'"
            " AND state = 'active' AND pid <> pg_backend_pid()"
        )
        servers.wait_until(lambda: fetch_one(running) == (0,))


def test_restart__gives_the_next_step_as_much_time() -> None:
    deadline = Deadline(100)
    deadline._started -= 80
    deadline._at -= 80
    deadline.restart()
    assert 20 < deadline.remaining() <= 100


def test_restart__does_not_revive_an_expired_deadline() -> None:
    deadline = Deadline(0)
    deadline.restart()
    assert deadline.remaining() <= 0


def test_extend__never_shortens() -> None:
    deadline = Deadline(100)
    deadline.extend(10)
    assert 10 < deadline.remaining() <= 100
    deadline.extend(200)
    assert 100 < deadline.remaining() <= 200


def test_extend__does_not_postpone_it_for_ever() -> None:
    deadline = Deadline(2)
    time.sleep(0.5)
    deadline.extend(2)  # for a scraper that came later
    assert deadline.remaining() <= 1.5


def test_extend__does_not_revive_an_expired_deadline() -> None:
    deadline = Deadline(0)
    deadline.extend(100)
    assert deadline.remaining() <= 0


# Connections that others use after us


@pytest.mark.own_site
def test_pool__gets_its_connection_back_unchanged(
    postgresql: dict[str, Any], run_site: Callable[..., str]
) -> None:
    options = {"pool": {"min_size": 1, "max_size": 1, "timeout": 30}}
    databases = {"default": new_database(postgresql, **options)}
    code = """
from django.db import connection
def session():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_backend_pid(), current_setting('statement_timeout'),"
            " current_setting('jit'), current_setting('transaction_isolation')"
        )
        return cursor.fetchone()
before = session()
for _ in range(3):
    print("souvenirs_up 1.0" in Client().get("/metrics").text, session() == before)
connection.close_pool()
"""
    assert run_site(code, f"DATABASES = {databases!r}") == "True True\n" * 3
