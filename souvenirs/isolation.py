"""One snapshot of a database for several queries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from django.db import connections, transaction

from souvenirs.databases import locks_on_read, set_isolation_level

_inside: ContextVar[frozenset[str]] = ContextVar("souvenirs_repeatable_read", default=frozenset())


@contextmanager
def repeatable_read(using: str) -> Iterator[bool]:
    """Run all queries in the block on one snapshot of the database, and yield True.

    Yield False, and open no transaction, if one is already open or if SQLite would lock what it
    reads (transaction_mode). Nested calls join the outer one.
    """
    if using in _inside.get():
        yield True
        return
    connection = connections[using]
    if connection.in_atomic_block or not connection.get_autocommit() or locks_on_read(using):
        yield False
        return
    with transaction.atomic(using=using):
        set_isolation_level(using, "REPEATABLE READ")
        token = _inside.set(_inside.get() | {using})
        try:
            yield True
        finally:
            _inside.reset(token)
