"""The rules of Grafana's dashboard-linter; the exceptions are in grafana/dashboards/.lint."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.servers import program

pytestmark = pytest.mark.own_site

Json = dict[str, Any]
Rule = Callable[[Json], Iterator["Problem"]]

DIRECTORY = Path(str(files("souvenirs_metrics.grafana"))) / "dashboards"
DASHBOARDS = [json.loads(path.read_text()) for path in sorted(DIRECTORY.glob("*.json"))]
EXCLUSIONS = yaml.safe_load((DIRECTORY / ".lint").read_text())["exclusions"]
# The units of Grafana that make sense here
UNITS = {"none", "short", "locale", "percentunit", "s", "reqps", "dateTimeAsIso"}
SOURCE = "${datasource}"
VARIABLES = {"$__rate_interval": "5m", "$__range": "30d", "$__interval": "1m", "$window": "1d"}
SELECTOR = r"[a-zA-Z_:][\w:]*\{([^}]*)\}"
NO_QUERIES = {"row", "text"}


class Problem(NamedTuple):
    panel: str  # the panel's title; empty for the dashboard itself
    message: str


def panels(dashboard: Json) -> list[Json]:
    return [panel for panel in dashboard["panels"] if panel["type"] not in NO_QUERIES]


def targets(dashboard: Json) -> list[tuple[str, Json]]:
    """The targets of all panels, each with its panel's title."""
    return [(panel["title"], target) for panel in panels(dashboard) for target in panel["targets"]]


def variables(dashboard: Json, kind: str) -> list[Json]:
    return [each for each in dashboard["templating"]["list"] if each["type"] == kind]


