"""The scraper's timeout -> when a collection has to end, in the databases that it asks too."""

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
DEFAULT_SECONDS = 10.0  # Prometheus's own default, for who does not say
MOST_SECONDS = 3600.0
MARGIN_SECONDS = 0.5  # for the way there and back, and for the rest of the page

TOLERANCE_SECONDS = 0.1  # between a statement's limit and the deadline

# How long a collection that begins in this context may take. A context variable, since registries
# ask their collectors without arguments
seconds: ContextVar[float] = ContextVar("souvenirs_metrics_seconds", default=DEFAULT_SECONDS)


def seconds_for(header: str) -> float:
    """How long a collection may take for a scraper that sends this header: its timeout less a
    margin. What is no number of seconds, or none from 0 to an hour, is as if it were not there."""
    timeout = float(header) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,20})?", header) else 0
    if not 0 < timeout <= MOST_SECONDS:
        timeout = DEFAULT_SECONDS
    return timeout - min(MARGIN_SECONDS, timeout / 4)


class Deadline:
    """When a collection has to end. Its methods but `extend` and `sever` are for the thread that
    collects, which has database connections of its own and must not be in a transaction."""

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self._at = self._began + seconds
        self._lock = threading.Lock()  # of the ways to end, which are not to be taken after `close`
        self._ways_to_end: list[Callable[[], object]] = []
        self._handles = ExitStack()
        self._lost: dict[str, Exception] = {}

    def remaining(self) -> float:
        """Seconds; negative if it has passed."""
        return self._at - time.monotonic()

    def extend(self, seconds: float) -> None:
        """Somebody else waits, who has this much time. What has passed is not taken back."""
        if self.remaining() > 0:
            # From the beginning, or scrapes that overlap would put it off for ever
            self._at = max(self._at, self._began + seconds)

    @contextmanager
    def asking(self, using: str) -> Iterator[BaseDatabaseWrapper]:
        """A connection for statements that begin before the deadline.

        A database that has been lost is not asked again: its error is raised again. Raises
        TimeoutError if there is no time left.
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
    def reading(self, using: str) -> Iterator[None]:
        """A snapshot, in which the database ends statements at the deadline. Afterwards, the
        connection is as it was: it may be a pool's. Raises as `asking`."""
        with self.asking(using) as connection:
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
        # The entry of DATABASES is all threads'
        connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
        if connection.connection is None:
            get_new_connection = connection.get_new_connection

            def endable(params: Any) -> Any:  # also while Django asks a new connection something
                new = get_new_connection(params)
                self._ways_to_end.append(way_to_end(new, self._handles))
                return new

            connection.get_new_connection = endable
            try:
                connection.ensure_connection()
            finally:
                connection.get_new_connection = get_new_connection
            self._check_time()

    def _check_time(self) -> None:
        if self.remaining() <= 0:
            raise TimeoutError("there was no time left")

    def _check(self, execute: Callable[..., Any], *args: Any) -> Any:
        self._check_time()
        return execute(*args)

    def sever(self) -> None:
        """Ends what runs on the connections: for a database that does not do so by itself, if it
        still answers at all. For any thread."""
        with self._lock:
            for end in self._ways_to_end:
                with suppress(Exception):  # it may be closed by now
                    end()

    def close(self) -> None:
        """Closes the thread's connections."""
        with self._lock:
            self._ways_to_end.clear()  # a pool hands its connections on
        connections.close_all()
        self._handles.close()


def way_to_end(connection: Any, handles: ExitStack) -> Callable[[], object]:
    """A function for another thread, which has a driver's connection fail where it waits.

    It never harms anybody else: it has a handle of its own of a socket (closed with `handles`), for
    the number of the driver's may be another file's by then.
    """
    if hasattr(connection, "interrupt"):  # SQLite
        return connection.interrupt  # type: ignore[no-any-return]
    if not hasattr(connection, "fileno"):  # PyMySQL
        return lambda: None
    line = handles.enter_context(socket.socket(fileno=os.dup(connection.fileno())))
    return lambda: line.shutdown(socket.SHUT_RDWR)
