"""Deadlines of collections and upkeep steps, enforced in the databases that they query too."""

from __future__ import annotations

import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from django.db import InterfaceError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from souvenirs.databases import connect_options, statement_limit
from souvenirs.isolation import repeatable_read

HEADER = "X-Prometheus-Scrape-Timeout-Seconds"
DEFAULT_SECONDS = 10.0  # without the header: Prometheus's own default
MAX_SECONDS = 60.0  # a scrape holds a worker of the site for as long as its database hangs
MIN_COLLECTION_SECONDS = 0.5  # even for a scrape with less time, as others may share its collection
MARGIN_SECONDS = 0.5  # for the network, and for the rest of the page

CANCEL_SECONDS = 5.0  # how long a server may take to accept a cancel request
REPEAT_ABORT_SECONDS = 0.5  # between aborts, while the work goes on

TOLERANCE_SECONDS = 0.1  # between a statement's limit and the deadline

# How many seconds a collection that begins in this context may take. A context variable, because
# registries call their collectors without arguments
scrape_timeout: ContextVar[float] = ContextVar(
    "souvenirs_metrics_scrape_timeout", default=DEFAULT_SECONDS
)


def seconds_for(header: str) -> float:
    """The number of seconds that a collection may take for a scraper that sends this header: its
    timeout, at most a minute, less a margin. A header that is not a positive number is ignored."""
    timeout = float(header) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,20})?", header) else 0
    timeout = min(timeout, MAX_SECONDS) if timeout > 0 else DEFAULT_SECONDS
    return timeout - min(MARGIN_SECONDS, timeout / 4)


