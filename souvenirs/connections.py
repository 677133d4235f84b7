"""Connections to databases in code that no request's end tidies up after: a bot, a socket server, a
thread that asgiref keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections


@contextmanager
def dropping_dead_connections() -> Iterator[None]:
    """Close this thread's connections that a server has ended, once the block is over, so that the
    next block makes new ones. With CONN_HEALTH_CHECKS also before a block uses one.

    As at the end of a request, a connection is asked only if there was an error on it. Unlike
    there, one that works stays open whatever CONN_MAX_AGE says, and so does one in a transaction:
    the caller may be using it.
    """
    for connection in _idle_connections():
        connection.health_check_done = False  # Django then asks before it is used
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
    """The open connections that are in no transaction: in one, autocommit is off."""
    return [
        connection
        for connection in connections.all(initialized_only=True)
        if connection.connection is not None and connection.autocommit
    ]
