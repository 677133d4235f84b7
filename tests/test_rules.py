"""The rules for Prometheus: they are valid, tested and documented, and alerts are delivered."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from souvenirs_metrics import families
from souvenirs_metrics.collector import SouvenirsCollector
from tests import servers
from tests.test_exporter import ADA, exporter

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "prometheus" / "prometheus.yml"
RULES = ROOT / "prometheus" / "souvenirs.rules.yml"
TESTS = sorted((ROOT / "prometheus" / "tests").glob("*.yml"))
DOCS = (ROOT / "docs" / "alerts.md").read_text()
RUNBOOKS = "https://github.com/appsembler/django-souvenirs/blob/master/docs/alerts.md"

[GROUP] = yaml.safe_load(RULES.read_text())["groups"]
RECORDS = {rule["record"]: rule for rule in GROUP["rules"] if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in GROUP["rules"] if "alert" in rule}
THRESHOLD = "souvenirs:threshold:"
NAMES = {
    "SouvenirsActiveUsersBelowNormal",
    "SouvenirsActiveUsersDrop",
    "SouvenirsChurnHigh",
    "SouvenirsCollectionFailing",
    "SouvenirsCollectionOld",
    "SouvenirsMetricsAbsent",
    "SouvenirsNoActivity",
    "SouvenirsNoNewUsers",
    "SouvenirsRecordsFailing",
    "SouvenirsRollupLagging",
    "SouvenirsSeatsNearlyUsed",
    "SouvenirsSeriesDisappeared",
    "SouvenirsStickinessFalling",
    "SouvenirsTargetDown",
    "SouvenirsWritesFailing",
}

pytestmark = pytest.mark.own_site


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        [servers.program("promtool", "prometheus"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# The files


def test_configuration__is_valid() -> None:
    promtool("check", "config", CONFIG)


def test_configuration__is_valid_with_alertmanager(tmp_path: Path) -> None:
    (tmp_path / CONFIG.name).write_text(with_alertmanager(CONFIG.read_text()))
    (tmp_path / RULES.name).write_bytes(RULES.read_bytes())
    promtool("check", "config", tmp_path / CONFIG.name)


def with_alertmanager(config: str) -> str:
    """The example configuration with its lines for Alertmanager uncommented."""
    found, count = re.subn(r"(?m)^# (alerting:| )", r"\1", config)
    assert count == 4
    return found


def test_rules__are_valid() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_rules__pass_their_tests(path: Path) -> None:
    promtool("test", "rules", path)


def test_rules__have_unique_names() -> None:
    rules = [(rule.get("record") or rule["alert"], rule.get("labels")) for rule in GROUP["rules"]]
    assert all(rules.count(rule) == 1 for rule in rules)
    assert set(ALERTS) == NAMES


# Names


def test_records__are_named_level_metric_operation() -> None:
    assert all(re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", name) for name in RECORDS)


@pytest.mark.parametrize(
    "rule", GROUP["rules"], ids=lambda rule: rule.get("record") or rule["alert"]
)
def test_rule__uses_metrics_that_exist(rule: dict[str, Any]) -> None:
    ours = {
        family.name
        for family in SouvenirsCollector().families
        if isinstance(family, families.Gauge)
    }
    counters = {f"{families.RECORDS_NAME}_total", f"{families.WRITE_ERRORS_NAME}_total"}
    assert metrics_of(rule["expr"]) <= {"up", *ours, *counters, *RECORDS}


def metrics_of(promql: str) -> set[str]:
    """The metric names in an expression."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\boffset \w+|\b(by|on) \([^)]*\)", "", promql)
    names = re.findall(r"\b[a-z_][\w:]*(?!\w|\s*\()", bare)
    return set(names) - {"and", "or", "unless"}


def test_metrics_of() -> None:
    promql = """
        (max by (job, window) (a_b{window="1d"} offset 4w) / x:y_z:w >= scalar(t:t:t)) < 0.5
        and on (job) avg_over_time((c > 0)[1w:1h] offset 3w) unless up or absent(d)
    """
    assert metrics_of(promql) == {"a_b", "x:y_z:w", "t:t:t", "c", "up", "d"}


@pytest.mark.parametrize("name", RECORDS)
def test_record__is_used(name: str) -> None:
    assert any(
        name in metrics_of(rule["expr"]) for rule in GROUP["rules"] if rule.get("record") != name
    )


