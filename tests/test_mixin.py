"""The monitoring mixin, evaluated by Jsonnet as in a deployment."""

from __future__ import annotations

import json
import re
import subprocess
import textwrap
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

import _gojsonnet as gojsonnet  # the package has no other module
import pytest
import yaml
from django.core.management import call_command

from tests.servers import program

pytestmark = pytest.mark.own_site

Json = dict[str, Any]

MIXIN = Path(str(files("souvenirs_metrics.prometheus"))) / "mixin.libsonnet"
SHIPPED = yaml.safe_load((MIXIN.parent / "souvenirs.rules.yml").read_text())
DASHBOARDS = Path(str(files("souvenirs_metrics.grafana"))) / "dashboards"
THRESHOLD = "souvenirs:threshold:"
OUT_OF_SERVICE = "souvenirs:site:out_of_service"
TARGET = "instance:souvenirs_target:up"


def evaluate(config: str = "{}") -> Json:
    """Evaluate the mixin's alerts, rules and dashboards with this _config, in Jsonnet."""
    wanted = "prometheusAlerts", "prometheusRules", "grafanaDashboards"
    fields = ", ".join(f"{name}: mixin.{name}" for name in wanted)
    changing = f"(import {json.dumps(str(MIXIN))}) + {{ _config+:: {config} }}"
    text = gojsonnet.evaluate_snippet("changed", f"local mixin = {changing}; {{ {fields} }}")
    evaluated: Json = json.loads(text)
    return evaluated


