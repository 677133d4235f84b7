"""Long-running code outside of requests: a bot, a socket server. Its connections outlive the
database server, and no end of a request drops the dead ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import DatabaseError, InterfaceError, connections, transaction

from souvenirs import control
from souvenirs.control import active_users_between, count_active_users, last_seen, souvenez
from souvenirs.models import LastSeen, Souvenir
from souvenirs.recording import memory
from souvenirs.recording.throttle import throttle
from tests import failing, servers
from tests.failing import Entry, new_database
from tests.servers import Restartable

pytestmark = [
    pytest.mark.own_site,
    pytest.mark.slow,
    pytest.mark.django_db(transaction=True),
]

use_counter, keep_history_in = failing.use_counter, failing.keep_history_in

Keep = Callable[..., None]
LOST = (DatabaseError, InterfaceError)  # the errors raised on a dead connection
ENGINES = ["postgresql", "mariadb"]


@pytest.fixture(scope="module", params=ENGINES)
def server(request: Any) -> Iterator[Restartable]:
    with servers.restartable(request.param) as server:
        yield server


@pytest.fixture
def entry(server: Restartable) -> Entry:
    return new_database(server.entry)


@pytest.fixture
def ada() -> User:
    ada: User = User.objects.create(username="ada")
    return ada


def forget_minute() -> None:
    """Make the next visit write last-seen only, as in another minute: its row exists."""
    memory.clear()


def forget_slot() -> None:
    """Make the next visit write everything, as in another hour."""
    throttle.clear()
    Souvenir.objects.all().delete()
    LastSeen.objects.all().delete()


def bot(*steps: Callable[[], Awaitable[object]]) -> list[Any]:
    """What the steps return or raise, in one event loop and with one thread for synchronous
    code."""

    async def main() -> list[Any]:
        try:
            return [(await asyncio.gather(step(), return_exceptions=True))[0] for step in steps]
        finally:
            await sync_to_async(leave)()

    def leave() -> None:
        """Reset the connection: the thread is reused by the next test, which has another database
        of this alias."""
        connections.close_all()
        del connections["history"]

    return asyncio.run(main())


def outcomes(results: list[Any]) -> list[str]:
    return ["failed" if isinstance(each, LOST) else each for each in results]


@pytest.mark.parametrize("forget", [forget_minute, forget_slot])
def test_asouvenez__after_a_restart_fails_once(
    server: Restartable, entry: Entry, keep_history_in: Keep, ada: User, forget: Callable[[], None]
) -> None:
    keep_history_in(entry)

    async def after_restart() -> str:
        await sync_to_async(forget)()
        server.restart()
        return await visit()

    async def visit() -> str:
        return await control.asouvenez(ada)

    written = "rate-limited" if forget is forget_minute else "added"
    assert outcomes(bot(visit, after_restart, visit)) == ["added", "failed", written]


@pytest.mark.parametrize("forget", [forget_minute, forget_slot])
def test_asouvenez__with_health_checks_does_not_notice_a_restart(
    server: Restartable, entry: Entry, keep_history_in: Keep, ada: User, forget: Callable[[], None]
) -> None:
    keep_history_in({**entry, "CONN_HEALTH_CHECKS": True})

    async def visit() -> str:
        return await control.asouvenez(ada)

    async def after_restart() -> str:
        await sync_to_async(forget)()
        server.restart()
        return await visit()

    written = "rate-limited" if forget is forget_minute else "added"
    assert bot(visit, after_restart) == ["added", written]


def test_asouvenez__works_again_after_calls_while_the_server_was_down(
    server: Restartable, entry: Entry, keep_history_in: Keep, ada: User
) -> None:
    keep_history_in(entry)

    async def visit() -> str:
        forget_minute()
        return await control.asouvenez(ada)

    async def stop() -> None:
        server.stop()

    async def start() -> None:
        server.start()

    results = bot(visit, stop, visit, visit, start, visit)
    assert outcomes(results) == ["added", None, "failed", "failed", None, "rate-limited"]


@pytest.mark.parametrize(
    "function", [souvenez, last_seen, count_active_users, active_users_between]
)
def test_functions__after_a_restart_fail_once(
    server: Restartable, entry: Entry, keep_history_in: Keep, ada: User, function: Any
) -> None:
    keep_history_in(entry)
    call = partial(function, ada) if function in (souvenez, last_seen) else function
    call()
    server.restart()
    forget_minute()
    with pytest.raises(LOST):
        call()
    call()


# A working connection belongs to the caller


@pytest.fixture(params=ENGINES)
def running(request: Any, keep_history_in: Keep) -> Any:
    """The connection to a server that keeps running, under the settings that close a connection
    soonest."""
    entry = new_database(request.getfixturevalue(request.param))
    keep_history_in({**entry, "CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": True})
    return connections["history"]


def fail(connection: Any) -> None:
    with pytest.raises(DatabaseError, match="nowhere"), connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM nowhere")


def test_connection__stays_open_while_it_works(running: Any, ada: User) -> None:
    before = running.connection
    fail(running)
    assert souvenez(ada) == "added"
    assert running.connection is before
    assert not running.errors_occurred  # checked once for each error


def test_connection__with_an_open_cursor_stays_open(running: Any, ada: User) -> None:
    for _ in range(5):
        souvenez(ada, ratelimit=False)
    rows = Souvenir.objects.iterator(chunk_size=2)  # PostgreSQL: a server-side cursor
    found = [next(rows)]
    fail(running)
    souvenez(ada, ratelimit=False)
    assert len([*found, *rows]) == 5


def test_connection__in_a_transaction_is_left_alone(running: Any, ada: User) -> None:
    with suppress(LOST), transaction.atomic(using="history"):
        before = running.connection
        kill(running)
        for _ in range(2):
            with pytest.raises(LOST):
                souvenez(ada)
        assert running.connection is before  # a new connection would not be in the transaction
    assert souvenez(ada) == "added"


def test_connection__without_autocommit_is_left_to_the_caller(
    postgresql: Entry, keep_history_in: Keep, ada: User
) -> None:
    keep_history_in(new_database(postgresql))
    ours = connections["history"]
    ours.set_autocommit(False)
    before = ours.connection
    assert souvenez(ada) == "added"
    fail(ours)
    with pytest.raises(DatabaseError, match="aborted"):  # like everything, until the rollback
        last_seen(ada)
    assert ours.connection is before
    ours.rollback()
    ours.set_autocommit(True)
    assert not Souvenir.objects.exists()


def kill(connection: Any) -> None:
    """Make the server terminate the session."""
    entry = connection.settings_dict
    if connection.vendor == "postgresql":
        with failing.in_postgresql(entry) as session:
            pid = connection.connection.info.backend_pid
            session.execute("SELECT pg_terminate_backend(%s)", [pid])
    else:
        session = failing.in_mariadb(entry)
        session.cursor().execute("KILL %s", [connection.connection.thread_id()])
        session.close()
