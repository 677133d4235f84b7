"""The stores of last-seen times, on real servers. A module that uses them takes over the
fixtures."""

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
from tests import servers

DATABASE = {"BACKEND": "souvenirs.lastseen.database.DatabaseStore"}
Samples = dict[tuple[str, ...], float]

REDIS = {"BACKEND": "souvenirs.lastseen.redis.RedisStore"}


@pytest.fixture(scope="module")
def redis_entry() -> Iterator[dict[str, Any]]:
    with servers.redis() as (url, _):
        yield {**REDIS, "LOCATION": url}


@pytest.fixture(scope="module")
def sentinel_entry() -> Iterator[dict[str, Any]]:
    with servers.redis_sentinel() as (url, _):
        yield {**REDIS, "LOCATION": url, "SENTINEL": "souvenirs"}


@pytest.fixture(scope="module")
def cluster_entry() -> Iterator[dict[str, Any]]:
    with servers.redis_cluster() as nodes:
        yield {**REDIS, "LOCATION": nodes.urls, "CLUSTER": True}


@contextmanager
def using(entry: dict[str, Any]) -> Iterator[Any]:
    """The site's store is this one, and knows nobody."""
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
    """Has its thread do nothing any more."""
    store.breaker.reset()
    store.writer.reset()


def clear(store: RedisStore) -> None:
    for key in [*store.shards.keys, store.shards.lock_key]:
        store.shards.client.delete(key)


OWN_SITE = pytest.mark.own_site  # with one database only, for they take their time


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


def join_filling() -> None:
    for thread in threading.enumerate():
        if thread.name == "souvenirs-filling":
            thread.join(30)


def collect() -> Samples:
    """Each scrape's gauges; filling, if it began one, is over."""
    samples = {
        (sample.name.removeprefix("souvenirs_"), *sample.labels.values()): sample.value
        for family in SouvenirsCollector().collect()
        for sample in family.samples
    }
    join_filling()
    return samples


def windows(samples: Samples) -> dict[str, float]:
    return {key[1]: value for key, value in samples.items() if key[0] == "active_users"}
