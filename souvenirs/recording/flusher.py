"""Write the queued visits in batches: into the table, and into a last-seen store outside of it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain

from souvenirs.connections import dropping_dead_connections
from souvenirs.lastseen import get_store, table
from souvenirs.lastseen.base import LastSeenUpdate
from souvenirs.logs import LogLimit
from souvenirs.models import Souvenir
from souvenirs.recording import batch, memory
from souvenirs.recording.failures import breaker, is_conflict, is_server_failure
from souvenirs.recording.forks import ThreadConnections
from souvenirs.recording.queue import Entry, VisitQueue
from souvenirs.recording.results import (
    ADDED,
    FAILED,
    RATE_LIMITED,
    SKIPPED,
    flush_hits,
    send_queued,
    send_recorded,
)
from souvenirs.signals import write_failed

logger = logging.getLogger("souvenirs")

BATCH_SIZE = 500  # entries in a transaction

_log_limit = LogLimit()


class Flusher:
    """Writes what is in a queue. Any thread may call the public methods; one at a time writes."""

    def __init__(self, queue: VisitQueue, connections: ThreadConnections) -> None:
        """connections: those of the writer's thread."""
        self.queue = queue
        self._connections = connections
        self._lock = threading.Lock()
        self._skipped: list[Entry] = []  # by this flush: they are tried again after all others
        self._queued = 0  # visits for which the signal visits_queued has been sent

    def flush(self) -> bool:
        """Write all queued visits. Return False if the database fails. Visits whose rows are locked
        stay in the queue."""
        with self._lock, dropping_dead_connections():
            left = len(self.queue)
            try:
                while left > 0:
                    if not self._write_batch():
                        return False
                    left -= BATCH_SIZE
            except Exception as error:  # wrong settings, say
                self._note_failure(error, opens=False)
                return False
            finally:
                self._restore_skipped()
        return True

    def flush_batch(self) -> None:
        """Write a batch, unless another thread is writing one."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            with dropping_dead_connections():
                self._write_batch()
        finally:
            self._restore_skipped()
            self._lock.release()

    def send_queued(self) -> None:
        """Send the signal for visits queued since the last call."""
        with self.queue.lock:
            new = self.queue.queued - self._queued
            self._queued += new
        if new:
            send_queued(new)

    def note_dropped(self, visits: int) -> None:
        """Count visits for which the queue had no room as failed."""
        send_recorded(FAILED, count=visits)
        if _log_limit.allows("dropped"):
            logger.error("Too many visits are queued for the database: dropping the oldest")

    # Under the lock

    def _write_batch(self) -> bool:
        flush_hits()
        self.send_queued()
        store = get_store()
        if not breaker.allows():
            if not store.in_table:
                entries = self.queue.take_new_for_store()
                self._give_to_store(entries, confirmed=False)
                self._restore(entries)
            return False
        entries = self.queue.take(BATCH_SIZE)
        # With times outside the table, visits whose souvenir is written go to the store only
        limited = [] if store.in_table else [entry for entry in entries if entry.has_row]
        due = [entry for entry in entries if store.in_table or not entry.has_row]
        works = self._write_all(batch.split(due))
        if works:
            breaker.success()
        elif works is None:
            breaker.untried()
        self._count([], limited)
        self._give_to_store(limited, confirmed=False)
        return works is not False

    def _write_all(self, batches: Iterable[Sequence[Entry]]) -> bool | None:
        """Write batches until the database fails. Return True if it works, False if it does not,
        and None if that is unknown."""
        waiting, works = deque(batches), None
        try:
            while waiting and works is not False:
                written = self._write(waiting.popleft())
                works = works if written is None else written
        finally:
            self._restore(chain.from_iterable(waiting))
        return works

    def _write(self, entries: Sequence[Entry]) -> bool | None:
        try:
            outcome = batch.write(entries, each_minute=get_store().in_table)
        except batch.KeysEquated:
            return self._write_all(batch.by_user(entries))
        except Exception as error:
            return self._handle(error, entries)
        except BaseException:
            self._restore(entries)
            raise
        finally:
            if self._connections.are_of_this_thread():
                self._connections.note()
        self._skipped += outcome.skipped
        for entry in outcome.missing:
            memory.remember_missing(entry.user_pk)
            send_recorded(SKIPPED, entry.user_pk, entry.visits)
        written = [*outcome.added, *outcome.limited]
        for entry in written:
            memory.note_row(entry.user_pk, entry.slot)
        self._count(outcome.added, outcome.limited)
        self._give_to_store(written, confirmed=True)
        return True

    def _handle(self, error: Exception, entries: Sequence[Entry]) -> bool | None:
        opens = is_server_failure(error) and not is_conflict(error)
        self._note_failure(error, opens=opens)
        if is_conflict(error):
            self._skipped += entries
            return None
        if opens:
            if self._connections.are_of_this_thread():
                self._connections.close()  # a health check of a frozen server would wait
            if not get_store().in_table:
                self._give_to_store(entries, confirmed=False)
            self._restore(entries)
            return False
        if len(entries) == 1:  # it is the cause: a key that does not fit the column, say
            send_recorded(FAILED, entries[0].user_pk, entries[0].visits)
            return None
        half = len(entries) // 2
        return self._write_all([entries[:half], entries[half:]])

    def _note_failure(self, error: Exception, *, opens: bool) -> None:
        breaker.failure(error, opens=opens)
        write_failed.send_robust(sender=Souvenir)

    def _give_to_store(self, entries: Sequence[Entry], *, confirmed: bool) -> None:
        """Move last-seen times forward in the store. confirmed: whether the table has just shown
        that the users exist."""
        store = get_store()
        if store.in_table:
            return
        latest = table.latest()
        updates = []
        for entry in entries:
            if entry.last <= latest and (confirmed or not entry.in_store):
                seen = int(entry.last)
                update = LastSeenUpdate(
                    user_pk=entry.user_pk, seen=seen, latest=latest, has_row=confirmed
                )
                updates.append(update)
            entry.in_store = True
        try:
            if updates:
                store.touch_all(updates)
        except Exception as error:
            self._note_failure(error, opens=False)

    def _count(self, added: Sequence[Entry], limited: Sequence[Entry]) -> None:
        for entry in added:
            send_recorded(ADDED, entry.user_pk)
        tally = sum(entry.visits for entry in (*added, *limited)) - len(added)
        if tally:
            send_recorded(RATE_LIMITED, count=tally)

    def _restore_skipped(self) -> None:
        skipped, self._skipped = self._skipped, []
        if skipped:
            if not get_store().in_table:
                self._give_to_store(skipped, confirmed=False)
            self._restore(skipped)

    def _restore(self, entries: Iterable[Entry]) -> None:
        if dropped := self.queue.restore(entries):
            self.note_dropped(dropped)