class Deadline:
    """The time at which a collection, or one step of longer work, must end.

    Any thread may call `extend`, `cancel` and `abort`. All other methods are for the thread that
    does the work, which must not be in a transaction.

    keeps_connections: whether `close` leaves the thread's database connections open.
    """

    def __init__(self, seconds: float, *, keeps_connections: bool = False) -> None:
        self._keeps_connections = keeps_connections
        self._started = time.monotonic()
        self._at = self._started + seconds
        self._lock = threading.Lock()  # guards the aborters: none may be called after `close`
        self._aborters: dict[str, tuple[Any, Callable[[], object]]] = {}  # by alias
        self._cancellers: dict[str, Callable[..., object]] = {}  # by alias
        self._handles = ExitStack()
        self._lost: dict[str, Exception] = {}

    def remaining(self) -> float:
        """Seconds until the deadline, negative once it has passed."""
        return self._at - time.monotonic()

    def extend(self, seconds: float) -> None:
        """Extend the deadline for another waiting scrape, which has this many seconds.

        A deadline that has passed does not change.
        """
        if self.remaining() > 0:
            # From the start, or else overlapping scrapes would postpone it forever
            self._at = max(self._at, self._started + seconds)

    def restart(self) -> None:
        """Give the next step as much time as the first one had.

        A deadline that has passed does not change.
        """
        if self.remaining() > 0:
            now = time.monotonic()
            self._at, self._started = now + self._at - self._started, now

    @contextmanager
    def watched(self) -> Iterator[None]:
        """At the deadline, abort database calls that are still waiting, from another thread."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(max(self.remaining(), REPEAT_ABORT_SECONDS)):
                if self.remaining() <= 0:
                    self.cancel()
                    self.abort()  # repeatedly, as there may be a new connection since

        threading.Thread(target=watch, name="souvenirs-deadline", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    @contextmanager
    def connect_within(self, using: str) -> Iterator[BaseDatabaseWrapper]:
        """Connect, and yield a connection whose statements must begin before the deadline.

        Raise TimeoutError if there is no time left. If the connection was lost before, raise the
        same error again without reconnecting.
        """
        if using in self._lost:
            raise self._lost[using]
        connection = connections[using]
        try:
            self._connect(connection)
            with connection.execute_wrapper(self._check):
                yield connection
        except (OperationalError, InterfaceError) as error:
            if connection.connection is None or not connection.is_usable():
                self._lost[using] = error
            raise

    @contextmanager
    def read_context(self, using: str) -> Iterator[None]:
        """Open a snapshot in which the database cancels statements at the deadline.

        Session settings are restored afterwards, as the connection may belong to a pool. Raises the
        same errors as `connect_within`.
        """
        with self.connect_within(using) as connection:
            granted = math.inf

            def limited(execute: Callable[..., Any], *args: Any) -> Any:
                nonlocal granted
                if abs(granted - self.remaining()) > TOLERANCE_SECONDS:
                    granted = self.remaining()
                    limit(max(1, round(granted * 1000)))
                return execute(*args)

            with (
                statement_limit(connection) as limit,
                connection.execute_wrapper(limited),
                repeatable_read(using),
            ):
                yield

    def _connect(self, connection: Any) -> None:
        self._check_time()
        options = connect_options(connection, self.remaining())
        self._handles.callback(setattr, connection, "settings_dict", connection.settings_dict)
        # In a copy, because all threads share the entry in DATABASES
        connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
        if connection.connection is not None:  # a persistent one
            try:
                self._make_abortable(connection.alias, connection.connection)
            except (OSError, connection.Database.Error):  # it is lost
                connection.close()
        if connection.connection is None:
            get_new_connection = connection.get_new_connection

            def abortable(params: Any) -> Any:  # even while Django initializes the connection
                new = get_new_connection(params)
                self._make_abortable(connection.alias, new)
                return new

            connection.get_new_connection = abortable
            try:
                connection.ensure_connection()
            finally:
                connection.get_new_connection = get_new_connection
            self._check_time()

    def _make_abortable(self, alias: str, driver_connection: Any) -> None:
        with self._lock:
            known, _abort = self._aborters.get(alias, (None, None))
            if known is not driver_connection:
                abort = make_aborter(driver_connection, self._handles)
                self._aborters[alias] = driver_connection, abort
                if hasattr(driver_connection, "cancel_safe"):  # psycopg
                    self._cancellers[alias] = driver_connection.cancel_safe

    def _check_time(self) -> None:
        if self.remaining() <= 0:
            raise TimeoutError("there was no time left")

    def _check(self, execute: Callable[..., Any], *args: Any) -> Any:
        self._check_time()
        return execute(*args)

    def abort(self) -> None:
        """Make every blocked database call fail. May be called from any thread.

        This is for servers that do not cancel the statement themselves. A frozen server, or one
        that a failover has replaced, can stay silent for hours while its kernel answers TCP
        keepalives. Abandoned threads would wait that long and hold their connections; if their
        number were bounded, scrapes would not recover when the server is replaced.
        """
        with self._lock:
            for _connection, abort in self._aborters.values():
                with suppress(Exception):  # the connection may be closed by now
                    abort()

    def cancel(self) -> None:
        """Ask PostgreSQL to cancel running statements. May be called from any thread; it can block
        for CANCEL_SECONDS.

        A statement that waits for a lock does not notice that its client is gone, so each retry
        would leave another one behind. MySQL and MariaDB do notice.
        """
        with self._lock:
            for cancel in self._cancellers.values():
                with suppress(Exception):  # the connection may be closed, or the server down
                    cancel(timeout=CANCEL_SECONDS)

    def close(self) -> None:
        """End the work, and close the thread's connections unless `keeps_connections`."""
        with self._lock:
            self._aborters.clear()  # a pool hands its connections to other threads
            self._cancellers.clear()
        if not self._keeps_connections:
            connections.close_all()
        self._handles.close()


def make_aborter(connection: Any, handles: ExitStack) -> Callable[[], object]:
    """Return a callable with which another thread can abort a blocked driver call.

    A socket is shut down through a duplicate, which `handles` closes: the driver may have closed
    its own file descriptor by then, and the number may belong to another file.
    """
    if hasattr(connection, "interrupt"):  # SQLite
        return connection.interrupt  # type: ignore[no-any-return]
    if not hasattr(connection, "fileno"):  # PyMySQL
        return lambda: None
    duplicate = handles.enter_context(socket.socket(fileno=os.dup(connection.fileno())))
    return lambda: duplicate.shutdown(socket.SHUT_RDWR)
