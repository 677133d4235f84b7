"""The dashboards: their JSON, and each of their queries on a real Prometheus with five weeks of
figures from two sites."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from grafana.generate.__main__ import write
from grafana.generate.queries import DATASOURCE
from souvenirs import periods
from souvenirs_metrics import families
from souvenirs_metrics.collector import SouvenirsCollector
from souvenirs_metrics.instruments import RECORDS
from souvenirs_metrics.readers import load_readers
from tests import servers
from tests.panels import CHOSEN, DAY, Json, PanelClient, days_shown

pytestmark = pytest.mark.own_site


SHIPPED = Path(str(files("souvenirs_metrics.grafana"))) / "dashboards"
DASHBOARDS = [json.loads(file.read_text()) for file in sorted(SHIPPED.glob("*.json"))]
PANELS = [
    panel for dashboard in DASHBOARDS for panel in dashboard["panels"] if panel["type"] != "row"
]


def of_one_job(dashboard: Json) -> Iterator[Json]:
    """The panels that Grafana repeats for each job, according to their row."""
    repeated = False
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            repeated = panel.get("repeat") == "job"
        elif repeated:
            yield panel


OF_ONE_JOB = [panel for dashboard in DASHBOARDS for panel in of_one_job(dashboard)]
BY = r"(\w+) by \([^)]+\) \((?:\w+\()*(\w+)"  # an aggregation and its metric
OF_PROMETHEUS = {"ALERTS", "up"}  # metrics that are not ours
SUFFIXES = {
    "counter": ("_total",),
    "gaugehistogram": ("_bucket", "_gcount", "_gsum"),
    "info": ("_info",),
}

each_dashboard = pytest.mark.parametrize(
    "dashboard", DASHBOARDS, ids=lambda dashboard: dashboard["uid"]
)
each_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])


def expressions(dashboard: Json) -> list[str]:
    """The queries of all panels and annotations."""
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    targets += [annotation["target"] for annotation in dashboard["annotations"]["list"]]
    return [target["expr"] for target in targets]


def selectors(expression: str) -> list[tuple[str, str]]:
    """Each metric in a query, with its label matchers."""
    return re.findall(r"([a-zA-Z_]\w*)\{([^}]*)\}", expression)


# The JSON


def test_files__are_up_to_date_with_the_generator(tmp_path: Path) -> None:
    write(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {file.name: file.read_bytes() for file in SHIPPED.glob("*.json")}


def test_dashboards__have_these_names() -> None:
    assert {dashboard["uid"]: dashboard["title"] for dashboard in DASHBOARDS} == {
        "souvenirs-active-users": "Active users",
        "souvenirs-growth": "Growth and retention",
        "souvenirs-exporter": "Souvenirs exporter",
        "souvenirs-segments": "Segments of active users",
    }


@each_dashboard
def test_dashboard__fits_any_grafana(dashboard: Json) -> None:
    assert dashboard["schemaVersion"] == 39
    assert dashboard["id"] is None  # Grafana assigns it
    assert "__inputs" not in dashboard
    assert dashboard["tags"] == ["souvenirs"]
    assert [link["tags"] for link in dashboard["links"]] == [["souvenirs"]]
    assert "zone" in dashboard["description"]
    source, job, *others = dashboard["templating"]["list"]
    assert [each["name"] for each in others if each["multi"] or each["includeAll"]] == []
    assert (source["name"], source["label"], source["type"]) == (
        "datasource",
        "Data source",
        "datasource",
    )
    assert (job["name"], job["multi"], job["includeAll"]) == ("job", True, True)
    sources = [each["datasource"] for each in dashboard["annotations"]["list"]]
    assert [*sources, job["datasource"]] == [DATASOURCE] * 2


@each_dashboard
def test_panels__have_unique_places_and_ids(dashboard: Json) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken = set()
    for grid in (panel["gridPos"] for panel in panels):
        assert grid["x"] + grid["w"] <= 24
        columns = range(grid["x"], grid["x"] + grid["w"])
        cells = set(itertools.product(columns, range(grid["y"], grid["y"] + grid["h"])))
        assert not taken & cells
        taken |= cells
    bottom = max(y for _, y in taken) + 1
    assert len(taken) == 24 * bottom  # no holes


@each_panel
def test_panel__has_a_description(panel: Json) -> None:
    kinds = {"bargauge", "stat", "state-timeline", "table", "timeseries", "trend"}
    assert panel["type"] in kinds
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    if not any(re.search(r"(^| )-[( ]", target["expr"]) for target in panel["targets"]):
        assert panel["fieldConfig"]["defaults"]["min"] == 0
    assert panel["datasource"] == DATASOURCE
    assert all(target["datasource"] == DATASOURCE for target in panel["targets"])


@each_panel
def test_panel__counts_no_site_twice(panel: Json) -> None:
    """Gauges are the same on every replica, counters belong to one process."""
    for target in panel["targets"]:
        for aggregation, name in re.findall(BY, target["expr"]):
            counted = name in {"ALERTS", "souvenirs_records_total"}
            assert aggregation == "max" or (aggregation == "sum" and counted)
        aggregations = re.findall(r"\w+ by \(", target["expr"])
        assert len(aggregations) == len(selectors(target["expr"]))


@each_dashboard
def test_queries__use_metrics_that_are_collected(dashboard: Json) -> None:
    described = {
        family.name + suffix
        for family in [*SouvenirsCollector().describe(), *RECORDS.describe()]
        for suffix in SUFFIXES.get(family.type, ("",))
    }
    for expression in expressions(dashboard):
        used = {name for name, _ in selectors(expression)}
        assert used <= described | OF_PROMETHEUS
        assert set(re.findall(r"souvenirs_\w+", expression)) <= used  # none without matchers


@each_dashboard
def test_queries__are_of_the_chosen_jobs(dashboard: Json) -> None:
    for expression in expressions(dashboard):
        assert all('job=~"$job' in matchers for _, matchers in selectors(expression))


@pytest.mark.where(sys.version_info >= (3, 11))
@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")
@each_dashboard
def test_dashboard__has_only_keys_that_grafana_knows(dashboard: Json) -> None:
    """Grafana's types read it and write it back unchanged, except for defaults that they add."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    decoded = Dashboard.from_json(json.loads(json.dumps(dashboard)))
    assert list(lost(dashboard, json.loads(JSONEncoder().encode(decoded)))) == []


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Yield where `after` lacks something that `before` has, or differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key in after or value is not None:
                yield from lost(value, after.get(key), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after)):
            yield from lost(old, new, f"{path}[{index}]")
    elif before != after:
        yield f"{path}: {before!r} became {after!r}"


