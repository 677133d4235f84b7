"""Failures to record: they are counted and logged, and a server that is down is left alone."""

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

# Of PostgreSQL (SQLSTATE) and of MySQL (error number). Deadlock and serialization failure: the next
# visit can be recorded, so the server need not be left alone
CONFLICTS = frozenset({"40001", "40P01", 1213})
# A lock that did not come in time: a request that has waited for one should be the last for a while
LOCK_TIMEOUTS = frozenset({"55P03", 1205})
# A value that the columns' character set cannot hold, for MySQL: not a DataError, as elsewhere
BAD_TEXTS = frozenset({1267, 1270, 1271, 1300, 1366, 3988})
HARMLESS = CONFLICTS | BAD_TEXTS

breaker = Breaker("Recording souvenirs")
# Cookies come from anybody: what looking one up does must not keep the others from being recorded
session_breaker = Breaker("Looking up sessions")


def note_failure(error: Exception, breaker: Breaker = breaker) -> bool:
    """Count and log `error`. Return True if it means that the server is down: then the breaker
    opens."""
    opens = is_servers(error)
    breaker.failure(error, opens=opens)
    send_recorded(FAILED)
    return opens


def is_servers(error: Exception) -> bool:
    """Whether the database server is to blame, not one statement or a transaction that the site
    broke."""
    harmless: tuple[type[Exception], ...] = (IntegrityError, DataError, TransactionManagementError)
    if any(connection.in_atomic_block for connection in connections.all(initialized_only=True)):
        harmless += (InternalError,)  # PostgreSQL's, for each statement in a broken transaction
    return (
        isinstance(error, (DatabaseError, InterfaceError))
        and not isinstance(error, harmless)
        and not HARMLESS.intersection(_codes(error))
    )


def is_conflict(error: Exception) -> bool:
    """Whether a transaction came into another's way: the same again may succeed."""
    return not (CONFLICTS | LOCK_TIMEOUTS).isdisjoint(_codes(error))


def _codes(error: Exception) -> list[Any]:
    """What the driver says the error is: SQLSTATE, or MySQL's number."""
    cause = error.__cause__
    sqlstate = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    number = cause.args[0] if cause is not None and cause.args else None
    return [code for code in (sqlstate, number) if isinstance(code, (str, int))]
