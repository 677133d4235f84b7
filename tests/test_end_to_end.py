"""Prometheus scrapes the demo site, whose users sign in over HTTP, and its figures equal what the
users did.

The site runs under gunicorn with two workers and a separate database, so nothing here depends on
the DATABASE that the tests run with.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import pytest
import requests

from demo.population import PASSWORD, Crowd
from demo.serving import populate, serve
from demo.traffic import Traffic
from tests import servers, test_dashboards

USERS = 150
WEEKS = 10  # the previous month is in it at any date, the previous quarter never
PEOPLE = Crowd(opened=0, accounts=USERS, weeks=WEEKS).people()
NEWCOMER = "newcomer"
SIGNED_IN = 5  # each takes a third of a second to check a password
STEPS = 60

ROOT = Path(__file__).parents[1]
PARIS = ZoneInfo("Europe/Paris")
WINDOWS = {"1h": 3_600, "1d": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}
# Prometheus requests OpenMetrics by default; version 2.42 cannot be configured to request another
# format
ACCEPT = {"openmetrics": None, "text": "text/plain;version=0.0.4"}
CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - {{job_name: openmetrics, static_configs: [{{targets: ["127.0.0.1:{openmetrics}"]}}]}}
  - {{job_name: text, static_configs: [{{targets: ["127.0.0.1:{text}"]}}]}}
"""

pytestmark = pytest.mark.own_site


class Forwarder(ThreadingHTTPServer):
    """Forwards Prometheus's requests to the site, with `accept` if given, and records the content
    types."""

    def __init__(self, site: str, accept: str | None) -> None:
        super().__init__(("127.0.0.1", 0), Forwarding)
        self.site = site.removeprefix("http://")
        self.accept = accept
        self.content_types: set[str] = set()


