"""Write pending updates to Redis, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import islice
from typing import Any

from django.db import connections, router

from souvenirs.breaker import PROBE_SECONDS, Breaker
from souvenirs.lastseen import pending, table
from souvenirs.lastseen.base import ReadContext
from souvenirs.lastseen.members import existing_of, member_of
from souvenirs.lastseen.pending import Move, PendingWrites
from souvenirs.lastseen.shards import Shards
from souvenirs.models import LastSeen

FLUSH_DELAY = 0.05  # seconds for which moves are collected before they are written together
BATCH_SIZE = 500  # users written together


class Writer:
    """The pending updates and their thread. Methods do not raise redis-py's errors, and are
    thread-safe."""

    def __init__(self, shards: Shards, breaker: Breaker) -> None:
        self.shards = shards
        self.breaker = breaker
        self.reset()

    def reset(self) -> None:
        """Start without pending updates. After a fork, they belong to the parent."""
        self.pending = PendingWrites()
        self.unconfirmed = PendingWrites()
        self._has_work = threading.Event()
        self._starting = threading.Lock()
        self._sending = threading.Lock()
        self._thread: threading.Thread | None = None

    def put_and_flush(self, moves: Mapping[Any, Move]) -> None:
        """Write moves, by users' keys, in the calling thread, which may wait. Moves that cannot be
        written are left to the writer's thread."""
        self._add(moves)
        if not self.flush() or self.unconfirmed:
            self._wake_thread()

    def put(self, moves: Mapping[Any, Move]) -> None:
        """Leave moves, by users' keys, to the writer's thread."""
        self._add(moves)
        if not (self._has_work.is_set() and self._thread and self._thread.is_alive()):
            self._wake_thread()

    def _add(self, moves: Mapping[Any, Move]) -> None:
        waiting = iter(moves.items())
        while some := {member_of(user_pk): move for user_pk, move in islice(waiting, BATCH_SIZE)}:
            self.pending.add(some)
            if len(moves) > 1 and len(self.pending) > pending.MAX_PENDING // 2:
                self.flush()

    def _wake_thread(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = start_thread("souvenirs-redis-writer", self._run, self.breaker)
            if self._thread is not None:
                self._has_work.set()

    def _run(self) -> None:
        while True:
            self._has_work.wait()
            time.sleep(FLUSH_DELAY)
            self._has_work.clear()
            while not self.flush():
                time.sleep(PROBE_SECONDS)
            if self.unconfirmed:
                try:
                    self.confirm_pending()
                finally:
                    connections.close_all()
                if self.pending:
                    self._has_work.set()

    def flush(self) -> bool:
        """Write pending updates. Return False if that has to wait, because Redis is down."""
        with self._sending:
            if not self.pending:
                return True
            if not self.breaker.allows():
                return False
            try:
                self._send()
            except Exception as error:
                self.note_failure(error)
                return False
        self.breaker.success()
        return True

    def _send(self) -> None:
        if self.pending.pop_overflow():
            try:
                self.shards.unmark()
            except BaseException:
                self.pending.restore_overflow()
                raise
        while moves := self.pending.pop(BATCH_SIZE):
            try:
                self.unconfirmed.add(self.shards.write(moves, table.latest()))
            except BaseException:
                self.pending.restore(moves)
                raise

    def confirm_pending(self, read_context: ReadContext = nullcontext) -> None:
        """Look up users with unconfirmed moves in the table: write the times of those who exist,
        and remove the others. Does nothing in a transaction, which may not see who exists now."""
        using = router.db_for_write(LastSeen)
        if connections[using].in_atomic_block:
            return
        while moves := self.unconfirmed.pop(BATCH_SIZE):
            try:
                with read_context(using):
                    existing = existing_of(moves)
            except Exception:  # other queries of that database report its failure
                self.unconfirmed.restore(moves)
                return
            for member, move in moves.items():
                if member not in existing:
                    self.pending.add({member: Move(None)})
                elif move.seen is not None:
                    self.pending.add({member: move._replace(confirmed=True)})
            self.flush()

    def note_failure(self, error: Exception) -> None:
        """Report that Redis failed, and discover its servers again."""
        self.breaker.failure(error)
        self.shards.reconnect()


def start_thread(
    name: str, target: Callable[[], None], breaker: Breaker
) -> threading.Thread | None:
    """Start a thread. Return None if the system allows no more threads; `breaker` logs that."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        breaker.failure(error, opens=False)
        return None
    return thread
