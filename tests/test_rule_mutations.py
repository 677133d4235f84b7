"""Each alert, changed in any way, fails a story in prometheus/tests.

All mutants of a file's alerts are in one rules file, each with its own name and its own copy of the
stories' tests, so that promtool evaluates a story once for all of them.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import servers
from tests.test_rules import ALERTS, GROUP, TESTS

pytestmark = [pytest.mark.own_site, pytest.mark.soak]

OPPOSITE = {"==": "!=", "!=": "==", ">": "<=", "<=": ">", "<": ">=", ">=": "<"}
OUT_OF_SERVICE = "unless on (job) souvenirs:site:out_of_service > 0"
SCALES = (0.8, 1.25)
# Their stories last weeks, with a sample every two hours
SLOW = {"SouvenirsChurnHigh", "SouvenirsNoNewUsers", "SouvenirsStickinessFalling"}
# These change nothing: only days and weeks have a median
EQUIVALENT = {'SouvenirsNoNewUsers: period=~"day|week" replaced with nothing'}
# From a set operator to the next one, or to the end of the expression that contains it
CLAUSE = re.compile(
    r"\s(?:and|or|unless)\b(?:[^()]|\((?:[^()]|\([^()]*\))*\))*?(?=\s(?:and|or|unless)\b|\s*\)|\s*\Z)"
)

Rule = dict[str, Any]


def mutants(alert: Rule) -> Iterator[tuple[str, Rule]]:
    """Yield (the change, the changed alert)."""
    expr = alert["expr"]
    for found in re.finditer(r"[=!<>]=|[<>]", re.sub(r"\{[^}]*\}", blank, expr)):
        yield f"{found[0]} flipped", with_expr(alert, found, OPPOSITE[found[0]])
    for found in re.finditer(r"job:souvenirs_threshold:(\w+)", expr):
        for scale in SCALES:
            scaled = f"({found[0]} * {scale} + {scale - 1} * ({found[0]} == bool 0))"
            yield f"{found[1]} * {scale}", with_expr(alert, found, scaled)
    for found in re.finditer(r'(\w+)(=~?"[^"]*"),? ?', expr):
        # With two weeks, the division has no result
        other = 'week="2"' if found[1] == "week" else ""
        yield f"{found[0]} replaced with {other or 'nothing'}", with_expr(alert, found, other)
    for found in CLAUSE.finditer(expr):
        yield f"without {found[0].strip()}", with_expr(alert, found, "")
    for name in ("for", "keep_firing_for")[: 1 if alert["alert"] in SLOW else 2]:
        number, unit = int(alert[name][:-1]), alert[name][-1]
        yield f"{name} dropped", {**alert, name: "0s"}
        yield f"{name} doubled", {**alert, name: f"{2 * number}{unit}"}
    yield "out of service too", {**alert, "expr": in_service_always(expr)}


def blank(found: re.Match[str]) -> str:
    return " " * len(found[0])


def with_expr(alert: Rule, found: re.Match[str], text: str) -> Rule:
    expr = alert["expr"]
    return {**alert, "expr": expr[: found.start()] + text + expr[found.end() :]}


def in_service_always(expr: str) -> str:
    """The expression on records for which no site is out of service."""
    return re.sub(r"job:souvenirs_(site|watched|threshold|stickiness):", r"job:always_\1:", expr)


def records() -> list[Rule]:
    """The records, and copies of those that depend on out_of_service, without that condition."""
    plain = [rule for rule in GROUP["rules"] if "record" in rule]
    always = [
        {
            **rule,
            "record": name,
            "expr": in_service_always(rule["expr"].replace(OUT_OF_SERVICE, "")),
        }
        for rule in plain
        if (name := in_service_always(rule["record"])) != rule["record"]
    ]
    return [*plain, *always]


MUTANTS = {
    f"{name}_{number}": (f"{name}: {what}", {**rule, "alert": f"{name}_{number}"})
    for name, alert in ALERTS.items()
    for number, (what, rule) in enumerate(mutants(alert))
}


def failing(path: Path, directory: Path) -> set[str]:
    """The alerts and mutants that fail a test in this file of stories."""
    # Load everything as text, because YAML would read 0x20 as 32 instead of a series of zeros
    file = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    tested = {test["alertname"] for group in file["tests"] for test in group["alert_rule_test"]}
    mutants = [rule for name, (_, rule) in MUTANTS.items() if name.split("_")[0] in tested]
    rules = [*records(), *(ALERTS[name] for name in sorted(tested)), *mutants]
    (directory / "rules.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "mutants", "rules": rules}]})
    )
    file["rule_files"] = ["rules.yml"]
    for group in file["tests"]:
        group.pop("promql_expr_test", None)
        group["alert_rule_test"] += [
            {**copy.deepcopy(test), "alertname": name}
            for test in group["alert_rule_test"]
            for name in MUTANTS
            if name.startswith(f"{test['alertname']}_")
        ]
    (directory / path.name).write_text(yaml.safe_dump(file))
    command = [servers.program("promtool", "prometheus"), "test", "rules", directory / path.name]
    done = subprocess.run(command, capture_output=True, text=True)
    output = done.stdout + done.stderr
    failed = set(re.findall(r"alertname: (\w+)", output))
    assert failed <= {*ALERTS, *MUTANTS}
    assert failed or done.returncode == 0, output
    return failed


def test_mutants__fail_a_story(tmp_path: Path) -> None:
    directories = [tmp_path / path.stem for path in TESTS]
    for directory in directories:
        directory.mkdir()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = set().union(*pool.map(failing, TESTS, directories))
    assert not failed & set(ALERTS)
    assert len(MUTANTS) > 5 * len(ALERTS)
    survivors = sorted(what for name, (what, _) in MUTANTS.items() if name not in failed)
    assert set(survivors) == EQUIVALENT
