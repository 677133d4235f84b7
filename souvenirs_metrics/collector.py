"""The collector that prometheus_client asks: readers -> metric families."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial

from django.db import connections
from prometheus_client import Metric
from prometheus_client.registry import Collector

from souvenirs import scopes
from souvenirs.logs import LogLimit
from souvenirs_metrics import run
from souvenirs_metrics.conf import conf
from souvenirs_metrics.deadline import MIN_COLLECTION_SECONDS, Deadline, scrape_timeout
from souvenirs_metrics.families import Family
from souvenirs_metrics.readers import load_readers
from souvenirs_metrics.readers.base import Reader
from souvenirs_metrics.run import CollectionRun
from souvenirs_metrics.upkeep import Upkeep


class SouvenirsCollector(Collector):
    """Collects the gauges of the metric contract, all as of one instant.

    A collection runs a fixed number of queries on SOUVENIRS_METRICS_DATABASE, however many rows
    there are. Afterwards it does a small part of the upkeep that is due. Values that cannot be read
    in time (see deadline) are left out, because a 0 would fire alerts; the cause is logged, and
    souvenirs_up is 0.

    One collection runs at a time, in a separate thread. Scrapes that arrive meanwhile share its
    result. If it is complete, scrapes within SOUVENIRS_METRICS_MAX_AGE_SECONDS share it too. If the
    caller is in a transaction (as in a site's tests), the collection runs inside it, without a
    deadline and without upkeep.

    On a scoped site (see souvenirs.scopes) each scrape collects in the request's thread, and shares
    nothing with scrapes in other scopes.
    """

    def __init__(self, make_readers: Callable[[], list[Reader]] = load_readers) -> None:
        self._make_readers = make_readers
        self.reset()
        if hasattr(os, "register_at_fork"):  # a child must not wait for a thread of its parent
            os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        """Make the next collection read everything."""
        self._lock = threading.Lock()
        self._latest: CollectionRun | None = None
        self._readers: dict[Hashable, list[Reader]] = defaultdict(self._make_readers)  # by scope
        self._upkeeps: dict[Hashable, Upkeep] = defaultdict(Upkeep)  # by scope
        self._log_limit = LogLimit()

    @property
    def families(self) -> list[Family]:
        """Everything that may be collected."""
        read = [family for reader in self._make_readers() for family in reader.families]
        return [*read, *run.FAMILIES]

    def describe(self) -> Iterable[Metric]:
        """The families without samples. Runs no queries, so neither does registration."""
        return [family.family() for family in self.families]

    def collect(self) -> Iterator[Metric]:
        if any(c.in_atomic_block for c in connections.all(initialized_only=True)):
            # With new readers: neither may reuse what the other has cached, because the
            # transaction's changes are not committed
            collection, seconds = CollectionRun(self._make_readers(), self._log_limit), 0.0
            collection.run()
        elif scopes.is_scoped():
            seconds = scrape_timeout.get()
            deadline = Deadline(seconds, keeps_connections=True)
            collection = self._new_run(self._readers[scopes.current()], deadline)
            collection.run()
        else:
            seconds = scrape_timeout.get()
            collection = self._current(seconds)
            return_pooled_connections()
        yield from collection.result(seconds)

    def _current(self, seconds: float) -> CollectionRun:
        """The latest collection if it is running or recent enough, or else a new one."""
        with self._lock:
            latest = self._latest
            if latest is None or not latest.can_answer(conf.max_age_seconds):
                if latest is not None:
                    latest.abort()
                deadline = Deadline(max(seconds, MIN_COLLECTION_SECONDS))
                self._latest = latest = self._new_run(self._readers[None], deadline, latest)
                latest.start()
            elif latest.deadline:
                latest.deadline.extend(seconds)
            return latest

    def _new_run(
        self, readers: list[Reader], deadline: Deadline, previous: CollectionRun | None = None
    ) -> CollectionRun:
        upkeep = partial(self._upkeeps[scopes.current()].run, deadline)
        return CollectionRun(readers, self._log_limit, deadline, upkeep, previous)


def return_pooled_connections() -> None:
    """Return this thread's connections to their pools, because the collection needs one."""
    for connection in connections.all(initialized_only=True):
        if connection.settings_dict["OPTIONS"].get("pool"):
            connection.close()