# Five weeks of two sites: one with two replicas, and a small one

STEP = 900
PERIODS_STEP = 3_600  # the step of figures that change daily
WEEKS = 5
SITES = {"shop": (52_000, 2), "learn": (9_000, 1)}  # registered users, replicas
PARIS = ZoneInfo("Europe/Paris")
WINDOWS = {"1h": 3_600, "1d": DAY, "7d": 7 * DAY, "30d": 30 * DAY}
# (share of users, visits per day)
HABITS = ((0.2, 1.0), (0.3, 0.1), (0.5, 0.01))
BUILD = (
    'version="2.0.0"',
    'python="3.13.1"',
    'django="5.2.8"',
    'database="postgresql"',
    'last_seen_store="database"',
)
# Name, labels, and when it fires: start and end, in days before now
ALERTS = (
    ("SouvenirsActiveUsersDrop", 'job="shop",window="1d"', 9.0, 8.6),
    ("SouvenirsAbsent", "", 20.1, 20.0),
    ("SouvenirsRollupLag", 'job="learn"', 0.1, 0.0),
)
SEGMENT = {"free": 0.7, "pro": 0.25, "none": 0.04, "other": 0.01}  # plan, and its share of users
PARTS = [reader.name for reader in load_readers()]
Figures = Iterator[tuple[str, str, float]]