def rules(evaluated: Json) -> list[Json]:
    groups = evaluated["prometheusAlerts"]["groups"] + evaluated["prometheusRules"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def changed(evaluated: Json) -> list[Json]:
    """The rules that differ from the shipped ones."""
    shipped = rules({"prometheusAlerts": SHIPPED, "prometheusRules": {"groups": []}})
    return [rule for rule in rules(evaluated) if rule not in shipped]


def expressions(value: Any) -> list[str]:
    """All queries of a dashboard, including those of its variables and annotations."""
    if isinstance(value, list):
        return [found for each in value for found in expressions(each)]
    if not isinstance(value, dict):
        return []
    own = [value[key] for key in ("expr", "definition") if key in value]
    query = value.get("query")
    own += [query] if isinstance(query, str) and "(" in query else []
    return own + [found for each in value.values() for found in expressions(each)]


def test_default__equals_the_shipped_files() -> None:
    evaluated = evaluate()
    assert evaluated["prometheusAlerts"] == SHIPPED
    assert evaluated["prometheusRules"] == {"groups": []}
    assert evaluated["grafanaDashboards"] == {
        path.name: json.loads(path.read_text()) for path in DASHBOARDS.glob("*.json")
    }


def test_thresholds__each_changes_its_rule() -> None:
    names = [
        rule["record"].removeprefix(THRESHOLD)
        for rule in SHIPPED["groups"][0]["rules"]
        if rule.get("record", "").startswith(THRESHOLD)
    ]
    assert len(names) > 10
    evaluated = evaluate(
        f"{{ thresholds+: {json.dumps({n: i for i, n in enumerate(names, 41)})} }}"
    )
    assert changed(evaluated) == [
        {"record": f"{THRESHOLD}{name}", "expr": f"vector({value})"}
        for value, name in enumerate(names, 41)
    ]


@pytest.mark.parametrize(
    ("value", "expr"),
    [
        ("0.05", "vector(0.05)"),
        ("12345678", "vector(12345678)"),
        ("'scalar(seats_bought)'", "scalar(seats_bought)"),
        ("null", "vector(0) > 0"),
    ],
)
def test_threshold__becomes_a_query(value: str, expr: str) -> None:
    [rule] = changed(evaluate(f"{{ thresholds+: {{ floor_users: {value} }} }}"))
    assert rule == {"record": f"{THRESHOLD}floor_users", "expr": expr}


def test_jobs__have_thresholds_and_are_out_of_service() -> None:
    evaluated = evaluate(
        "{ jobThresholds: { shop: { drop_ratio: 0.3, seats: 500 }, blog: { seats: 20 } },"
        " outOfService: ['old'] }"
    )
    assert changed(evaluated) == [
        {"record": OUT_OF_SERVICE, "labels": {"job": "old"}, "expr": "vector(1)"},
        {"record": f"{THRESHOLD}drop_ratio", "labels": {"job": "shop"}, "expr": "vector(0.3)"},
        {"record": f"{THRESHOLD}seats", "labels": {"job": "blog"}, "expr": "vector(20)"},
        {"record": f"{THRESHOLD}seats", "labels": {"job": "shop"}, "expr": "vector(500)"},
    ]
    assert len(rules(evaluated)) == len(SHIPPED["groups"][0]["rules"]) + 4


@pytest.mark.parametrize("config", ["thresholds+: { x: 1 }", "jobThresholds: { shop: { x: 1 } }"])
def test_threshold__unknown_is_refused(config: str) -> None:
    with pytest.raises(RuntimeError, match=r"There is no threshold x\. Use one of drop_ratio, "):
        evaluate(f"{{ {config} }}")


def test_target_selector__selects_the_jobs_to_watch() -> None:
    [rule] = changed(evaluate("""{ targetSelector: 'job=~"shop|blog", env="live"' }"""))
    assert rule["record"] == TARGET
    assert rule["expr"].startswith('up{job=~"shop|blog", env="live"}\nor\n')


def test_dashboard_selector__is_in_every_query() -> None:
    selector = r'cluster=~"eu\\.\\d"'
    before, after = (
        expressions([*evaluate(config)["grafanaDashboards"].values()])
        for config in ("{}", f"{{ dashboardSelector: {json.dumps(selector)} }}")
    )
    for old, new in zip(before, after, strict=True):
        assert new.count(selector) == (old.count("{") or 1)  # without braces: label_values(x, job)
        assert new.replace(f"{{{selector}}}", "").replace(f"{selector}, ", "") == old


def test_runbook_prefix__is_in_every_alert() -> None:
    evaluated = evaluate("{ runbookURLPrefix: 'https://wiki.example.org/' }")
    alerts = [rule for rule in rules(evaluated) if "alert" in rule]
    assert changed(evaluated) == alerts
    assert {rule["alert"]: rule["annotations"]["runbook_url"] for rule in alerts} == {
        rule["alert"]: f"https://wiki.example.org/{rule['alert'].lower()}" for rule in alerts
    }


def test_changed_rules__are_accepted_by_prometheus(tmp_path: Path) -> None:
    evaluated = evaluate(
        "{ thresholds+: { seats: 500 }, jobThresholds: { shop: { seats: 5 } }, outOfService: ['a'],"
        """ targetSelector: 'job="shop"' }"""
    )
    (tmp_path / "rules.json").write_text(json.dumps(evaluated["prometheusAlerts"]))
    promtool = program("promtool", "prometheus")
    subprocess.run([promtool, "check", "rules", tmp_path / "rules.json"], check=True)


def test_docs__example_is_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "grafana.md").read_text()
    [example] = re.findall(r"(?m)(?:^    .*\n)*^    local mixin = (?:.*\n)+?(?=\n\S)", page)
    call_command("souvenirs_dashboards", str(tmp_path / "out"), stdout=StringIO())
    (tmp_path / "site.jsonnet").write_text(textwrap.dedent(example))
    built = json.loads(gojsonnet.evaluate_file(str(tmp_path / "site.jsonnet")))
    assert set(built) == {"rules.json", *(path.name for path in DASHBOARDS.glob("*.json"))}
    records = [rule for group in built["rules.json"]["groups"] for rule in group["rules"]]
    assert {"record": f"{THRESHOLD}drop_ratio", "expr": "vector(0.4)"} in records