@pytest.mark.parametrize("name", [name for name in RECORDS if name.startswith(THRESHOLD)])
def test_threshold__can_be_set_for_a_job(name: str) -> None:
    of_job = name.replace(THRESHOLD, "job:souvenirs_threshold:")
    watched = "job:souvenirs_watched:group"
    assert " ".join(RECORDS[of_job]["expr"].split()) == (
        f'max by (job) ({name}{{job!=""}}) and {watched} or'
        f' {watched} * on () group_left () {name}{{job=""}}'
    )
    others = [rule["expr"] for rule in GROUP["rules"] if rule.get("record") != of_job]
    assert not any(name in metrics_of(expr) for expr in others)
    assert any(f"on (job) group_left () {of_job}" in expr for expr in others)


# What users read


@pytest.mark.parametrize("name", ALERTS)
def test_alert__says_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    page, anchor = alert["annotations"]["runbook_url"].split("#")
    assert page == RUNBOOKS
    assert anchor == name.lower()
    assert f"\n## {name}\n" in DOCS
    assert {"for", "keep_firing_for"} <= set(alert)


def test_docs__have_the_alerts_and_no_others() -> None:
    assert (
        set(re.findall(r"Souvenirs[A-Z]\w+", DOCS))
        - {"SouvenirsMiddleware", "SouvenirsActiveUsers"}
        == NAMES
    )


def test_docs__query_metrics_that_exist() -> None:
    code = " ".join(re.findall(r"(?m)^    .+", DOCS))
    ours = {family.name for family in SouvenirsCollector().families} | {
        f"{families.RECORDS_NAME}_total"
    }
    queried = set(re.findall(r"[\w:]*\bsouvenirs_[\w:]+", code)) - {"souvenirs_metrics"}
    assert queried
    assert queried <= ours | set(RECORDS)


def test_docs__have_the_thresholds() -> None:
    documented = dict(re.findall(r"^\| (souvenirs:threshold:\w+) \| ([\d.]+) \|", DOCS, re.M))
    thresholds = {
        name: rule["expr"] for name, rule in RECORDS.items() if name.startswith(THRESHOLD)
    }
    assert thresholds.pop("souvenirs:threshold:seats") == "vector(0) > 0"  # no threshold
    assert "| souvenirs:threshold:seats | none |" in DOCS
    assert {name: f"vector({value})" for name, value in documented.items()} == thresholds


# The rules' tests


def minutes(text: str) -> int:
    return int(text[:-1]) * {"m": 1, "h": 60}[text[-1]]


def stories(name: str) -> Iterator[tuple[set[str], list[set[tuple[str, str]]]]]:
    """For each group of tests of the alert: its jobs, and the labels for which it fires, by
    time."""
    for path in TESTS:
        for group in yaml.safe_load(path.read_text())["tests"]:
            series = " ".join(one["series"] for one in group["input_series"])
            tests = [test for test in group["alert_rule_test"] if test["alertname"] == name]
            if tests:
                tests.sort(key=lambda test: minutes(test["eval_time"]))
                yield (
                    set(re.findall('job="([^"]+)"', series)),
                    [
                        {
                            (alert["exp_labels"].get("job", ""), json.dumps(alert["exp_labels"]))
                            for alert in test.get("exp_alerts", [])
                        }
                        for test in tests
                    ],
                )


@pytest.mark.parametrize("name", sorted(NAMES))
def test_alert__is_tested(name: str) -> None:
    """It fires in some test and resolves later, and for some job it never fires."""
    fires = resolves = is_silent = False
    for jobs, times in stories(name):
        fired = set().union(*times)
        fires |= bool(fired)
        resolves |= any(before - after for before, after in pairwise(times))
        is_silent |= bool(fired and jobs - {job for job, _ in fired})
    assert (fires, resolves, is_silent) == (True, True, True)


# From Prometheus to the receiver


