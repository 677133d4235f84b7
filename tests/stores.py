"""The stores of last-seen times, on real servers. A module that uses `store` imports it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.test import override_settings

from souvenirs.lastseen import get_store
from souvenirs.lastseen.base import LastSeenStore
from souvenirs.lastseen.redis import RedisStore
from souvenirs_metrics.collector import SouvenirsCollector

DATABASE = {"BACKEND": "souvenirs.lastseen.database.DatabaseStore"}
REDIS = {"BACKEND": "souvenirs.lastseen.redis.RedisStore"}

Samples = dict[tuple[str, ...], float]


@contextmanager
def using(entry: dict[str, Any]) -> Iterator[Any]:
    """Use this store for the site, emptied."""
    with override_settings(SOUVENIRS_LAST_SEEN_STORE=entry):
        store = get_store()
        if isinstance(store, RedisStore):
            clear(store)
            store.resync()
        yield store
        if isinstance(store, RedisStore):
            store.shards.client.close()
            retire(store)


def retire(store: RedisStore) -> None:
    """Stop its thread from doing anything."""
    store.breaker.reset()
    store.writer.reset()


def clear(store: RedisStore) -> None:
    for key in [*store.shards.keys, store.shards.lock_key]:
        store.shards.client.delete(key)


OWN_SITE = pytest.mark.own_site  # with one database only, because they are slow


@pytest.fixture(
    params=[
        "database",
        "redis",
        pytest.param("sentinel", marks=OWN_SITE),
        pytest.param("cluster", marks=OWN_SITE),
    ]
)
def store(request: Any, transactional_db: None) -> Iterator[LastSeenStore]:
    entry = DATABASE
    if request.param != "database":
        entry = request.getfixturevalue(f"{request.param}_entry")
    with using(entry) as made:
        yield made


def join_resync() -> None:
    for thread in threading.enumerate():
        if thread.name == "souvenirs-resync":
            thread.join(30)


def collect() -> Samples:
    """The gauges of each scrape; a resync that it began has finished."""
    samples = {
        (sample.name.removeprefix("souvenirs_"), *sample.labels.values()): sample.value
        for family in SouvenirsCollector().collect()
        for sample in family.samples
    }
    join_resync()
    return samples


def windows(samples: Samples) -> dict[str, float]:
    return {key[1]: value for key, value in samples.items() if key[0] == "active_users"}