def site_figures(name: str, now: int) -> Iterator[tuple[int, Figures]]:
    """The gauges of a site at each instant of the five weeks, as pairs of (name, labels, value)."""
    registered, _ = SITES[name]
    chance = random.Random(name)
    origin = now - 800 * DAY  # before the beginning of last year
    visits = [0.0]  # visits since then of a user who comes about once a day
    for t in range(origin, now, STEP):
        hour, weekday = t / 3_600 % 24, t // DAY % 7  # 0 is a Thursday
        rhythm = 1 + 0.9 * math.sin((hour - 8) / 12 * math.pi)
        rhythm *= (0.6 if weekday in (2, 3) else 1.15) * chance.uniform(0.85, 1.15)
        if name == "shop" and 8.6 < (now - t) / DAY < 9.1:
            rhythm *= 0.3
        visits.append(visits[-1] + rhythm * STEP / DAY)

    def users(t: float) -> float:
        return registered * (1 + 0.4 * (t - now) / (365 * DAY))

    def seen(start: float, end: float) -> int:
        """The users of a time. Those of a past time are the same whenever it is computed."""
        times = visits[int(end - origin) // STEP] - visits[max(int(start - origin) // STEP, 0)]
        share = sum(part * (1 - math.exp(-often * times)) for part, often in HABITS)
        return round(users(end) * share)

    t = (now - 12 * 7 * DAY) // (7 * DAY) * 7 * DAY  # for the comparison
    yield t, cohort_figures(t, seen)
    for t in range(now - WEEKS * 7 * DAY, now + 1, STEP):
        yield t, iter([
            *(("souvenirs_active_users", f'window="{window}"', seen(t - seconds, t))
              for window, seconds in WINDOWS.items()),
            *(("souvenirs_segment_active_users",
               f'segment="plan",value="{value}",window="{window}"',
               round(seen(t - seconds, t) * part))
              for window, seconds in WINDOWS.items() for value, part in SEGMENT.items()),
            *(("souvenirs_active_accounts", f'window="{window}"', round(seen(t - seconds, t) / 8))
              for window, seconds in WINDOWS.items()),
            *calendar_figures(t, seen),
            ("souvenirs_registered_users", "", round(users(t))),
            ("souvenirs_activated_users", "", round(users(t) * 0.93)),
            ("souvenirs_last_seen_timestamp_seconds", "", t - chance.randrange(60)),
            ("souvenirs_rollup_lag_seconds", "", max(0, 9_000 - abs(now - t - 17 * DAY))),
            ("souvenirs_collection_duration_seconds", "", chance.lognormvariate(-3, 0.4)),
            ("souvenirs_collection_timestamp_seconds", "", t - 1),
            ("souvenirs_up", "", float(not 12 < (now - t) / DAY < 12.2)),
            *(cohort_figures(t, seen) if (now - t) % PERIODS_STEP == 0 else ()),
            *(("souvenirs_collection_part_success", f'part="{part}"',
               float(part != "accounts" or not 12 < (now - t) / DAY < 12.2)) for part in PARTS),
            *(("souvenirs_collection_part_duration_seconds", f'part="{part}"',
               chance.lognormvariate(-5, 0.4)) for part in PARTS),
        ])  # fmt: skip


def calendar_figures(t: int, seen: Callable[[float, float], int]) -> Figures:
    for name in periods.NAMES:
        label, start = f'period="{name}"', periods.calendar_period(name, t, PARIS).start
        yield "souvenirs_calendar_active_users", label, seen(start, t)
        yield "souvenirs_calendar_active_accounts", label, round(seen(start, t) / 8)
        for value, part in SEGMENT.items():
            labels = f'segment="plan",value="{value}",{label}'
            yield "souvenirs_calendar_segment_active_users", labels, round(seen(start, t) * part)
        yield "souvenirs_calendar_period_start_timestamp_seconds", label, start
        if name != "year":  # periods that were not recorded completely
            previous = periods.previous_calendar_period(name, t, PARIS)
            yield "souvenirs_previous_calendar_active_users", label, seen(*previous)


AGES = {"day": (1, 7, 28), "week": range(1, 13), "month": range(1, 13)}
DAYS = (1, 2, 3, 5, 7, 10, 14, 21, 28)


def cohort_figures(t: int, seen: Callable[[float, float], int]) -> Figures:
    """Growth, retention and active days, for users who come and go in fixed shares."""
    for name, ages in AGES.items():
        last = periods.previous_calendar_period(name, t, PARIS)
        before = periods.previous_calendar_period(name, last.start, PARIS)
        active, active_before = seen(*last), seen(*before)
        retained = min(active, active_before) * 7 // 10
        new = (active - retained) * 2 // 3
        for change, users in {
            "new": new,
            "retained": retained,
            "resurrected": active - retained - new,
            "churned": active_before - retained,
        }.items():
            labels = f'period="{name}",change="{change}"'
            yield "souvenirs_previous_calendar_growth_users", labels, users
        for age in ages:
            labels = f'period="{name}",age="{age}"'
            yield "souvenirs_retention_cohort_users", labels, new
            yield "souvenirs_retention_retained_users", labels, new * 2 // (age + 3)
    users = seen(t - 28 * DAY, t)
    for days in DAYS:
        le = f'le="{float(days)}"'
        yield "souvenirs_active_days_bucket", le, users if days == 28 else users * days // 30
    yield "souvenirs_active_days_bucket", 'le="+Inf"', users
    yield "souvenirs_active_days_gcount", "", users
    yield "souvenirs_active_days_gsum", "", users * 9


def write_openmetrics(path: Path, now: int) -> None:
    """All metrics of SITES over the five weeks before `now`, with timestamps."""
    lines: dict[str, list[str]] = {}
    histogram = "souvenirs_active_days"

    def add(t: int, name: str, value: float, *labels: str) -> None:
        matchers = ",".join(filter(None, labels))
        family = histogram if name.startswith(histogram) else name
        lines.setdefault(family, []).append(f"{name}{{{matchers}}} {value} {t}\n")

    for job, (_, replicas) in SITES.items():
        instances = [f'job="{job}",instance="{job}-{n}:8000"' for n in range(replicas)]
        chance = random.Random(job)
        counts = dict.fromkeys(families.RECORDS_RESULTS, 0)
        for t, figures in site_figures(job, now):
            values = list(figures)
            for instance in instances:
                for name, label, value in values:
                    add(t, name, value, instance, label)
            if t < now - WEEKS * 7 * DAY:
                continue
            hour_users = values[0][2]
            failed = 40 if 12 < (now - t) / DAY < 12.2 else 0
            for result, visits in (
                ("rate_limited", hour_users * 30),
                ("added", hour_users / 4),
                ("duplicated", hour_users / 50),
                ("skipped", hour_users / 10),
                ("failed", failed),
            ):
                counts[result] += round(visits * chance.uniform(0.9, 1.1))
            for instance in instances:
                add(t, "up", 1, instance)
                add(t, "souvenirs_build_info", 1, instance, *BUILD)
                for result, count in counts.items():
                    add(t, "souvenirs_records_total", count, instance, f'result="{result}"')
    for alert, labels, first, last in ALERTS:
        for t in range(now - WEEKS * 7 * DAY, now + 1, STEP):
            if now - first * DAY <= t <= now - last * DAY:
                firing = f'alertname="{alert}"', 'alertstate="firing"', labels
                add(t, "ALERTS", 1, *firing)
    with path.open("w") as file:
        for name, family in lines.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            kind = "gaugehistogram" if name == histogram else kind
            file.write(f"# TYPE {name.removesuffix('_total')} {kind}\n")
            file.writelines(family)
        file.write("# EOF\n")


@contextmanager
def prometheus_with_history(now: int, port: int | None = None) -> Iterator[str]:
    """Run a Prometheus server that has these metrics and scrapes nothing; yield its URL."""
    with servers.directory("history") as path:
        write_openmetrics(path / "openmetrics", now)
        subprocess.run(
            [servers.program("promtool", "prometheus"), "tsdb", "create-blocks-from",
             "--max-block-duration=2400h", "openmetrics", path / "openmetrics", path / "data"],
            check=True, capture_output=True,
        )  # fmt: skip
        flags = [f"--query.lookback-delta={PERIODS_STEP}s"]
        with servers.prometheus(data=path / "data", port=port, flags=flags) as url:
            yield url


# The queries


# What a site must declare first
DECLARED = re.compile("souvenirs_(calendar_)?(segment_active_users|active_accounts)")


@pytest.fixture(scope="module")
def panel_client() -> Iterator[PanelClient]:
    now = int(time.time())
    with prometheus_with_history(now) as url:
        yield PanelClient(url, now)


def legend(target: Json, series: Json) -> str:
    labels = series["metric"]
    if target.get("format") == "table":
        return f"{target['refId']} {labels}"
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), target["legendFormat"])


