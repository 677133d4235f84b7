"""The exporter reads from a real streaming replica of PostgreSQL, and writes to its primary."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from tests import servers
from tests.failing import in_postgresql, new_database
from tests.test_exporter import exporter

RunSite = Callable[..., str]
Entry = dict[str, Any]

WAIT_SECONDS = 60

pytestmark = pytest.mark.own_site

ACTIVE = """
from datetime import datetime, timedelta, timezone
from django.contrib.auth.models import User
user, _ = User.objects.get_or_create(username="{name}")
for days in (0, 40):
    souvenez(user, when=datetime.now(timezone.utc) - timedelta(days=days))
"""


class Replica:
    """The replica of a primary; it can be stopped and started."""

    def __init__(self, primary: Entry, entry: Entry, path: Path) -> None:
        self.primary, self.entry, self._path = primary, entry, path
        self._running = ExitStack()

    def stop(self) -> None:
        self._running.close()

    def start(self) -> None:
        port = int(self.entry["PORT"])
        self._running.enter_context(servers.postgresql_in(self._path, port))

    def session(self, database: str) -> psycopg.Connection[Any]:
        return in_postgresql(self.entry, database)

    def catch_up(self, database: str) -> None:
        """Wait until the replica has everything that the primary has now."""
        with in_postgresql(self.primary) as session:
            (position,) = session.execute("SELECT pg_current_wal_lsn()").fetchone() or ()
        with self.session("postgres") as session:
            query = "SELECT pg_last_wal_replay_lsn() >= %s"
            wait_until(lambda: session.execute(query, [position]).fetchone() == (True,))


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def replica() -> Iterator[Replica]:
    with (
        servers.postgresql() as primary,
        servers.directory("replica") as path,
    ):
        servers.copy_postgresql(primary, path)
        entry = {**primary, "PORT": str(servers.free_port())}
        replica = Replica(primary, entry, path)
        replica.start()
        yield replica
        replica.stop()


@pytest.fixture
def site(replica: Replica) -> tuple[Entry, str]:
    """A new database, and the settings of a site whose scrapes read from the replica."""
    entry = new_database(replica.primary)
    databases = {"default": entry, "replica": {**replica.entry, "NAME": entry["NAME"]}}
    return entry, f"DATABASES = {databases!r}\nSOUVENIRS_METRICS_DATABASE = 'replica'\n"


def page(url: str) -> dict[str, float]:
    response = requests.get(f"{url}/metrics", timeout=30)
    assert response.status_code == 200
    found = re.findall(r"^(souvenirs_\S+) (\S+)$", response.text, re.MULTILINE)
    return {name: float(value) for name, value in found}


ACTIVE_USERS = 'souvenirs_active_users{window="1h"}'


def test_replica__is_read_and_the_primary_written(
    replica: Replica, site: tuple[Entry, str], run_site: RunSite, tmp_path: Path
) -> None:
    entry, settings = site
    run_site(ACTIVE.format(name="ada"), settings)
    replica.catch_up(entry["NAME"])
    with exporter(tmp_path, ":0") as (url, _):
        # Both at once, after the time that a rolled-up day takes to be replicated
        wait_until(lambda: page(url)["souvenirs_rollup_lag_seconds"] == 0)
        found = page(url)
        assert found["souvenirs_up"] == 1
        assert found[ACTIVE_USERS] == found["souvenirs_registered_users"] == 1
        assert found['souvenirs_previous_calendar_active_users{period="week"}'] == 0
        with replica.session(entry["NAME"]) as session:
            session.execute("SELECT pg_wal_replay_pause()")
            try:
                run_site(ACTIVE.format(name="grace"), settings)
                behind = page(url)  # the replica's data is exposed as it is
            finally:
                session.execute("SELECT pg_wal_replay_resume()")
        assert behind["souvenirs_up"] == behind[ACTIVE_USERS] == 1
        wait_until(lambda: page(url)[ACTIVE_USERS] == 2)
    assert "Left" not in (tmp_path / "exporter.log").read_text()


def test_replica__stopped(
    replica: Replica, site: tuple[Entry, str], run_site: RunSite, tmp_path: Path
) -> None:
    entry, settings = site
    run_site(ACTIVE.format(name="ada"), settings)
    replica.catch_up(entry["NAME"])
    with exporter(tmp_path, ":0") as (url, _):
        assert page(url)["souvenirs_up"] == 1
        replica.stop()
        log = tmp_path / "exporter.log"
        told = len(log.read_text())
        found = page(url)
        assert found["souvenirs_up"] == 0
        assert ACTIVE_USERS not in found
        lines = log.read_text()[told:].splitlines()
        assert len([line for line in lines if line.startswith("Left ")]) == 1
        replica.start()
        wait_until(lambda: page(url)["souvenirs_up"] == 1)
        assert page(url)[ACTIVE_USERS] == 1
