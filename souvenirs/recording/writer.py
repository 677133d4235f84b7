"""The queue's writer: a thread that writes queued visits in batches.

It starts with the first queued visit, and ends, and closes its connections, after IDLE_SECONDS
without visits. Where threads do not get to run, as under uWSGI without threads, requests write
batches in its place.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any

from django.core.signals import setting_changed
from django.db import router

from souvenirs import scopes
from souvenirs.conf import conf
from souvenirs.connections import dropping_dead_connections
from souvenirs.databases import in_transaction, takes_writers
from souvenirs.lastseen import get_store, table
from souvenirs.lastseen.base import LastSeenUpdate
from souvenirs.logs import LogLimit
from souvenirs.models import Souvenir
from souvenirs.periods import Interval
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
IDLE_SECONDS = 10
EXIT_SECONDS = 3  # how long a process may take at its exit to write the last visits
RETRY_SECONDS = 0.05  # between attempts then, if rows are locked

_log_limit = LogLimit()


@cache
def has_writer(using: str) -> bool:
    """Return True if the settings allow a thread to write to this database."""
    scopes.note_database(using)
    is_wanted = bool(conf.flush_seconds and conf.ratelimit_seconds) and not scopes.is_scoped()
    return is_wanted and takes_writers(using)


def _on_setting_changed(**kwargs: Any) -> None:
    has_writer.cache_clear()


setting_changed.connect(_on_setting_changed)


class Writer:
    """The queue and its thread. Any thread may call the public methods."""

    def __init__(self) -> None:
        self._connections = ThreadConnections()
        self._reset()

    def _reset(self) -> None:
        self.queue = VisitQueue()
        self._flushing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()  # the thread's
        self._stop_at = 0.0
        self._skipped: list[Entry] = []  # by this flush: they are tried again after all others
        self._queued = 0  # visits for which the signal visits_queued has been sent

    # Visits

    def is_used(self) -> bool:
        """Return True if visits of this thread are queued rather than written at once."""
        using = router.db_for_write(Souvenir)
        return has_writer(using) and not in_transaction(using)

    def add(self, user_pk: Any, slot: Interval, t: float, has_row: bool) -> None:
        """Queue a visit. Raises nothing, and does not use the network."""
        dropped = self.queue.add(user_pk, slot, t, has_row)
        if dropped:
            self._note_dropped(dropped)
        if self._thread is None:
            self._start()

    def is_stalled(self) -> bool:
        """Return True if visits have been queued for so long that the thread cannot be running."""
        since = self.queue.waiting_since
        if since is None or breaker.is_open:
            return False
        return time.monotonic() - since > max(1.0, 2 * conf.flush_seconds)

    def write_if_stalled(self) -> None:
        """Write a batch in the calling thread, unless another thread is writing one."""
        if not self.is_stalled() or not self._flushing.acquire(blocking=False):
            return
        try:
            with dropping_dead_connections():
                self._flush_batch()
        finally:
            self._restore_skipped()
            self._flushing.release()

    # The thread

    def _start(self) -> None:
        stop = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(stop,), name="souvenirs-writer", daemon=True
        )
        with self.queue.lock:
            if self._thread is not None:
                return
            self._thread, self._stop = thread, stop
        try:
            thread.start()
        except RuntimeError as error:  # no more threads: requests will write
            self._thread = None
            breaker.failure(error, opens=False)

    def _run(self, stop: threading.Event) -> None:
        idle_since = time.monotonic()
        try:
            while True:
                is_last = stop.wait(conf.flush_seconds)
                if self.queue:
                    idle_since = time.monotonic()
                    self.flush()
                if is_last:
                    self._finish()  # a visit after this starts another thread
                    return
                if time.monotonic() - idle_since > IDLE_SECONDS and self._may_end():
                    return
        finally:
            if self._thread is threading.current_thread():
                self._thread = None
            self._connections.close()

    def _may_end(self) -> bool:
        with self.queue.lock:  # so that no visit is added between the check and the end
            if self.queue:
                return False
            self._thread = None
            return True

    def _finish(self) -> None:
        """Write what is left, until the time given to `stop` is over or the database fails."""
        breaker.untried()
        while not self._may_end() and time.monotonic() < self._stop_at:
            if not self.flush():
                return
            if self.queue:
                time.sleep(RETRY_SECONDS)

    def flush(self) -> bool:
        """Write all queued visits. Return False if the database fails. Visits whose rows are locked
        stay in the queue."""
        with self._flushing, dropping_dead_connections():
            left = len(self.queue)
            try:
                while left > 0:
                    if not self._flush_batch():
                        return False
                    left -= BATCH_SIZE
            except Exception as error:  # wrong settings, say
                self._note_failure(error, opens=False)
                return False
            finally:
                self._restore_skipped()
        return True

    def stop(self, seconds: float = EXIT_SECONDS) -> bool:
        """Write queued visits, end the thread, and close its connections. Return False if that
        takes longer than `seconds`. The next visit starts another thread."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            return not self.queue or (self.flush() and not self.queue)
        self._stop_at = time.monotonic() + seconds
        self._stop.set()
        thread.join(seconds)
        return not (thread.is_alive() or self.queue)

    def discard(self) -> None:
        """Forget queued visits, as when a process is killed."""
        self.queue.clear()
        if self._thread is not None:
            self.stop()

    def send_queued(self) -> None:
        """Send the signal for visits queued since the last call."""
        with self.queue.lock:
            new = self.queue.queued - self._queued
            self._queued += new
        if new:
            send_queued(new)

    # Writing, under the lock `_flushing`

    def _flush_batch(self) -> bool:
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
            if threading.current_thread() is self._thread:
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
            if threading.current_thread() is self._thread:
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
            self._note_dropped(dropped)

    def _note_dropped(self, visits: int) -> None:
        send_recorded(FAILED, count=visits)
        if _log_limit.allows("dropped"):
            logger.error("Too many visits are queued for the database: dropping the oldest")

    def after_fork(self) -> None:
        """Start with an empty queue: queued visits belong to the parent."""
        self._connections.after_fork()
        self._reset()


writer = Writer()
atexit.register(writer.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=writer.after_fork)
