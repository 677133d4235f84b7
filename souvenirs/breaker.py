from __future__ import annotations

import logging
import os
import threading
import time

logger = logging.getLogger("souvenirs")

PROBE_SECONDS = 5.0
LOG_SECONDS = 60.0


class Breaker:
    """A circuit breaker: stops calling a server that is down, so that not every request waits for
    its time-out.

    After a failure `allows` returns False for PROBE_SECONDS, then lets one caller through as a
    probe, and all callers again after a success. A caller that was let through reports the outcome:
    `success`, `failure`, or `untried` if it did not call the server. Failures are logged with their
    cause, at most once in LOG_SECONDS; the message says how many there were since the last one. The
    first success after a logged failure is logged too.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._new_lock()
        if hasattr(os, "register_at_fork"):  # a child must not wait for its parent's lock
            os.register_at_fork(after_in_child=self._new_lock)
        self.reset()

    def _new_lock(self) -> None:
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Close the breaker, and forget what was logged."""
        self._open = False
        self._probe_at = 0.0
        self._log_at = 0.0
        self._unlogged = 0
        self._is_logged = False  # whether the failure was logged

    @property
    def is_open(self) -> bool:
        return self._open

    def allows(self) -> bool:
        if not self._open:
            return True
        with self._lock:
            now = time.monotonic()
            if now < self._probe_at:
                return False
            self._probe_at = now + PROBE_SECONDS  # this caller probes, the others still may not
            return True

    def success(self) -> None:
        if self._open:
            self._open = False
            if self._is_logged:
                self._is_logged = False
                logger.warning("%s works again", self.what)

    def untried(self) -> None:
        """Allow the next caller to probe: the last one did not call the server after all."""
        self._probe_at = 0.0

    def failure(self, error: Exception, *, opens: bool = True) -> None:
        """Report that `error` occurred. `opens` is False if it says nothing about the server's
        health."""
        with self._lock:
            now = time.monotonic()
            if opens:
                self._open = True
                self._probe_at = now + PROBE_SECONDS
            self._unlogged += 1
            if now < self._log_at:
                return
            self._log_at = now + LOG_SECONDS
            count, self._unlogged = self._unlogged, 0
            self._is_logged |= opens
        logger.error(
            "%s failed (failures since the last such message: %d): %r",
            self.what, count, error, exc_info=error,
        )  # fmt: skip
