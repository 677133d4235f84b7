"""The queue's writer: a thread that writes queued visits in batches.

It starts with the first queued visit, and ends, and closes its connections, after IDLE_SECONDS
without visits. Where threads do not get to run, as under uWSGI without threads, requests write
batches in its place.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from functools import cache
from typing import Any

from django.core.signals import setting_changed
from django.db import router

from souvenirs import scopes
from souvenirs.conf import conf
from souvenirs.databases import in_transaction, takes_writers
from souvenirs.models import Souvenir
from souvenirs.periods import Interval
from souvenirs.recording.failures import breaker
from souvenirs.recording.flusher import Flusher
from souvenirs.recording.forks import ThreadConnections
from souvenirs.recording.queue import VisitQueue

IDLE_SECONDS = 10
EXIT_SECONDS = 3  # how long a process may take at its exit to write the last visits
RETRY_SECONDS = 0.05  # between attempts then, if rows are locked


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
        self._flusher = Flusher(self.queue, self._connections)
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()  # the thread's
        self._stop_at = 0.0

    # Visits

    def is_used(self) -> bool:
        """Return True if visits of this thread are queued rather than written at once."""
        using = router.db_for_write(Souvenir)
        return has_writer(using) and not in_transaction(using)

    def add(self, user_pk: Any, slot: Interval, t: float, has_row: bool) -> None:
        """Queue a visit. Raises nothing, and does not use the network."""
        dropped = self.queue.add(user_pk, slot, t, has_row)
        if dropped:
            self._flusher.note_dropped(dropped)
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
        if self.is_stalled():
            self._flusher.flush_batch()

    def send_queued(self) -> None:
        """Send the signal for visits queued since the last call."""
        self._flusher.send_queued()

    def flush(self) -> bool:
        """Write all queued visits in the calling thread. Return False if the database fails. Visits
        whose rows are locked stay in the queue."""
        return self._flusher.flush()

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
        self._connections.take_over()
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

    def after_fork(self) -> None:
        """Start with an empty queue: queued visits belong to the parent."""
        self._connections.after_fork()
        self._reset()


writer = Writer()
atexit.register(writer.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=writer.after_fork)
