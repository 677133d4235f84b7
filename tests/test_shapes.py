"""A small site in every deployment described in docs/deployment.md, as real processes."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from demo.serving import answers
from tests import servers
from tests.conftest import site_environ
from tests.failing import new_database
from tests.site.serving import client
from tests.test_exporter import exporter
from tests.test_exposition import GAUGES, families

pytestmark = pytest.mark.own_site

with_django_prometheus = pytest.mark.where(find_spec("django_prometheus") is not None)

RunSite = Callable[..., str]

SITE = """
ROOT_URLCONF = "site_urls"
SILENCED_SYSTEM_CHECKS = ["souvenirs_metrics.W001"]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "souvenirs.middleware.SouvenirsMiddleware",
]
DATABASES["default"]["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 20}
"""
URLS = """
import os
from django.contrib.auth import alogin, login
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import include, path
from prometheus_client import Gauge

Gauge("site_workers", "Processes that serve.", multiprocess_mode="livesum").set(1)

def enter(request, name):
    login(request, User.objects.get_or_create(username=name)[0])
    return HttpResponse(str(os.getpid()))

async def aenter(request, name):
    user, _ = await User.objects.aget_or_create(username=name)
    await alogin(request, user)
    return HttpResponse(str(os.getpid()))

def pid(request):
    return HttpResponse(str(os.getpid()))

urlpatterns = [
    path("enter/<name>/", enter),
    path("aenter/<name>/", aenter),
    path("pid/", pid),
    path("", include("souvenirs_metrics.urls")),
]
"""
GUNICORN = """
control_socket_disable = True
graceful_timeout = 3
"""
# As in docs/deployment.md
CHILD_EXIT = """
from prometheus_client import multiprocess

def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""


@dataclass(frozen=True)
class Served:
    url: str

    def get(self, path: str, **headers: str) -> str:
        with client() as session:
            response = session.get(self.url + path, headers=headers, timeout=30)
        assert response.status_code == 200, response.text
        return response.text

    def samples(self, path: str = "/metrics") -> dict[str, float]:
        """The samples of a page by name and labels. Fails if one is there twice."""
        lines = [line for line in self.get(path).splitlines() if line and line[0] != "#"]
        samples = {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines)}
        assert len(samples) == len(lines)
        return samples


def write_site(directory: Path, run_site: RunSite, settings: str = "", urls: str = "") -> None:
    """Create a site, and its tables. `settings` and `urls` are added to those above."""
    (directory / "site_urls.py").write_text(URLS + urls)
    run_site("", SITE + settings)


@contextmanager
def serving(directory: Path, *command: str, **environ: str) -> Iterator[Served]:
    """Run a server of the site, a Python module, on `{port}`."""
    url = f"http://127.0.0.1:{(port := servers.free_port())}"
    with servers.running(
        [sys.executable, "-m", *(part.format(port=port) for part in command)],
        lambda: answers(f"{url}/pid/"),
        directory / "server.log",
        cwd=directory,
        env={**site_environ(directory), **environ},
    ):
        yield Served(url)


def gunicorn(directory: Path, config: str = "", **environ: str) -> Any:
    (directory / "gunicorn.conf.py").write_text(GUNICORN + config)
    application = "django.core.wsgi:get_wsgi_application()"
    return serving(directory, "gunicorn", "--bind=127.0.0.1:{port}", application, **environ)


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def added(samples: dict[str, float]) -> float:
    return samples['souvenirs_records_total{result="added"}']


def limited(samples: dict[str, float]) -> float:
    return samples['souvenirs_records_total{result="rate_limited"}']


def active(samples: dict[str, float]) -> float:
    return samples['souvenirs_active_users{window="1h"}']


# One process


def test_one_process__serves_both_formats(tmp_path: Path, run_site: RunSite) -> None:
    write_site(tmp_path, run_site)
    with gunicorn(tmp_path) as site:
        for name in ("ada", "grace", "ada"):
            site.get(f"/enter/{name}/")
        samples = site.samples()
        openmetrics = site.get("/metrics", Accept="application/openmetrics-text")
    assert active(samples) == added(samples) == samples["souvenirs_registered_users"] == 2
    assert samples['souvenirs_records_total{result="rate_limited"}'] == 1
    assert samples["site_workers"] == 1
    parsed = {s.name: s.value for f in parse_openmetrics(openmetrics) for s in f.samples}
    assert parsed["souvenirs_registered_users"] == 2


# Several processes


class People:
    """New users who sign in to a site of several processes. `count`: how many have signed in."""

    def __init__(self, site: Served) -> None:
        self.site = site
        self.count = 0

    def enter(self) -> int:
        """Sign in a new user. Return the process that answered."""
        self.count += 1
        return int(self.site.get(f"/enter/user{self.count}/"))

    def meet(self, processes: int) -> set[int]:
        """Sign in new users until this many processes have answered. Return their pids."""
        pids: set[int] = set()
        with ThreadPoolExecutor(4) as pool:
            while len(pids) < processes:
                pids.update(pool.map(lambda _: self.enter(), range(4)))
        return pids


@pytest.fixture
def multiprocess(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "metrics").mkdir()
    return {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}


