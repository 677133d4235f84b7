from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.db import connections, models, router
from hypothesis import HealthCheck, settings

from souvenirs import testing
from souvenirs.recording.throttle import throttle
from souvenirs.signals import souvenir_recorded, write_failed
from souvenirs_metrics import exposition
from tests import flushing

flushing.install()

# How many examples hypothesis generates for each property: `--hypothesis-profile`. The first two
# profiles are deterministic, so a failing test has its cause in the change at hand; "nightly" looks
# for new examples. An example takes several times as long on a server as on SQLite.
IS_SQLITE = os.environ.get("DATABASE", "sqlite") == "sqlite"
for name, examples in {"dev": 10, "gate": 20 if IS_SQLITE else 10, "nightly": 500}.items():
    settings.register_profile(
        name,
        max_examples=examples,
        derandomize=name != "nightly",
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
settings.load_profile("dev")

pytest_plugins = ["tests.shared"]


DATABASE_FIXTURES = {"db", "transactional_db"}

# The slowest files, each of which goes to one worker. They begin first, as otherwise the other
# workers would wait for the last of them; then come the files with the most tests.
LONGEST = [
    "interleavings",
    "tenants",
    "failures",
    "shapes",
    "exactness",
    "rules",
    "scrape_failures",
    "exporter",
    "sites_tests",
    "history_machine",
    "concurrency",
    "reports",
    "asgi",
    "collector",
    "browser",
    "writer",
    "redis",
    "connections",
    "cohorts",
    "packaging",
    "dashboards",
    "exposition",
    "documented",
    "end_to_end",
    "two_sites",
    "migrations",
    "uninstalling",
]


def pytest_xdist_auto_num_workers() -> int:
    """On SQLite two workers per processor, since a third of the time is spent waiting for processes
    that tests start; on a database server one, because it needs as much as the tests."""
    return (os.cpu_count() or 1) * (2 if IS_SQLITE else 1)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    for item in items:
        fixtures = DATABASE_FIXTURES.intersection(item.fixturenames)
        if fixtures or item.get_closest_marker("django_db"):
            item.add_marker("database")
    elsewhere = [item for item in items if not all(m.args[0] for m in item.iter_markers("where"))]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]
    yield
    if not config.getoption("loadscopereorder", True):  # as in the Makefile
        sort_by_files(items)


def sort_by_files(items: list[pytest.Item]) -> None:
    sizes = Counter(item.path for item in items)

    def turn(item: pytest.Item) -> tuple[int, int, Path]:
        name = item.path.stem.removeprefix("test_")
        rank = LONGEST.index(name) if name in LONGEST else len(LONGEST)
        return rank, -sizes[item.path], item.path

    items.sort(key=turn)


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """Reset everything that a process remembers between tests."""
    forget()
    yield
    forget()


def forget() -> None:
    throttle.clear()
    testing.forget()
    exposition.collector.reset()
    for cache in caches.all():
        cache.clear()


@pytest.fixture
def results() -> Iterator[list[str]]:
    """The results that souvenir_recorded reported, in order."""
    received: list[str] = []

    def receive(result: str, count: int, **kwargs: Any) -> None:
        received.extend([result] * count)

    souvenir_recorded.connect(receive)
    yield received
    souvenir_recorded.disconnect(receive)


@pytest.fixture
def write_errors() -> Iterator[list[int]]:
    found: list[int] = []

    def receive(**kwargs: Any) -> None:
        found.append(1)

    write_failed.connect(receive)
    yield found
    write_failed.disconnect(receive)


@pytest.fixture
def missing_table(
    transactional_db: None,
) -> Callable[[type[models.Model]], AbstractContextManager[None]]:
    """`with missing_table(Model):` renames the table of the model's database away in the block."""

    @contextmanager
    def missing(model: type[models.Model]) -> Iterator[None]:
        table = model._meta.db_table
        with connections[router.db_for_write(model)].cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
            try:
                yield
            finally:
                cursor.execute(f"ALTER TABLE {table}_away RENAME TO {table}")

    return missing


@pytest.fixture
def add_database(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """`add_database(alias, entry)` adds a database for all threads until the test ends."""
    added = []
    create = connections.create_connection

    def create_connection(alias: str) -> Any:
        wrapper = create(alias)

        def ensure_connection() -> None:
            if wrapper.connection is None:
                with wrapper.wrap_database_errors:
                    wrapper.connect()

        if alias in added:  # Django's tests refuse connections that did not exist when they began
            wrapper.ensure_connection = ensure_connection  # type: ignore[method-assign]
        return wrapper

    def add(alias: str, entry: dict[str, Any]) -> None:
        entries = connections.configure_settings({"default": {}, alias: {**entry}})
        connections.settings[alias] = entries[alias]
        added.append(alias)

    monkeypatch.setattr(connections, "create_connection", create_connection)
    yield add
    for alias in added:
        connections[alias].close()
        del connections[alias], connections.settings[alias]


ROOT = Path(__file__).parent.parent
SETTINGS = """
SECRET_KEY = "of the tests"
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "souvenirs_metrics.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.sqlite3"}}
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "souvenirs",
    "souvenirs_metrics",
]
"""
# Additional settings of a site with users who sign in, and of one with the admin
SIGN_IN = """
INSTALLED_APPS += ["django.contrib.sessions"]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "souvenirs.middleware.SouvenirsMiddleware",
]
ROOT_URLCONF = "site_urls"
"""
ADMIN = """
INSTALLED_APPS += [
    "django.contrib.admin", "django.contrib.messages", "django.contrib.sessions",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]
"""
START = """
import django
django.setup()
from django.core.management import call_command
from django.db import connection
from django.test import Client
from souvenirs.control import souvenez
if not connection.introspection.table_names():
    call_command("migrate", verbosity=0, skip_checks=True, run_syncdb=True)
"""


def site_environ(directory: Path) -> dict[str, str]:
    """The environment of the processes of `run_site`."""
    names = ("PATH", "HOME", "LANG", "LD_PRELOAD")  # the last is for faketime: see tests/dates.py
    kept = {
        key: value
        for key, value in os.environ.items()
        if key in names or key.startswith("FAKETIME")
    }
    return {
        **kept,
        "DJANGO_SETTINGS_MODULE": "site_settings",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{directory}",
    }


@pytest.fixture
def run_site(tmp_path: Path, migrated_site: Path) -> Callable[..., str]:
    """`run_site(code, settings="", **environ)` runs a separate process of a small site, for
    anything that is decided when a process starts. Returns what it printed. All its processes share
    a migrated database.
    """

    def run(code: str, settings: str = "", **environ: str) -> str:
        database = tmp_path / "site.sqlite3"
        # A site with other apps, or another user model, has other tables, and migrates for itself
        has_its_tables = not re.search("AUTH_USER_MODEL|INSTALLED_APPS", settings)
        if not database.exists() and has_its_tables:
            shutil.copy(migrated_site, database)
        (tmp_path / "site_settings.py").write_text(SETTINGS + settings)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", START + code],
            cwd=tmp_path,
            env={**site_environ(tmp_path), **environ},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