class Forwarding(BaseHTTPRequestHandler):
    server: Forwarder

    def do_GET(self) -> None:
        headers = dict(self.headers.items()) | {"Host": self.server.site}
        if self.server.accept:
            headers["Accept"] = self.server.accept
        site = HTTPConnection(self.server.site, timeout=10)
        site.request("GET", self.path, headers=headers)
        answer = site.getresponse()
        body = answer.read()
        site.close()
        self.server.content_types.add(answer.headers["Content-Type"])
        self.send_response(answer.status)
        for name in ("Content-Type", "Content-Encoding"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def forwarding(site: str, accept: str | None) -> Iterator[Forwarder]:
    with Forwarder(site, accept) as forwarder:
        thread = threading.Thread(target=forwarder.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield forwarder
        finally:
            forwarder.shutdown()
            thread.join()


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The site after its users did their part, and a Prometheus that has scraped it.

    past: what was in the database before: (user's key, unix time) of each souvenir.
    """

    directory: Path
    site: str
    prometheus: str
    forwarders: Mapping[str, Forwarder]
    past: list[tuple[int, float]]
    started: float
    traffic: Traffic

    def query(self, promql: str) -> list[dict[str, Any]]:
        response = requests.get(
            f"{self.prometheus}/api/v1/query", params={"query": promql}, timeout=10
        )
        response.raise_for_status()
        result: list[dict[str, Any]] = response.json()["data"]["result"]
        return result

    def samples(self, job: str) -> dict[tuple[str, str], float]:
        """Samples of the job's last scrape: (name, value of its window, period or result) to
        value."""
        series: list[dict[str, Any]] = []

        def is_there() -> bool:  # on a busy machine, a scrape may take longer than its second
            series[:] = self.query(f'{{__name__=~"souvenirs_.+", job="{job}"}}')
            return bool(series)

        assert wait_until(is_there, 20), f"Prometheus has no samples of {job}"
        return {
            (
                one["metric"]["__name__"],
                "".join(one["metric"].get(name, "") for name in ("window", "period", "result")),
            ): float(one["value"][1])
            for one in series
        }

    def activity(self) -> list[tuple[int, float]]:
        """All activity of users, past and live: (user's key, unix time)."""
        keys = dict(rows(self.directory, "SELECT username, id FROM auth_user"))
        return self.past + [(keys[visit.username], visit.t) for visit in self.traffic.visits]

    def users(self, start: float, end: float = float("inf")) -> int:
        """The number of users active at start <= t < end."""
        return len({user for user, t in self.activity() if start <= t < end})


def rows(directory: Path, sql: str) -> list[Any]:
    database = sqlite3.connect(directory / "db.sqlite3", timeout=20)
    try:
        return database.execute(sql).fetchall()
    finally:
        database.close()


def souvenirs(directory: Path) -> list[tuple[int, float]]:
    return [
        (user, datetime.fromisoformat(when).replace(tzinfo=timezone.utc).timestamp())
        for user, when in rows(directory, 'SELECT user_id, "when" FROM souvenirs_souvenir')
    ]


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        directory = stack.enter_context(servers.directory("demo"))
        populate(directory, users=USERS, weeks=WEEKS, idle_hours=2.5)
        past = souvenirs(directory)
        site = stack.enter_context(serve(directory))
        forwarders = {
            job: stack.enter_context(forwarding(site, accept)) for job, accept in ACCEPT.items()
        }
        names = [person.username for person in PEOPLE if person.is_active][: SIGNED_IN - 1]
        traffic = stack.enter_context(Traffic(site, names, PASSWORD, seed=1))
        started = time.time()
        traffic.sign_in(names)
        traffic.step([NEWCOMER])  # has no account, and therefore joins
        # Only now, because each scrape counts the accounts for all scrapes of the next minute
        ports = {job: forwarder.server_port for job, forwarder in forwarders.items()}
        prometheus = stack.enter_context(servers.prometheus(CONFIG.format(**ports)))
        scene = Scene(
            directory=directory,
            site=site,
            prometheus=prometheus,
            forwarders=forwarders,
            past=past,
            started=started,
            traffic=traffic,
        )
        names.append(NEWCOMER)
        for _ in range(STEPS):
            traffic.step(names)
        # A worker flushes the hits of its memory when it answers a scrape, and Prometheus has them
        # a second later. The tests, not this fixture, assert that it has all of them.
        wait_until(
            lambda: all(records(scene.samples(job)) == len(traffic.visits) for job in ACCEPT), 30
        )
        yield scene


def records(samples: Mapping[tuple[str, str], float]) -> float:
    return sum(value for (name, _), value in samples.items() if name == "souvenirs_records_total")


each_format = pytest.mark.parametrize("job", list(ACCEPT))


def test_both_formats_are_served(scene: Scene) -> None:
    (openmetrics,) = scene.forwarders["openmetrics"].content_types
    assert openmetrics.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    (text,) = scene.forwarders["text"].content_types
    assert text.startswith("text/plain; version=0.0.4; charset=utf-8")


def test_prometheus_accepts_every_target(scene: Scene) -> None:
    def errors() -> dict[str, str]:
        answer = requests.get(f"{scene.prometheus}/api/v1/targets", timeout=10).json()
        return {one["labels"]["job"]: one["lastError"] for one in answer["data"]["activeTargets"]}

    none = dict.fromkeys(ACCEPT, "")
    assert wait_until(lambda: errors() == none, 20), errors()
    assert [scene.samples(job)["souvenirs_up", ""] for job in ACCEPT] == [1, 1]


@each_format
def test_active_users_of_each_window(scene: Scene, job: str) -> None:
    samples = scene.samples(job)
    now = samples["souvenirs_collection_timestamp_seconds", ""]
    assert samples["souvenirs_active_users", "1h"] == SIGNED_IN
    for window, seconds in WINDOWS.items():
        # Never short, and at most a minute too long
        least, most = scene.users(now - seconds), scene.users(now - seconds - 60)
        assert least <= samples["souvenirs_active_users", window] <= most, window
    assert scene.users(now - WINDOWS["30d"]) > scene.users(now - WINDOWS["1d"]) > SIGNED_IN


def beginnings(day: date) -> dict[str, date]:
    """The first date of each calendar period that contains `day`."""
    return {
        "day": day,
        "week": day - timedelta(days=day.weekday()),
        "month": day.replace(day=1),
        "quarter": day.replace(day=1, month=day.month - (day.month - 1) % 3),
        "year": day.replace(day=1, month=1),
    }


def midnight(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=PARIS).timestamp()


@each_format
def test_active_users_of_each_calendar_period(scene: Scene, job: str) -> None:
    samples = scene.samples(job)
    now = samples["souvenirs_collection_timestamp_seconds", ""]
    for period, first in beginnings(datetime.fromtimestamp(now, PARIS).date()).items():
        start = midnight(first)
        assert samples["souvenirs_calendar_period_start_timestamp_seconds", period] == start
        assert samples["souvenirs_calendar_active_users", period] == scene.users(start), period


@each_format
def test_active_users_of_previous_periods(scene: Scene, job: str) -> None:
    samples = scene.samples(job)
    now = samples["souvenirs_collection_timestamp_seconds", ""]
    expected = {}
    for period, first in beginnings(datetime.fromtimestamp(now, PARIS).date()).items():
        before = beginnings(first - timedelta(days=1))[period]
        if period in ("day", "week", "month"):  # longer ones began before the first souvenir
            expected[period] = scene.users(midnight(before), midnight(first))
    name = "souvenirs_previous_calendar_active_users"
    assert {label: value for (n, label), value in samples.items() if n == name} == expected
    assert all(expected.values())


@each_format
def test_accounts(scene: Scene, job: str) -> None:
    samples = scene.samples(job)
    others = 2  # the admin and the newcomer
    assert samples["souvenirs_registered_users", ""] == USERS + others
    activated = sum(person.is_active for person in PEOPLE) + others
    assert samples["souvenirs_activated_users", ""] == activated < USERS + others


@each_format
def test_last_seen(scene: Scene, job: str) -> None:
    newest = max(t for _, t in scene.activity())
    seen = scene.samples(job)["souvenirs_last_seen_timestamp_seconds", ""]
    assert newest - 61 <= seen <= newest


@each_format
def test_records_of_both_workers_add_up(scene: Scene, job: str) -> None:
    samples = scene.samples(job)
    added = [user for user, t in souvenirs(scene.directory) if t >= scene.started]
    results = {label: n for (name, label), n in samples.items() if name.endswith("_records_total")}
    assert results == {
        "added": len(added),  # a user has a row from each worker, because they share no cache
        "rate_limited": len(scene.traffic.visits) - len(added),
        "duplicated": 0,
        "skipped": 0,
        "failed": 0,
    }
    assert len(set(added)) == SIGNED_IN
    assert len(scene.traffic.visits) > SIGNED_IN + STEPS


def scrape(scene: Scene, job: str) -> str:
    accept = ACCEPT[job] or "application/openmetrics-text;version=1.0.0"
    response = requests.get(f"{scene.site}/metrics", headers={"Accept": accept}, timeout=10)
    response.raise_for_status()
    return response.text


@each_format
def test_page_has_no_duplicates(scene: Scene, job: str) -> None:
    page = scrape(scene, job).splitlines()
    families = [line for line in page if re.match("# (HELP|TYPE) souvenirs_", line)]
    series = [line.rpartition(" ")[0] for line in page if line.startswith("souvenirs_")]
    assert len(set(families)) == len(families) > 0
    assert len(set(series)) == len(series) > 0
    assert len({line.split()[2] for line in families}) == len(families) / 2


@each_format
def test_metrics_of_django_prometheus_are_on_the_page(scene: Scene, job: str) -> None:
    counted = [
        float(line.rpartition(" ")[2])
        for line in scrape(scene, job).splitlines()
        if line.startswith("django_http_requests_before_middlewares_total ")
    ]
    assert len(counted) == bool(find_spec("django_prometheus"))
    assert all(count >= len(scene.traffic.visits) for count in counted)  # of both workers


def test_promtool_accepts_the_page(scene: Scene) -> None:
    promtool = [servers.program("promtool", "prometheus"), "check", "metrics"]
    done = subprocess.run(promtool, input=scrape(scene, "text"), capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode in (0, 3), said  # 3: it reports names of others' metrics, too
    complaints = [line for line in said.splitlines() if "souvenirs_" in line]
    # It means a number of days, not a duration in seconds
    assert [line for line in complaints if "souvenirs_active_days" not in line] == []


def test_demo_once() -> None:
    """It exits with 0, and prints the page and nothing else to standard output."""
    options = ["--once", "--port=0", "--users=30", "--weeks=2", "--sign-in=3"]
    command = [sys.executable, "-m", "demo", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert 'souvenirs_active_users{window="1h"} 3.0\n' in done.stdout
    assert re.fullmatch(r"((#|[a-z_]+(\{.*\})?) .*\n)+", done.stdout)
    assert 'souvenirs_active_users{window="1h"} is 3: right' in done.stderr
    assert "WARNINGS" not in done.stderr


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="SIGINT"),
        pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.soak),
    ],
)
def test_demo_ends_cleanly(number: signal.Signals) -> None:
    with servers.directory("demo") as directory:
        log = directory / "log"
        with servers.running(
            [sys.executable, "-m", "demo", "--port=0", "--users=30", "--weeks=2", "--rate=600"],
            lambda: "souvenirs_up" in log.read_text(),
            log,
            cwd=ROOT,
            env=os.environ | {"DEMO_DIR": str(directory)},
            start_new_session=True,
        ) as demo:
            (port,) = re.findall(r"127\.0\.0\.1:(\d+)/metrics", log.read_text())
            (watching,) = re.findall(r"127\.0\.0\.1:(\d+)\S*/alerts", log.read_text())
            children = descendants(demo.pid)
            assert len(children) == 4  # gunicorn and its workers, Prometheus
            os.killpg(demo.pid, number)  # the whole process group, as a terminal does
            assert demo.wait(60) == 0
            assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
        assert "Traceback" not in log.read_text()
        for each in (port, watching):
            with socket.socket() as client:
                assert client.connect_ex(("127.0.0.1", int(each))) != 0


@pytest.mark.soak
def test_demo_prometheus_has_data_for_every_panel() -> None:
    """It has the past from the history and the present from scrapes, but no reason to fire
    alerts."""
    with servers.directory("demo") as directory:
        log = directory / "log"
        with servers.running(
            [sys.executable, "-m", "demo", "--port=0", "--users=300", "--rate=600"],
            lambda: "souvenirs_up" in log.read_text(),
            log,
            cwd=ROOT,
            env=os.environ | {"DEMO_DIR": str(directory)},
            start_new_session=True,
        ):
            (alerts,) = re.findall(r"http://127\.0\.0\.1:\d+\S*/alerts", log.read_text())
            assert requests.get(alerts, timeout=10).status_code == 200
            url = "http://" + urlsplit(alerts).netloc

            def silent() -> list[str]:
                panel_client = test_dashboards.PanelClient(
                    url, int(time.time()), rate_interval="30s"
                )
                return [
                    f"{panel['title']}: {target['expr']}"
                    for panel in test_dashboards.PANELS
                    for target in panel["targets"]
                    if "ALERTS" not in target["expr"]
                    and not test_dashboards.DECLARED.search(target["expr"])
                    and not panel_client.query(target, days=test_dashboards.days_shown(panel))
                ]

            assert wait_until(lambda: not silent(), 60), silent()
            answer = requests.get(f"{url}/api/v1/rules", timeout=10).json()
            rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
            assert len(rules) > 10
            assert [rule for rule in rules if rule["health"] == "err"] == []
            assert [rule for rule in rules if rule.get("state") == "firing"] == []
            days = requests.get(
                f"{url}/api/v1/query",
                params={"query": 'count_over_time(souvenirs_active_users{window="1h"}[60d:1d])'},
                timeout=10,
            ).json()
            ((_, count),) = [each["value"] for each in days["data"]["result"]]
            assert int(count) >= 60


def descendants(pid: int) -> list[int]:
    children = [
        int(child)
        for file in Path(f"/proc/{pid}/task").glob("*/children")
        for child in file.read_text().split()
    ]
    return children + [one for child in children for one in descendants(child)]
