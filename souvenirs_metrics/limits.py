"""How each database limits a statement's time, and how a connection to it is aborted."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

MIN_CONNECT_SECONDS = 2  # libpq takes no less
SQLITE_STEPS = 10_000  # instructions of its virtual machine between two looks at the clock

SetLimit = Callable[[int], object]


@contextmanager
def postgresql_limit(connection: BaseDatabaseWrapper) -> Iterator[SetLimit]:
    # It ends with the transaction, also if a pooler gives the session to another client
    yield lambda ms: execute(connection, f"SET LOCAL statement_timeout = {ms}")


@contextmanager
def mysql_limit(connection: Any) -> Iterator[SetLimit]:
    name = "max_statement_time" if connection.mysql_is_mariadb else "max_execution_time"
    unit = "/ 1000" if connection.mysql_is_mariadb else ""  # MariaDB's is in seconds
    (before,) = execute(connection, f"SELECT @@SESSION.{name}")
    try:
        yield lambda ms: execute(connection, f"SET SESSION {name} = {ms} {unit}")
    finally:
        with suppress(DatabaseError):  # the connection may be lost
            execute(connection, f"SET SESSION {name} = {before}")


@contextmanager
def sqlite_limit(connection: BaseDatabaseWrapper) -> Iterator[SetLimit]:
    def limit(ms: int) -> None:
        end = time.monotonic() + ms / 1000
        connection.connection.set_progress_handler(lambda: time.monotonic() > end, SQLITE_STEPS)

    try:
        yield limit
    finally:
        if connection.connection is not None:
            connection.connection.set_progress_handler(None, 0)


# By vendor: a context with a function that sets how many milliseconds each statement may take
LIMITS: Mapping[str, Callable[[Any], AbstractContextManager[SetLimit]]] = {
    "postgresql": postgresql_limit,
    "mysql": mysql_limit,
    "sqlite": sqlite_limit,
}


def has_connect_timeout(connection: BaseDatabaseWrapper) -> bool:
    """Whether the option connect_timeout works. A pool connects in its own threads."""
    is_server = connection.vendor in ("postgresql", "mysql")
    return is_server and not connection.settings_dict["OPTIONS"].get("pool")


def execute(connection: BaseDatabaseWrapper, sql: str) -> Any:
    """Run a statement without the execute wrappers. Return its first row, if it returns rows."""
    with connection.wrap_database_errors, connection.connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone() if cursor.description else None


def make_aborter(connection: Any, handles: ExitStack) -> Callable[[], object]:
    """Return a callable with which another thread can abort a driver's blocked call.

    Sockets are aborted through a duplicate, closed with `handles`: by then, the number of the
    driver's own file descriptor may be another file's.
    """
    if hasattr(connection, "interrupt"):  # SQLite
        return connection.interrupt  # type: ignore[no-any-return]
    if not hasattr(connection, "fileno"):  # PyMySQL
        return lambda: None
    duplicate = handles.enter_context(socket.socket(fileno=os.dup(connection.fileno())))
    return lambda: duplicate.shutdown(socket.SHUT_RDWR)
