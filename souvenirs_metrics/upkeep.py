"""Keeps the history rolled up: a little after each collection; all that is due in the exporter."""

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
RECONCILED_USERS = 500  # users of the last-seen store that a collection compares with the table
RETRY_SECONDS = 60  # after a failure: scrapes wait for this work
ROLL_UP_SECONDS = 60  # pause of roll_up_forever
STEP_SECONDS = 600  # that a step of it may take: a day of history, or the totals of accounts


class Upkeep:
    """The work that a collection does after it has read everything."""

    def __init__(self) -> None:
        self._failures = CauseLogger(logger, "Rolled up nothing")
        self._retry_at = 0.0  # on the monotonic clock

    def run(self, deadline: Deadline) -> None:
        """Roll up a little of what is due, and reconcile a little of the last-seen store.

        Raise if that fails, but only once for the same cause: a site may have reasons to give the
        exporter a role that only reads.
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
    """Roll up what is due, again and again, until `stop` is set.

    A step that takes longer than STEP_SECONDS is aborted, and tried again after the pause: a lock
    that somebody else holds, or a silent server, must not end the upkeep for good.
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
    """Roll up all that is due, each step within the deadline. Raise Stopped if `stop` is set."""

    def on_step(interval: Interval) -> None:
        if stop.is_set():
            raise Stopped
        deadline.restart()

    users = router.db_for_read(get_user_model())
    with ExitStack() as stack:
        stack.enter_context(deadline.watched())
        stack.enter_context(deadline.connect_within(router.db_for_write(Rollup)))
        with suppress(DatabaseError):  # needed at the end only, where it is tried once more
            stack.enter_context(deadline.connect_within(users))
        maintenance.roll_up(on_step=on_step)
