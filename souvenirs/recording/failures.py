"""Failures to record: count and log them, and stop calling a server that is down."""

from __future__ import annotations

from typing import Any

from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    InternalError,
    connections,
)
from django.db.transaction import TransactionManagementError

from souvenirs.breaker import Breaker
from souvenirs.recording.results import FAILED, send_recorded

# Codes of PostgreSQL (SQLSTATE) and MySQL (error number). Deadlocks and serialization failures: the
# next visit can be recorded, so the breaker need not open
CONFLICTS = frozenset({"40001", "40P01", 1213})
# Lock time-outs. The breaker opens: a request has waited for a lock, others should not for a while
LOCK_TIMEOUTS = frozenset({"55P03", 1205})
# Values that do not fit the column's character set on MySQL, where that is not a DataError
BAD_TEXTS = frozenset({1267, 1270, 1271, 1300, 1366, 3988})
HARMLESS = CONFLICTS | BAD_TEXTS

breaker = Breaker("Recording souvenirs")
# Anybody can send a cookie: failing to look one up must not stop other visits from being recorded
session_breaker = Breaker("Looking up sessions")


def note_failure(error: Exception, breaker: Breaker = breaker) -> bool:
    """Count and log `error`. Return True, and open the breaker, if it means that the server is
    down."""
    opens = is_server_failure(error)
    breaker.failure(error, opens=opens)
    send_recorded(FAILED)
    return opens


def is_server_failure(error: Exception) -> bool:
    """Return True if the database server failed, rather than a single statement, or a transaction
    that the site broke."""
    harmless: tuple[type[Exception], ...] = (IntegrityError, DataError, TransactionManagementError)
    if any(connection.in_atomic_block for connection in connections.all(initialized_only=True)):
        harmless += (InternalError,)  # on PostgreSQL, for each statement in a broken transaction
    return (
        isinstance(error, (DatabaseError, InterfaceError))
        and not isinstance(error, harmless)
        and not HARMLESS.intersection(_codes(error))
    )


def is_conflict(error: Exception) -> bool:
    """Return True if the transaction conflicted with another one, so that a retry may succeed."""
    return not (CONFLICTS | LOCK_TIMEOUTS).isdisjoint(_codes(error))


def _codes(error: Exception) -> list[Any]:
    """Return the driver's codes for the error: SQLSTATE, or MySQL's error number."""
    cause = error.__cause__
    sqlstate = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    number = cause.args[0] if cause is not None and cause.args else None
    return [code for code in (sqlstate, number) if isinstance(code, (str, int))]
