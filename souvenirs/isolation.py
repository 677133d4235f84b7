from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from django.db import connections, transaction

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
    is_locking = getattr(connection, "transaction_mode", None) in ("IMMEDIATE", "EXCLUSIVE")
    if connection.in_atomic_block or not connection.get_autocommit() or is_locking:
        yield False
        return
    with transaction.atomic(using=using):
        set_up(using, "REPEATABLE READ")
        token = _inside.set(_inside.get() | {using})
        try:
            yield True
        finally:
            _inside.reset(token)


def set_up(using: str, isolation: str) -> None:
    """Sets the isolation level of a transaction that has just begun, where there are such levels;
    and has PostgreSQL compile nothing (jit): our statements are long, and soon done."""
    connection = connections[using]
    if connection.vendor == "sqlite":
        return
    with connection.cursor() as cursor:
        cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL jit = off")
