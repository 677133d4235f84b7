"""Keeps the history rolled up: a little after each collection, and all that is due beside it."""

from __future__ import annotations

import logging
import threading
import time

from django.db import connections, router

from souvenirs.conf import conf as souvenirs_conf
from souvenirs.history import rollups
from souvenirs.logs import CauseLogger
from souvenirs.models import Rollup
from souvenirs.periods import Interval
from souvenirs_metrics.deadline import Deadline

logger = logging.getLogger("souvenirs_metrics")

BUCKETS = 4  # quarters of an hour that one collection rolls up at most
SWEPT_USERS = 500  # users per collection that are looked up, to remove those who are gone
RETRY_SECONDS = 60  # after a failure: scrapes wait for this work
ROLL_UP_SECONDS = 60  # pause of roll_up_forever


class Maintenance:
    """The work that a collection does after it has read everything."""

    def __init__(self) -> None:
        self._failures = CauseLogger(logger, "Rolled up nothing")
        self._retry_at = 0.0  # on the monotonic clock

    def run(self, deadline: Deadline) -> None:
        """Roll up a little of what is due, and sweep the last-seen store a little.

        Raise if that fails, but only once for the same cause: a site may have reasons to give the
        exporter a role that only reads.
        """
        store = souvenirs_conf.last_seen_store
        store.keep_up()
        if time.monotonic() < self._retry_at:
            return
        self._retry_at = time.monotonic() + RETRY_SECONDS
        try:
            with deadline.connect_within(router.db_for_write(Rollup)):
                try:
                    rollups.roll_up(buckets=BUCKETS)
                finally:
                    store.sweep(SWEPT_USERS)
        except Exception as error:
            if self._failures.is_new(error):
                raise
        else:
            self._failures.success()
            self._retry_at = 0.0


class Stopped(Exception):
    pass


def roll_up_forever(stop: threading.Event) -> None:
    """Roll up what is due, again and again, until `stop` is set."""

    def on_step(interval: Interval) -> None:
        if stop.is_set():
            raise Stopped

    failures = CauseLogger(logger, "Rolled up nothing")
    while True:
        try:
            rollups.roll_up(on_step=on_step)
            failures.success()
        except Stopped:
            pass
        except Exception as error:
            failures.failure(error)
        finally:
            connections.close_all()
        if stop.wait(ROLL_UP_SECONDS):
            return
