"""Keeps the history rolled up: a small part after each collection, everything in the exporter."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack, suppress

from django.contrib.auth import get_user_model
from django.db import DatabaseError, router

from souvenirs.history import maintenance
from souvenirs.lastseen import get_store
from souvenirs.logs import CauseLogger
from souvenirs.models import Rollup
from souvenirs.periods import Interval
from souvenirs_metrics.deadline import Deadline

logger = logging.getLogger("souvenirs_metrics")

BUCKETS = 4  # quarters of an hour that one collection rolls up at most
RECONCILED_USERS = 500  # how many users a collection reconciles in the last-seen store
RETRY_SECONDS = 60  # after a failure, because scrapes wait for this work
ROLL_UP_SECONDS = 60  # pause between rounds of roll_up_forever
STEP_SECONDS = 600  # how long one of its steps may take: a day of history, or totals of accounts


class Upkeep:
    """The maintenance that a collection does once its readers are done."""

    def __init__(self) -> None:
        self._failures = CauseLogger(logger, "Rolled up nothing")
        self._retry_at = 0.0  # on the monotonic clock

    def run(self, deadline: Deadline) -> None:
        """Roll up a small part of what is due, and reconcile a small part of the last-seen store.

        If that fails, raise the error, but only once for the same cause: a site may deliberately
        give the exporter a read-only database role.
        """
        store = get_store()
        store.run_maintenance()
        if time.monotonic() < self._retry_at:
            return
        self._retry_at = time.monotonic() + RETRY_SECONDS
        try:
            with deadline.connect_within(router.db_for_write(Rollup)):
                try:
                    maintenance.roll_up(buckets=BUCKETS)
                finally:
                    store.reconcile(RECONCILED_USERS)
        except Exception as error:
            if self._failures.is_new(error):
                raise
        else:
            self._failures.success()
            self._retry_at = 0.0


class Stopped(Exception):
    pass


def roll_up_forever(stop: threading.Event) -> None:
    """Roll up what is due every ROLL_UP_SECONDS until `stop` is set.

    A step that takes longer than STEP_SECONDS is aborted and tried again after the pause: a lock
    held by another process, or a silent server, must not end the upkeep for good.
    """
    failures = CauseLogger(logger, "Rolled up nothing")
    while True:
        deadline = Deadline(STEP_SECONDS)
        try:
            _roll_up_until(stop, deadline)
            failures.success()
        except Stopped:
            pass
        except Exception as error:
            if deadline.remaining() <= 0:
                timeout = TimeoutError(f"a step took more than {STEP_SECONDS} s and was aborted")
                timeout.__cause__ = error
                failures.failure(timeout)
            else:
                failures.failure(error)
        finally:
            deadline.close()
        if stop.wait(ROLL_UP_SECONDS):
            return


def _roll_up_until(stop: threading.Event, deadline: Deadline) -> None:
    """Roll up everything that is due, each step within the deadline. Raise Stopped once `stop` is
    set."""

    def on_step(interval: Interval) -> None:
        if stop.is_set():
            raise Stopped
        deadline.restart()

    users = router.db_for_read(get_user_model())
    with ExitStack() as stack:
        stack.enter_context(deadline.watched())
        stack.enter_context(deadline.connect_within(router.db_for_write(Rollup)))
        with suppress(DatabaseError):  # only needed at the end, which connects again
            stack.enter_context(deadline.connect_within(users))
        maintenance.roll_up(on_step=on_step)
