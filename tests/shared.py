"""Servers that tests share: each is started once per session, when a test first asks for it.

A test uses a separate database (failing.new_database), a prefix, or a store that is cleared
(stores.using). A test that stops a server or loses its data starts another one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.conftest import SETTINGS, START, site_environ
from tests.stores import REDIS

Entry = dict[str, Any]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Entry]:
    """The entry for DATABASES of a PostgreSQL server."""
    with servers.postgresql() as entry:
        yield entry


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Entry]:
    """The entry for DATABASES of a MariaDB server."""
    with servers.mariadb() as entry:
        yield entry


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with servers.redis() as (url, _):
        yield url


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[servers.RedisNodes]:
    with servers.redis_cluster() as nodes:
        yield nodes


# SOUVENIRS_LAST_SEEN_STORE


@pytest.fixture(scope="session")
def redis_entry(redis_url: str) -> Entry:
    return {**REDIS, "LOCATION": redis_url}


@pytest.fixture(scope="session")
def sentinel_entry() -> Iterator[Entry]:
    with servers.redis_sentinel() as (url, _):
        yield {**REDIS, "LOCATION": url, "SENTINEL": "souvenirs"}


@pytest.fixture(scope="session")
def cluster_entry(redis_cluster: servers.RedisNodes) -> Entry:
    return {**REDIS, "LOCATION": redis_cluster.urls, "CLUSTER": True}


@pytest.fixture(scope="session")
def migrated_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The migrated and empty SQLite database of a site with `conftest.SETTINGS`, to be copied."""
    directory = tmp_path_factory.mktemp("site")
    (directory / "site_settings.py").write_text(SETTINGS)
    subprocess.run(
        [sys.executable, "-W", "error", "-c", START],
        cwd=directory, env=site_environ(directory), check=True, timeout=60,
    )  # fmt: skip
    return directory / "site.sqlite3"