def test_figures__have_the_names_and_labels_of_a_collection(
    panel_client: PanelClient, db: None
) -> None:
    collected = {
        (sample.name, frozenset(sample.labels))
        for family in SouvenirsCollector().collect()
        for sample in family.samples
    }
    written = {
        (labels["__name__"], frozenset(labels) - {"__name__", "job", "instance"})
        for labels in panel_client.get("series", **{"match[]": '{__name__=~".+"}'})
    }
    assert len(collected) > 9
    assert collected <= written


def test_panels__all_queries_have_data(panel_client: PanelClient) -> None:
    silent = [
        f"{panel['title']}: {target['expr']}"
        for panel in PANELS
        for target in panel["targets"]
        if not panel_client.query(target, days=days_shown(panel))
    ]
    assert silent == []


@each_dashboard
def test_variables_and_annotations__have_data(dashboard: Json, panel_client: PanelClient) -> None:
    variable = dashboard["templating"]["list"][1]
    query = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
    assert query
    values = panel_client.get(f"label/{query[2]}/values", **{"match[]": query[1]})
    assert values == sorted(SITES)
    for other in dashboard["templating"]["list"][2:]:
        query = re.fullmatch(r"label_values\((.+), (\w+)\)", other["definition"])
        assert query
        selector = query[1].replace("$job", ".+")
        values = panel_client.get(f"label/{query[2]}/values", **{"match[]": selector})
        assert CHOSEN[f"${other['name']}"] in values
    [annotation] = dashboard["annotations"]["list"]
    fired = panel_client.query(annotation["target"], days=WEEKS * 7)
    assert {series["metric"]["alertname"] for series in fired} == {name for name, *_ in ALERTS}


