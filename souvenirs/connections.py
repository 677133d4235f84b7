"""Database connections in code that runs outside of requests, so that Django does not close dead
ones at the end of a request: a bot, a socket server, a thread that asgiref keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections


@contextmanager
def dropping_dead_connections() -> Iterator[None]:
    """At the end of the block, close this thread's connections that the server has closed, so that
    the next block opens new ones. With CONN_HEALTH_CHECKS, also before the block uses one.

    As at the end of a request, a connection is checked only if an error occurred on it. Unlike
    there, a working connection stays open whatever CONN_MAX_AGE is, and so does one in a
    transaction: the caller may be using it.
    """
    for connection in _idle_connections():
        connection.health_check_done = False  # Django then checks it before its next use
    try:
        yield
    finally:
        for connection in _idle_connections():
            if connection.errors_occurred:
                if connection.is_usable():
                    connection.errors_occurred = False
                else:
                    connection.close()


def _idle_connections() -> list[Any]:
    """Return the open connections that are not in a transaction (where autocommit is off)."""
    return [
        connection
        for connection in connections.all(initialized_only=True)
        if connection.connection is not None and connection.autocommit
    ]