def test_two_workers__share_one_page_after_one_was_killed(
    tmp_path: Path, run_site: RunSite, multiprocess: dict[str, str]
) -> None:
    write_site(tmp_path, run_site)
    with gunicorn(tmp_path, f"workers = 2\n{CHILD_EXIT}", **multiprocess) as site:
        people = People(site)
        pids = people.meet(2)
        samples = site.samples()
        assert added(samples) == active(samples) == people.count
        assert samples["site_workers"] == 2

        os.kill(people.enter(), signal.SIGKILL)
        wait_for(lambda: int(site.get("/pid/")) not in pids)
        samples = site.samples()
        assert added(samples) == active(samples) == people.count
        assert samples["site_workers"] == 2  # the surviving one and the replacement
        people.enter()
        page = site.get("/metrics")
        assert f'souvenirs_records_total{{result="added"}} {people.count}.0\n' in page
        counts = families(page)
        assert {counts[name] for name in [*GAUGES, "souvenirs_records_total"]} == {1}

        with exporter(tmp_path, ":0", **multiprocess) as (url, _):  # has the counters of both, too
            assert added(Served(url).samples()) == people.count


def test_recycled_workers__leave_their_counters(
    tmp_path: Path, run_site: RunSite, multiprocess: dict[str, str]
) -> None:
    write_site(tmp_path, run_site)
    config = f"workers = 2\nmax_requests = 4\n{CHILD_EXIT}"
    with gunicorn(tmp_path, config, **multiprocess) as site:
        people = People(site)
        people.meet(5)
        assert added(site.samples()) == people.count
        wait_for(lambda: site.samples()["site_workers"] <= 2)
        samples = site.samples()
        assert added(samples) == active(samples) == people.count


def test_exporter__serves_the_gauges_if_it_cannot_write_counters(
    tmp_path: Path, run_site: RunSite
) -> None:
    write_site(tmp_path, run_site, 'ROOT_URLCONF = "souvenirs_metrics.urls"\n')
    nobody_writes = "/proc"
    with exporter(tmp_path, ":0", PROMETHEUS_MULTIPROC_DIR=nobody_writes) as (url, _):
        assert Served(url).samples()["souvenirs_up"] == 1


# With django-prometheus

THEIRS = """
INSTALLED_APPS.insert(0, "django_prometheus")
MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    *MIDDLEWARE,
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]
"""
BOTH_URLS = """
urlpatterns += [
    path("", include("django_prometheus.urls")),  # at /metrics too, so never reached
    path("theirs/", include("django_prometheus.urls")),
]
"""
WRAPPERS = """
DATABASES["default"].update({})
CACHES = {{"default": {{
    "BACKEND": "django_prometheus.cache.backends.filebased.FileBasedCache",
    "LOCATION": "cache",
}}}}
"""


@with_django_prometheus
@pytest.mark.parametrize("register", [False, True])
@pytest.mark.parametrize("is_multiprocess", [False, True])
def test_django_prometheus__has_its_metrics_on_our_page(
    register: bool,
    is_multiprocess: bool,
    tmp_path: Path,
    run_site: RunSite,
    multiprocess: dict[str, str],
) -> None:
    settings = f"{THEIRS}SOUVENIRS_METRICS_REGISTER = {register}\n"
    write_site(tmp_path, run_site, settings, BOTH_URLS)
    with gunicorn(tmp_path, **(multiprocess if is_multiprocess else {})) as site:
        site.get("/enter/ada/")
        ours, theirs = site.samples("/metrics"), site.samples("/theirs/metrics")
        ours_families = families(site.get("/metrics"))
        theirs_families = families(site.get("/theirs/metrics"))
    assert active(ours) == added(ours) == added(theirs) == 1
    requests = "django_http_requests_before_middlewares_total"
    assert 2 <= ours[requests] < theirs[requests]
    both = [*GAUGES, "souvenirs_records_total", requests, "site_workers"]
    assert {ours_families[name] for name in both} == {1}
    # Their view only has the default registry, and not even that in multiprocess mode
    has_gauges = register and not is_multiprocess
    assert {theirs_families[name] for name in GAUGES} == {int(has_gauges)}
    assert not has_gauges or active(theirs) == 1


@with_django_prometheus
@pytest.mark.parametrize("engine", ["sqlite3", "postgresql"])
def test_django_prometheus__wraps_our_database_and_cache(
    engine: str, tmp_path: Path, run_site: RunSite, request: Any
) -> None:
    entry: dict[str, Any] = {"OPTIONS": {}}
    if engine == "postgresql":
        entry = new_database(request.getfixturevalue(engine))
    wrapped = {**entry, "ENGINE": f"django_prometheus.db.backends.{engine}"}
    write_site(tmp_path, run_site, THEIRS + WRAPPERS.format(wrapped))
    with gunicorn(tmp_path) as site:
        for name in ("ada", "grace"):
            site.get(f"/enter/{name}/")
        servers.wait_until(lambda: added(site.samples()) == 2)
        samples = site.samples()
        assert samples["souvenirs_up"] == 1
        assert active(samples) == 2
        queries = f'django_db_execute_total{{alias="default",vendor="{engine.rstrip("3")}"}}'
        assert site.samples()[queries] > samples[queries] > 0  # including the scrape's own
    with gunicorn(tmp_path) as site:  # including the scrape's own
        site.get("/enter/ada/")
        servers.wait_until(lambda: limited(site.samples()) == 1)
        assert added(site.samples()) == 0


# ASGI


def test_uvicorn__records_and_serves(tmp_path: Path, run_site: RunSite) -> None:
    write_site(tmp_path, run_site)
    command = ["uvicorn", "--factory", "--no-access-log", "--port={port}"]
    with serving(tmp_path, *command, "django.core.asgi:get_asgi_application") as site:
        for name in ("ada", "grace"):
            site.get(f"/enter/{name}/")
        site.get("/aenter/joan/")
        with ThreadPoolExecutor(20) as pool:
            pages = list(pool.map(lambda _: site.samples(), range(20)))
    assert {page["souvenirs_up"] for page in pages} == {1}
    assert {(active(page), added(page)) for page in pages} == {(3, 3)}
    log = (tmp_path / "server.log").read_text()
    assert not re.search("Traceback|ERROR", log), log