def test_panels__have_distinct_series_names(panel_client: PanelClient) -> None:
    """Even with two sites, one with two replicas, all series in a panel have different names."""
    for panel in PANELS:
        for job in SITES if panel in OF_ONE_JOB else (".+",):
            legends = [
                legend(target, series) for target, series in panel_client.query_panel(panel, job)
            ]
            assert len(set(legends)) == len(legends), panel["title"]


def test_panels__show_the_chosen_site_only(panel_client: PanelClient) -> None:
    for panel in PANELS:
        jobs = {
            series["metric"].get("job") for _, series in panel_client.query_panel(panel, "shop")
        }
        # An alert without a job concerns every site
        assert jobs <= {"shop", None} if "ALERTS" in str(panel) else jobs == {"shop"}


def test_panels__show_the_figures(panel_client: PanelClient) -> None:
    """The small site's panels show its figures as they were written."""
    [last] = [
        figures for t, figures in site_figures("learn", panel_client.now) if t == panel_client.now
    ]
    written = {(name, label): value for name, label, value in last}

    def shown(title: str, ref: str = "A", **labels: str) -> float:
        panel, *_ = [each for each in PANELS if each["title"] == title]
        [series] = [
            series
            for target, series in panel_client.query_panel(panel, "learn")
            if target["refId"] == ref and labels.items() <= series["metric"].items()
        ]
        return float(series["values"][-1][1])

    def windows(window: str) -> float:
        return written["souvenirs_active_users", f'window="{window}"']

    assert shown("Active in the last hour") == windows("1h")
    assert shown("Active in the last 30 days") == windows("30d")
    assert shown("Active users by window", window="7d") == windows("7d")
    assert shown("Stickiness") == pytest.approx(windows("1d") / windows("30d"))
    to_date = written["souvenirs_calendar_active_users", 'period="month"']
    last_complete = written["souvenirs_previous_calendar_active_users", 'period="month"']
    table = "To date and last complete period"
    assert shown(table, "B", period="month") == to_date
    assert shown(table, "C", period="month") == last_complete
    assert shown(table, "D", period="month") == pytest.approx(to_date / last_complete)
    assert shown("Active users by value", value="pro") == round(windows("30d") * SEGMENT["pro"])
    assert shown("Active users by value", "B") == windows("30d")
    assert shown("Share of all active users", value="pro") == pytest.approx(0.25, abs=0.01)
    assert shown("Active accounts by window", window="7d") == round(windows("7d") / 8)
    assert shown("Active users per active account") == pytest.approx(8, abs=0.1)
    assert shown("Age of the figures") == 1
    assert shown("Collection") == 1
    assert 0.9 < shown("Rate-limited share") < 1
    assert shown("Alerts firing") == 1
    growth = "souvenirs_previous_calendar_growth_users"
    new, resurrected, churned = (
        written[growth, f'period="week",change="{change}"']
        for change in ("new", "resurrected", "churned")
    )
    assert shown("New users") == new
    assert shown("Net growth") == new + resurrected - churned
    assert shown("Quick ratio") == pytest.approx((new + resurrected) / churned)
    assert shown("Back in the next week") == pytest.approx(new // 2 / new)
    curve = "Weekly retention curve"
    assert shown(curve, age="12") == pytest.approx(2 / 15, rel=0.01)
    assert shown("Average active days") == 9


@pytest.mark.parametrize("period", ["week", "month"])
def test_growth__each_bar_is_in_its_period(panel_client: PanelClient, period: str) -> None:
    """Each complete week or month has one bar, and the current one has none."""
    expected: dict[float, dict[str, float]] = {}
    for t, figures in site_figures("learn", panel_client.now):
        start = periods.previous_calendar_period(period, t, PARIS).start
        for _, labels, users in figures:
            for change in ("new", "retained", "resurrected", "churned"):
                if labels == f'period="{period}",change="{change}"':
                    sign = -1 if change == "churned" else 1
                    expected.setdefault(start, {})[change] = sign * users
    [panel] = [each for each in PANELS if each["title"] == f"Growth by {period}"]
    shown: dict[float, dict[str, float]] = {}
    for target, series in panel_client.query_panel(panel, "learn"):
        for t, value in series["values"]:
            start = periods.calendar_period(period, t, PARIS).start
            bars = shown.setdefault(start, {})
            assert target["legendFormat"] not in bars
            bars[target["legendFormat"]] = float(value)
    assert len(shown) >= {"week": 4, "month": 1}[period]
    assert {start: expected[start] for start in shown} == shown


def test_growth__rows_are_repeated_for_each_job() -> None:
    [growth] = [each for each in DASHBOARDS if each["uid"] == "souvenirs-growth"]
    rows = [panel for panel in growth["panels"] if panel["type"] == "row"]
    assert [row.get("repeat") for row in rows] == [None, "job", "job", "job"]
    assert all("$job" in row["title"] for row in rows[1:])


def test_active_days__bars_are_all_users_of_28_days(panel_client: PanelClient) -> None:
    [panel] = [each for each in PANELS if each["title"] == "Users by active days"]
    users = {
        target["legendFormat"]: float(series["values"][0][1])
        for target, series in panel_client.query_panel(panel, "learn")
    }
    assert list(users) == [
        "1 day", "2 days", "3 days", "4-5 days", "6-7 days", "8-10 days", "11-14 days",
        "15-21 days", "22-28 days",
    ]  # fmt: skip
    query = 'souvenirs_active_days_gcount{job="learn"}'
    [count] = panel_client.get("query", query=query, time=panel_client.now)["result"]
    assert sum(users.values()) == float(count["value"][1])


def test_growth__queries_of_its_docs_have_data(panel_client: PanelClient) -> None:
    text = Path("docs/growth.md").read_text()
    *queries, by_week, by_month = re.findall(r"(?m)(?:^ {4}.+\n)+", text)
    assert len(queries) > 10
    for query in queries:
        assert panel_client.get("query", query=query, time=panel_client.now)["result"], query
    for query, step in ((by_week, "1w"), (by_month, "1d")):  # as the dashboard queries them
        assert panel_client.query({"expr": query, "interval": step}, days=60), query


def test_growth__queries_of_its_docs_find_hourly_values() -> None:
    # In the past, these gauges have one sample an hour, and Prometheus looks back 5 minutes
    text = Path("docs/growth.md").read_text()
    assert len(re.findall(r"\}\[\w+\] offset ", text)) > 4
    assert not re.findall(r"\}\s+offset ", text)


def test_week_over_week__is_shifted_by_whole_weeks(panel_client: PanelClient) -> None:
    [panel] = [each for each in PANELS if each["title"].startswith("Last hour,")]
    weeks_before = {
        target["refId"]: dict(series["values"])
        for target, series in panel_client.query_panel(panel, "learn")
    }
    history = {
        t: next(value for name, label, value in figures if label == 'window="1h"')
        for t, figures in site_figures("learn", panel_client.now)
        if t >= panel_client.now - WEEKS * 7 * DAY
    }
    for ref, weeks in zip("ABCD", range(4)):
        values = weeks_before[ref]
        assert len(values) == 7 * 12 + 1
        assert all(float(v) == history[int(t) - weeks * 7 * DAY] for t, v in values.items())
