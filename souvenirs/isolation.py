from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from django.db import connections, transaction

from souvenirs.databases import locks_on_read, set_isolation_level

_inside: ContextVar[frozenset[str]] = ContextVar("souvenirs_snapshots", default=frozenset())


@contextmanager
def snapshot(using: str) -> Iterator[bool]:
    """Whether all queries inside see the same state of the database: not if somebody has begun a
    transaction before, nor if SQLite is told to lock what it reads (transaction_mode). Inside of a
    snapshot, it is that one."""
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
