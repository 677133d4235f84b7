"""Counts -> metric families, at scrape time."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial

import django
from django.contrib.auth import get_user_model
from django.db import connections, router
from django.db.models import Count
from prometheus_client import Metric
from prometheus_client.registry import Collector

import souvenirs
from souvenirs import periods
from souvenirs.conf import conf as souvenirs_conf
from souvenirs.history import accounts, counting, maintenance, progress
from souvenirs.lastseen import get_store
from souvenirs.lastseen.base import ReadContext
from souvenirs.models import LastSeen, Rollup, Souvenir
from souvenirs_metrics import deadline, families
from souvenirs_metrics.collection import Collection, Families, Part, Partly, cause_of
from souvenirs_metrics.conf import conf
from souvenirs_metrics.deadline import Deadline

# Quarters of an hour that a scrape rolls up at most, and reads the rows of for a previous period:
# that of yesterday is to be there at midnight, before its last quarter is rolled up
BUCKETS = 4
BUCKETS_OF_ROWS = 8

SWEPT_USERS = 500  # at whom a scrape looks whether they still exist
ACCOUNTS_SECONDS = 60  # how long totals of accounts are kept
RETRY_SECONDS = 60  # until rolling up is tried again that has failed: scrapes wait for it


class SouvenirsCollector(Collector):
    """Collects the gauges of the metric contract, all as of one instant.

    A part that cannot be read in time (see deadline) is left out (a 0 would fire alerts), logged
    with its cause, and souvenirs_up is 0. A collection takes a fixed number of queries on
    SOUVENIRS_METRICS_DATABASE, whatever the number of rows; and where history is due to be rolled
    up, it does a little of that.

    One collection runs at a time, in a thread of its own: who asks meanwhile gets its result, and
    so does who asks within SOUVENIRS_METRICS_MAX_AGE_SECONDS. The totals of accounts are counted
    once a minute. In a transaction of the caller's (a site's tests), it runs in that, with no
    deadline, and rolls up nothing.
    """

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):  # a child must not wait for a thread of its parent's
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Has the next collection read everything."""
        self._lock = threading.Lock()
        self._latest: Collection | None = None
        self._accounts: tuple[float, Families] | None = None
        self._cause = ""  # why nothing could be rolled up
        self._roll_up_at = 0.0  # not before this time of the monotonic clock

    def describe(self) -> Iterable[Metric]:
        """The families without samples: registering the collector queries nothing."""
        return [family.family() for family in families.FAMILIES]

    def collect(self) -> Iterator[Metric]:
        if any(c.in_atomic_block for c in connections.all(initialized_only=True)):
            collection, seconds = Collection(self.parts()), 0.0
            self._accounts = None  # of others; nor may others have what is not committed
            collection.run()
            self._accounts = None
        else:
            seconds = deadline.seconds.get()
            collection = self._current(seconds)
            give_back_connections()
        yield from collection.result(seconds)

    def _current(self, seconds: float) -> Collection:
        """The collection that runs, or is young enough, or a new one."""
        with self._lock:
            latest = self._latest
            if latest is None or not latest.answers(conf.max_age_seconds):
                within = Deadline(seconds)
                latest = Collection(self.parts(), within, partial(self.keep_up, within))
                self._latest = latest
                latest.start()
            elif latest.deadline:
                latest.deadline.extend(seconds)
            return latest

    def parts(self) -> list[Part]:
        """In the order of what they cost, for those after one that takes too long are not read."""
        return [
            self.build,
            self.active_users,
            self.rollup_lag,
            self.previous_periods,
            self.accounts,
        ]

    def keep_up(self, within: Deadline) -> None:
        """Rolls up a little of what is due, and sweeps a little. Raises if that fails, but not for
        the same cause again: a site may have reasons for a role that only reads."""
        store = get_store()
        store.run_maintenance()
        if time.monotonic() < self._roll_up_at:
            return
        self._roll_up_at = time.monotonic() + RETRY_SECONDS
        try:
            with within.asking(router.db_for_write(Rollup)):
                try:
                    maintenance.roll_up(buckets=BUCKETS)
                finally:
                    store.reconcile(SWEPT_USERS)
            self._cause, self._roll_up_at = "", 0.0
        except Exception as error:
            known, self._cause = self._cause, cause_of(error)
            if self._cause != known:
                raise

    def active_users(self, now: float, reading: ReadContext) -> Families:
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
        activity = get_store().count(
            [*starts.values(), *cuts.values()],
            until=now + resolution,
            using=conf.database(LastSeen),
            read_context=reading,
        )
        limit = souvenirs_conf.ratelimit_seconds
        coarse = [
            name
            for name, seconds in conf.windows.items()
            if seconds < 2 * limit and cuts[name] < activity.exact_from
        ]
        for name in coarse:
            del cuts[name]
        read = [
            families.ACTIVE_USERS.family({k: activity.since[cut] for k, cut in cuts.items()}),
            families.CALENDAR_ACTIVE_USERS.family(
                {name: activity.since[start] for name, start in starts.items()}
            ),
            families.CALENDAR_PERIOD_START.family(starts),
            families.LAST_SEEN.family(activity.newest),
        ]
        if coarse or activity.exact_from > now - limit:
            raise Partly(
                read,
                f"windows {', '.join(coarse)}" if coarse else "no window",
                f"{activity.cause}, so older last-seen times are known to {limit:g} s only",
            )
        return read

    def rollup_lag(self, now: float, reading: ReadContext) -> Families:
        using = conf.database(Rollup)
        with reading(using):
            return [families.ROLLUP_LAG.family(progress.lag(now, using))]

    def previous_periods(self, now: float, reading: ReadContext) -> Families:
        previous = {
            name: periods.previous_calendar_period(name, now, souvenirs_conf.zone)
            for name in periods.NAMES
        }
        using = conf.database(Souvenir)
        with reading(using):
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

    def accounts(self, now: float, reading: ReadContext) -> Families:
        """Totals, from all rows of users; so they are kept for a while."""
        counted = time.monotonic()
        if self._accounts is None or counted - self._accounts[0] >= ACCOUNTS_SECONDS:
            self._accounts = counted, self._count_accounts(reading)
        return self._accounts[1]

    def _count_accounts(self, reading: ReadContext) -> Families:
        model = get_user_model()
        using = conf.database(model)
        with reading(using):
            totals = model._base_manager.using(using).aggregate(
                registered=Count("pk"), activated=Count("pk", filter=accounts.is_activated())
            )
        return [
            families.REGISTERED_USERS.family(totals["registered"]),
            families.ACTIVATED_USERS.family(totals["activated"]),
        ]

    def build(self, now: float, reading: ReadContext) -> Families:
        return [
            families.BUILD.family(
                {
                    "version": souvenirs.__version__,
                    "python": platform.python_version(),
                    "django": django.get_version(),
                    "database": connections[conf.database(Souvenir)].vendor,
                    "last_seen_store": get_store().name,
                }
            )
        ]


def give_back_connections() -> None:
    """Gives those that this thread has of a pool back: while it waits, the collection needs one."""
    for connection in connections.all(initialized_only=True):
        if connection.settings_dict["OPTIONS"].get("pool"):
            connection.close()
