"""When a collection, or a step of the upkeep, has to end: in the databases that it queries too."""

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
MIN_COLLECTION_SECONDS = 0.5  # other scrapes may share what one with less time has begun
MARGIN_SECONDS = 0.5  # for the network, and for the rest of the page

CANCEL_SECONDS = 5.0  # that a server has to take a request to cancel a statement
REPEAT_ABORT_SECONDS = 0.5  # between two aborts of what goes on

TOLERANCE_SECONDS = 0.1  # between a statement's limit and the deadline

# Seconds that a collection may take which begins in this context. A context variable, as registries
# call their collectors without arguments
scrape_timeout: ContextVar[float] = ContextVar(
    "souvenirs_metrics_scrape_timeout", default=DEFAULT_SECONDS
)


def seconds_for(header: str) -> float:
    """The seconds that a collection may take for a scraper that sends this header: its timeout less
    a margin, at most a minute. Anything but a positive number is treated as if it were missing."""
    timeout = float(header) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,20})?", header) else 0
    timeout = min(timeout, MAX_SECONDS) if timeout > 0 else DEFAULT_SECONDS
    return timeout - min(MARGIN_SECONDS, timeout / 4)


class Deadline:
    """When a collection has to end, or each step of long work.

    The thread that works calls all methods but `extend`, `cancel` and `abort`. It must not be in a
    transaction.

    keeps_connections: whether `close` leaves the thread's database connections open.
    """

    def __init__(self, seconds: float, *, keeps_connections: bool = False) -> None:
        self._keeps_connections = keeps_connections
        self._started = time.monotonic()
        self._at = self._started + seconds
        self._lock = threading.Lock()  # of the aborters: none may be called after `close`
        self._aborters: dict[str, tuple[Any, Callable[[], object]]] = {}  # by alias
        self._cancellers: dict[str, Callable[..., object]] = {}  # by alias
        self._handles = ExitStack()
        self._lost: dict[str, Exception] = {}

    def remaining(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._at - time.monotonic()

    def extend(self, seconds: float) -> None:
        """Another scrape waits too, and has this much time. A deadline that has passed stays."""
        if self.remaining() > 0:
            # From the start, or else overlapping scrapes would put it off forever
            self._at = max(self._at, self._started + seconds)

    def restart(self) -> None:
        """Give the next step as much time as the first had. A deadline that has passed stays."""
        if self.remaining() > 0:
            now = time.monotonic()
            self._at, self._started = now + self._at - self._started, now

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Abort what waits for a database at the deadline, from another thread."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(max(self.remaining(), REPEAT_ABORT_SECONDS)):
                if self.remaining() <= 0:
                    self.cancel()
                    self.abort()  # again and again, as it may have connected since

        threading.Thread(target=watch, name="souvenirs-deadline", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    @contextmanager
    def connect_within(self, using: str) -> Iterator[BaseDatabaseWrapper]:
        """A connection whose statements must begin before the deadline.

        Raise TimeoutError if there is no time left. If the database has been lost before, raise the
        same error again without connecting.
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
        """A snapshot in which the database cancels statements at the deadline.

        The session is left as it was, since it may be a pool's. Raises as `connect_within` does.
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
        # In a copy, as all threads share the entry of DATABASES
        connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
        if connection.connection is not None:  # a persistent one
            try:
                self._make_abortable(connection.alias, connection.connection)
            except (OSError, connection.Database.Error):  # it is lost
                connection.close()
        if connection.connection is None:
            get_new_connection = connection.get_new_connection

            def abortable(params: Any) -> Any:  # also while Django initializes the connection
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
        """Make whatever waits for a database fail. For any thread.

        Needed if the server itself does not cancel the statement. A frozen server, or one that a
        failover has replaced, keeps silent for hours while its kernel answers TCP keepalives.
        Abandoned threads would wait that long, with their connections; with a bound on their
        number, scrapes would not recover when the server is replaced.
        """
        with self._lock:
            for _connection, abort in self._aborters.values():
                with suppress(Exception):  # the connection may be closed by now
                    abort()

    def cancel(self) -> None:
        """Have PostgreSQL end what it runs. For any thread, which may wait for CANCEL_SECONDS.

        A statement that waits for a lock does not notice that its client has gone, and each retry
        would leave another one. MySQL and MariaDB notice it.
        """
        with self._lock:
            for cancel in self._cancellers.values():
                with suppress(Exception):  # the connection may be closed by now, the server away
                    cancel(timeout=CANCEL_SECONDS)

    def close(self) -> None:
        """End the collection, and close the thread's connections unless they are to be kept."""
        with self._lock:
            self._aborters.clear()  # a pool gives its connections to others
            self._cancellers.clear()
        if not self._keeps_connections:
            connections.close_all()
        self._handles.close()


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
