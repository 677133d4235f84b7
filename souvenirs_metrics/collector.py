"""Counts -> metric families, at scrape time."""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import django
from django.contrib.auth import get_user_model
from django.db import connections, router
from django.db.models import Count
from prometheus_client import Metric
from prometheus_client.registry import Collector

import souvenirs
from souvenirs import accounts, counting, periods, rollups
from souvenirs.conf import conf as souvenirs_conf
from souvenirs.models import LastSeen, Rollup, Souvenir
from souvenirs_metrics import families
from souvenirs_metrics.conf import conf

logger = logging.getLogger("souvenirs_metrics")

Families = list[Metric]

# Quarters of an hour that a scrape rolls up at most, and reads the rows of for a previous period:
# that of yesterday is to be there at midnight, before its last quarter is rolled up
BUCKETS = 4
BUCKETS_OF_ROWS = 8

ACCOUNTS_SECONDS = 60  # how long totals of accounts are kept


class Collection(NamedTuple):
    """What was collected, between two times of the monotonic clock."""

    started: float
    families: Families
    finished: float

    def answers(self, asked: float) -> bool:
        """Whether it will do for who asked at that time: it ended since, or is young enough."""
        return asked <= self.finished or asked - self.started < conf.max_age_seconds


class SouvenirsCollector(Collector):
    """Collects the gauges of the metric contract, all as of one instant.

    A part that cannot be read is left out (a 0 would fire alerts), logged with its cause, and
    souvenirs_up is 0. A collection takes a fixed number of queries on SOUVENIRS_METRICS_DATABASE,
    whatever the number of rows; and where history is due to be rolled up, it does a little of that.

    One collection runs at a time: who asks meanwhile gets its result, and so does who asks within
    SOUVENIRS_METRICS_MAX_AGE_SECONDS. The totals of accounts are counted once a minute.
    """

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):  # a child must not wait for a lock of its parent's
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Has the next collection read everything."""
        self._lock = threading.Lock()
        self._latest: Collection | None = None
        self._accounts: tuple[float, Families] | None = None

    def describe(self) -> Iterable[Metric]:
        """The families without samples: registering the collector queries nothing."""
        return [family.family() for family in families.FAMILIES]

    def collect(self) -> Iterator[Metric]:
        asked = time.monotonic()
        with self._lock:
            latest = self._latest
            if latest is None or not latest.answers(asked):
                latest = self._latest = Collection(asked, list(self._collect()), time.monotonic())
        yield from latest.families

    def _collect(self) -> Iterator[Metric]:
        started = time.perf_counter()
        now = time.time()
        is_complete = True
        parts: list[Callable[[float], Families]] = [
            self.active_users,
            self.rollups,
            self.previous_periods,
            self.accounts,
            self.build,
        ]
        for part in parts:
            try:
                yield from part(now)
            except Exception as error:
                is_complete = False
                logger.exception("Left %s out of the metrics: %r", part.__name__, error)
        yield families.UP.family(is_complete)
        yield families.COLLECTION_DURATION.family(time.perf_counter() - started)
        yield families.COLLECTION_TIMESTAMP.family(now)

    def active_users(self, now: float) -> Families:
        """Rolling windows and periods to date: all of them "since when?", so in one pass."""
        resolution = souvenirs_conf.last_seen_seconds
        starts = {
            name: periods.calendar_period(name, now, souvenirs_conf.zone).start
            for name in periods.NAMES
        }
        # A window is never short: its beginning is floored to what last-seen can tell apart
        cuts = {
            name: (now - seconds) // resolution * resolution
            for name, seconds in conf.windows.items()
        }
        activity = souvenirs_conf.last_seen_store.activity(
            [*starts.values(), *cuts.values()],
            until=now + resolution,
            using=conf.database(LastSeen),
        )
        return [
            families.ACTIVE_USERS.family({k: activity.since[cut] for k, cut in cuts.items()}),
            families.CALENDAR_ACTIVE_USERS.family(
                {name: activity.since[start] for name, start in starts.items()}
            ),
            families.CALENDAR_PERIOD_START.family(starts),
            families.LAST_SEEN.family(activity.newest),
        ]

    def rollups(self, now: float) -> Families:
        """Rolls up a little of what is due, and tells how much is left."""
        using = router.db_for_write(Rollup)
        if not connections[using].in_atomic_block:  # of somebody who might hold its locks for long
            try:
                rollups.roll_up(buckets=BUCKETS)
            except Exception as error:  # such as on a database that is read only: the lag shows it
                logger.exception("Rolled up nothing: %r", error)
        return [families.ROLLUP_LAG.family(rollups.lag(now, conf.database(Rollup)))]

    def previous_periods(self, now: float) -> Families:
        previous = {
            name: periods.previous_calendar_period(name, now, souvenirs_conf.zone)
            for name in periods.NAMES
        }
        using = conf.database(Souvenir)
        first = counting.first_recorded(using)
        counts = counting.count_users_of_periods(previous, using, most_rows=BUCKETS_OF_ROWS)
        return [
            families.PREVIOUS_CALENDAR_ACTIVE_USERS.family(
                {
                    name: count
                    for name, count in counts.items()
                    if first is not None and first <= previous[name].start
                }
            )
        ]

    def accounts(self, now: float) -> Families:
        """Totals, from all rows of users; so they are kept for a while."""
        counted = time.monotonic()
        if self._accounts is None or counted - self._accounts[0] >= ACCOUNTS_SECONDS:
            self._accounts = counted, self._count_accounts()
        return self._accounts[1]

    def _count_accounts(self) -> Families:
        model = get_user_model()
        totals = model._base_manager.using(conf.database(model)).aggregate(
            registered=Count("pk"), activated=Count("pk", filter=accounts.is_activated())
        )
        return [
            families.REGISTERED_USERS.family(totals["registered"]),
            families.ACTIVATED_USERS.family(totals["activated"]),
        ]

    def build(self, now: float) -> Families:
        return [
            families.BUILD.family(
                {
                    "version": souvenirs.__version__,
                    "python": platform.python_version(),
                    "django": django.get_version(),
                    "database": connections[conf.database(Souvenir)].vendor,
                    "last_seen_store": souvenirs_conf.last_seen_store.name,
                }
            )
        ]