class Receiver(ThreadingHTTPServer):
    """Receives what Alertmanager sends to a team's webhook."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiving)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.alerts: list[dict[str, Any]] = []


class Receiving(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.alerts += json.loads(body)["alerts"]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, args=(0.05,))
        thread.start()
        yield receiver
        receiver.shutdown()
        thread.join()


@contextmanager
def alertmanager(config: str) -> Iterator[str]:
    """Run an Alertmanager with this configuration file and without a cluster; yield its URL."""
    with servers.directory("alertmanager") as path:
        (path / "alertmanager.yml").write_text(config)
        url = f"http://127.0.0.1:{servers.free_port()}"
        command = [
            servers.program("prometheus-alertmanager", "prometheus-alertmanager"),
            f"--config.file={path / 'alertmanager.yml'}",
            f"--storage.path={path / 'data'}",
            f"--web.listen-address={url.removeprefix('http://')}",
            "--cluster.listen-address=",
        ]
        with servers.running(command, lambda: servers.answers(f"{url}/-/ready"), path / "log"):
            yield url


def alertmanager_config(receiver: Receiver) -> str:
    """The example in the docs, changed to notify the receiver at once."""
    [example] = re.findall(r"\n\n(    route:\n(?:    .*\n)+)", DOCS)
    config = yaml.safe_load(textwrap.dedent(example))
    config["route"] |= {"group_wait": "0s", "group_interval": "200ms"}
    config["receivers"][0]["webhook_configs"][0]["url"] = receiver.url
    return yaml.safe_dump(config)


def impatient_rules(name: str) -> str:
    """The rules, with this alert as quick as a test needs it."""
    rules = yaml.safe_load(RULES.read_text())
    [alert] = [rule for rule in rules["groups"][0]["rules"] if rule.get("alert") == name]
    alert |= {
        "for": "500ms",
        "keep_firing_for": "500ms",
        "expr": re.sub(r"\[\d+m\]", "[2s]", alert["expr"]),
    }
    return yaml.safe_dump(rules)


def rename(database: Path, table: str, name: str) -> None:
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO {name}")


def wait_until(is_true: Callable[[], Any], seconds: float = 45) -> bool:
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_alertmanager__sends_the_most_informative_alert(receiver: Receiver) -> None:
    held_back = {
        ("SouvenirsActiveUsersDrop", "souvenirs", "1h"),
        ("SouvenirsActiveUsersBelowNormal", "souvenirs", "1h"),
        ("SouvenirsActiveUsersBelowNormal", "shop", "1h"),
        ("SouvenirsNoNewUsers", "souvenirs", ""),
    }
    notified = {
        ("SouvenirsNoActivity", "souvenirs", "1h"),
        ("SouvenirsActiveUsersDrop", "shop", "1h"),
        ("SouvenirsActiveUsersBelowNormal", "shop", "30d"),
        ("SouvenirsNoNewUsers", "shop", ""),
    }
    names = ("alertname", "job", "window")
    alerts = [{"labels": dict(zip(names, labels))} for labels in held_back | notified]

    with alertmanager(alertmanager_config(receiver)) as url:
        requests.post(f"{url}/api/v2/alerts", json=alerts, timeout=30).raise_for_status()

        def shown() -> set[tuple[str, ...]]:
            answer = requests.get(f"{url}/api/v2/alerts?inhibited=false", timeout=30).json()
            return {tuple(alert["labels"].get(name, "") for name in names) for alert in answer}

        assert wait_until(lambda: shown() == notified)


def test_alert__fires_and_resolves_through_alertmanager(
    tmp_path: Path, receiver: Receiver, run_site: Callable[..., str]
) -> None:
    """A table of the site disappears, and comes back."""
    run_site(ADA, 'SILENCED_SYSTEM_CHECKS = ["souvenirs_metrics.W001"]')
    database = tmp_path / "site.sqlite3"
    (tmp_path / "souvenirs.rules.yml").write_text(impatient_rules("SouvenirsCollectionFailing"))

    def received(status: str) -> list[dict[str, Any]]:
        return [alert for alert in receiver.alerts if alert["status"] == status]

    rename(database, "souvenirs_lastseen", "away")
    with (
        exporter(tmp_path, ":0") as (site, _),
        alertmanager(alertmanager_config(receiver)) as manager,
        servers.prometheus(
            with_alertmanager(CONFIG.read_text())
            .replace("127.0.0.1:8000", site.removeprefix("http://"))
            .replace("127.0.0.1:9093", manager.removeprefix("http://"))
            .replace("_interval: 15s", "_interval: 1s\n  scrape_timeout: 1s")
            .replace("_interval: 1m", "_interval: 500ms")
            .replace("- souvenirs.rules.yml", f"- {tmp_path / 'souvenirs.rules.yml'}")
        ),
    ):
        assert wait_until(lambda: received("firing"))
        rename(database, "away", "souvenirs_lastseen")
        assert wait_until(lambda: received("resolved"))

    assert {alert["labels"]["alertname"] for alert in receiver.alerts} == {
        "SouvenirsCollectionFailing"
    }
    firing = received("firing")[0]
    assert firing["labels"]["severity"] == "warning"
    assert firing["labels"]["job"] == "souvenirs"
    assert firing["annotations"]["summary"] == "souvenirs cannot read all of its metrics."
    assert firing["annotations"]["runbook_url"] == f"{RUNBOOKS}#souvenirscollectionfailing"
    assert received("resolved")[0]["fingerprint"] == firing["fingerprint"]