def without_variables(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return re.sub(r"\$\w+", "x", query)


def template_datasource(dashboard: Json) -> Iterator[Problem]:
    found = [(each["name"], each["label"]) for each in variables(dashboard, "datasource")]
    if found != [("datasource", "Data source")]:
        yield Problem("", f"has data sources {found}")


def template(name: str) -> Rule:
    """The rule that a variable of this name offers all values of the label."""

    def check(dashboard: Json) -> Iterator[Problem]:
        [*found] = [each for each in variables(dashboard, "query") if each["name"] == name]
        if not found:
            yield Problem("", f"has no variable {name}")
        for each in found:
            shown = each["label"], each["datasource"]["uid"], each["multi"], each["allValue"]
            if shown != (name.capitalize(), SOURCE, True, ".+"):
                yield Problem("", f"has a variable {name} with {shown}")

    return check


def template_label_promql(dashboard: Json) -> Iterator[Problem]:
    for each in variables(dashboard, "query"):
        if not re.fullmatch(rf"label_values\((\w+|{SELECTOR}), \w+\)", each["definition"]):
            yield Problem("", f"has a variable {each['name']} of {each['definition']}")
        if each["query"]["query"] != each["definition"]:
            yield Problem("", f"has two queries for {each['name']}")


def template_on_time_change_reload(dashboard: Json) -> Iterator[Problem]:
    for each in variables(dashboard, "query"):
        if each["refresh"] != 2:
            yield Problem("", f"reloads {each['name']} when the dashboard is loaded only")


def uneditable(dashboard: Json) -> Iterator[Problem]:
    if dashboard["editable"]:
        yield Problem("", "is editable")


def panel_datasource(dashboard: Json) -> Iterator[Problem]:
    for panel in panels(dashboard):
        if panel["datasource"]["uid"] != SOURCE:
            yield Problem(panel["title"], "does not use the variable for its data source")
    for title, target in targets(dashboard):
        if target["datasource"]["uid"] != SOURCE:
            yield Problem(title, f"does not use the variable for query {target['refId']}")


def panel_title_description(dashboard: Json) -> Iterator[Problem]:
    for panel in panels(dashboard):
        if not panel.get("title") or not panel.get("description"):
            yield Problem(panel.get("title", ""), f"{panel['id']} lacks a title or description")


def panel_units(dashboard: Json) -> Iterator[Problem]:
    for panel in panels(dashboard):
        config = panel["fieldConfig"]
        properties = [each for override in config["overrides"] for each in override["properties"]]
        units = {each["value"] for each in properties if each["id"] == "unit"}
        for unit in {config["defaults"].get("unit"), *units} - UNITS:
            yield Problem(panel["title"], f"has the unit {unit}")


def panel_no_targets(dashboard: Json) -> Iterator[Problem]:
    for panel in panels(dashboard):
        if not panel.get("targets"):
            yield Problem(panel["title"], "has no queries")


def target_promql(dashboard: Json) -> Iterator[Problem]:
    """All queries are parsed by promtool, in one run."""
    rules = [
        {"record": f"x{number}", "expr": without_variables(target["expr"])}
        for number, (_, target) in enumerate(targets(dashboard))
    ]
    done = subprocess.run(
        [program("promtool", "prometheus"), "check", "rules", "/dev/stdin"],
        input=json.dumps({"groups": [{"name": "x", "rules": rules}]}),
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        yield Problem("", done.stderr)


def target_rate_interval(dashboard: Json) -> Iterator[Problem]:
    for title, target in targets(dashboard):
        for interval in re.findall(rf"\bi?rate\({SELECTOR}\[([^\]]+)\]", target["expr"]):
            if interval[1] != "$__rate_interval":
                yield Problem(title, f"has a rate of {interval[1]}")


def target_counter_agg(dashboard: Json) -> Iterator[Problem]:
    for title, target in targets(dashboard):
        counters = len(re.findall(r"\w+_total\b", target["expr"]))
        rates = len(re.findall(r"\b(?:i?rate|increase)\(\w+_total\{[^}]*\}\[", target["expr"]))
        if counters != rates:
            yield Problem(title, f"shows a counter as it is: {target['expr']}")


def target_matcher(label: str) -> Rule:
    """The rule that each selector has label=~"$label"."""

    def check(dashboard: Json) -> Iterator[Problem]:
        for title, target in targets(dashboard):
            for matchers in re.findall(SELECTOR, target["expr"]):
                if f'{label}=~"${label}"' not in re.split(r",\s*", matchers):
                    yield Problem(title, f"selects no {label} in {{{matchers}}}")

    return check


def target_legend(dashboard: Json) -> Iterator[Problem]:
    """Not a rule of the linter: without a legend, a line is named by its query."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            if panel["type"] in {"timeseries", "state-timeline"} and not target["legendFormat"]:
                yield Problem(panel["title"], f"has no legend for query {target['refId']}")


RULES: dict[str, Rule] = {
    "template-datasource-rule": template_datasource,
    "template-job-rule": template("job"),
    "template-instance-rule": template("instance"),
    "template-label-promql-rule": template_label_promql,
    "template-on-time-change-reload-rule": template_on_time_change_reload,
    "uneditable-dashboard": uneditable,
    "panel-datasource-rule": panel_datasource,
    "panel-title-description-rule": panel_title_description,
    "panel-units-rule": panel_units,
    "panel-no-targets-rule": panel_no_targets,
    "target-promql-rule": target_promql,
    "target-rate-interval-rule": target_rate_interval,
    "target-counter-agg-rule": target_counter_agg,
    "target-job-rule": target_matcher("job"),
    "target-instance-rule": target_matcher("instance"),
    "target-legend": target_legend,
}


def is_excluded(rule: str, problem: Problem) -> bool:
    """As the linter reads .lint: without entries, the rule is off."""
    if rule not in EXCLUSIONS:
        return False
    entries = EXCLUSIONS[rule].get("entries")
    return entries is None or problem.panel in {entry["panel"] for entry in entries}


@pytest.mark.parametrize("rule", RULES)
def test_dashboards__follow_the_rule(rule: str) -> None:
    problems = [
        f"{dashboard['title']}, {problem.panel}: {problem.message}"
        for dashboard in DASHBOARDS
        for problem in RULES[rule](dashboard)
        if not is_excluded(rule, problem)
    ]
    assert problems == []


@pytest.mark.parametrize("rule", EXCLUSIONS)
def test_exclusion__has_a_reason_and_is_needed(rule: str) -> None:
    assert EXCLUSIONS[rule]["reason"].endswith(".")
    found = {problem.panel for dashboard in DASHBOARDS for problem in RULES[rule](dashboard)}
    assert found
    assert {entry["panel"] for entry in EXCLUSIONS[rule].get("entries", [])} <= found


# A dashboard with each fault, and the rule that finds it


def break_query(dashboard: Json, old: str, new: str) -> None:
    [*found] = [target for _, target in targets(dashboard) if old in target["expr"]]
    found[0]["expr"] = found[0]["expr"].replace(old, new)


FAULTS: dict[str, Callable[[Json], object]] = {
    "template-datasource-rule": lambda d: d["templating"]["list"][0].update(name="source"),
    "template-job-rule": lambda d: d["templating"]["list"][1].update(allValue=".*"),
    "template-label-promql-rule": lambda d: d["templating"]["list"][1].update(definition="up"),
    "template-on-time-change-reload-rule": lambda d: d["templating"]["list"][1].update(refresh=1),
    "uneditable-dashboard": lambda d: d.update(editable=True),
    "panel-datasource-rule": lambda d: panels(d)[0].update(datasource={"uid": "x"}),
    "panel-title-description-rule": lambda d: panels(d)[0].update(description=""),
    "panel-units-rule": lambda d: panels(d)[0]["fieldConfig"]["defaults"].pop("unit"),
    "panel-no-targets-rule": lambda d: panels(d)[0].update(targets=[]),
    "target-promql-rule": lambda d: break_query(d, "(", "(("),
    "target-rate-interval-rule": lambda d: break_query(
        d, 'rate_limited"}[$__rate_interval]', 'rate_limited"}[5m]'
    ),
    "target-counter-agg-rule": lambda d: break_query(d, "increase(", "max_over_time("),
    "target-job-rule": lambda d: break_query(d, 'job=~"$job", result', "result"),
    "target-legend": lambda d: [t.update(legendFormat="") for _, t in targets(d)],
}


@pytest.mark.parametrize("rule", sorted(FAULTS))
def test_rule__finds_a_fault(rule: str) -> None:
    [dashboard] = [each for each in DASHBOARDS if each["uid"] == "souvenirs-exporter"]
    broken = json.loads(json.dumps(dashboard))
    FAULTS[rule](broken)
    assert [*RULES[rule](broken)] != [*RULES[rule](dashboard)]
    assert FAULTS.keys() | EXCLUSIONS.keys() == RULES.keys()
