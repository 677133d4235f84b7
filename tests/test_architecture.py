"""Imports only point down the data flow, so there is no cycle; a new module must be given its place
here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import souvenirs

ROOT = Path(souvenirs.__file__).parent.parent

# The layers, and the modules of each, in order: each may import the ones before it.
LAYERS = {
    "values and tools": [
        "__init__", "conf", "signals", "logs", "breaker", "timestamps", "periods", "bitmaps",
        "databases", "scopes", "isolation", "connections",
    ],
    "schema": ["fields", "models", "users", "paths"],
    "since when?": [
        "lastseen.base", "lastseen", "lastseen.ordinals", "lastseen.future", "lastseen.table",
        "lastseen.database", "lastseen.segments", "lastseen.clients", "lastseen.pending",
        "lastseen.shards", "lastseen.members", "lastseen.writer", "lastseen.resync",
        "lastseen.redis", "lastseen.inactive",
    ],
    "between?": [
        "history", "history.marks", "history.deletion", "history.accounts", "history.rows",
        "history.progress", "history.rollups", "history.roller", "history.maintenance",
        "history.plans", "history.segments", "history.counting", "history.pruning",
        "history.repair", "history.cohorts", "history.joined", "history.figures",
    ],
    "recording": [
        "recording", "recording.memory", "recording.windows", "recording.throttle",
        "recording.results", "recording.queue", "recording.batch",
        "recording.turnover", "recording.recorder", "recording.failures", "recording.forks",
        "recording.flusher", "recording.writer", "recording.deletion", "recording.requests",
        "recording.sessions", "recording.hook", "recording.tasks",
    ],
    "backfill": [
        "backfill.entries", "backfill.times", "backfill.naming", "backfill.lines",
        "backfill.csv_rows", "backfill.access_logs", "backfill.readers", "backfill.users",
        "backfill.candidates", "backfill.loading", "backfill",
    ],
    "what sites use": [
        "control", "spans", "cohort_reports", "reports", "middleware", "asgi", "testing",
        "pytest_plugin", "checks", "apps",
        "spreadsheets",
        "management", "management.base", "management.options", "management.progress",
        "management.tables", "management.charts", "management.commands",
        "management.commands.show_usage", "management.commands.backfill_souvenirs",
        "management.commands.prune_souvenirs", "management.commands.rollup_souvenirs",
        "management.commands.list_inactive_users",
    ],
    "what people look at": [
        "selection", "moment", "charts", "templatetags", "templatetags.souvenirs_usage",
        "admin.lastseen", "admin.tables", "admin.usage", "admin",
    ],
}  # fmt: skip
METRICS = [
    "__init__", "conf", "segments", "cuts", "caching", "families", "deadline", "readers.base",
    "readers.recording", "readers.build", "readers.active_users", "readers.rollup_lag",
    "readers.closed_periods", "readers.previous_periods", "readers.accounts",
    "readers.segments", "readers",
    "run", "upkeep", "collector", "replay", "prometheus_history", "allocation", "instruments",
    "formats", "exposition", "access", "usage", "views", "urls", "landing", "server",
    "kubernetes",
    "checks", "apps",
    "management", "management.commands", "management.commands.souvenirs_exporter",
    "management.commands.souvenirs_history", "management.commands.souvenirs_dashboards",
]  # fmt: skip
FLOW = [f"souvenirs.{name}" for layer in LAYERS.values() for name in layer]
FLOW += [f"souvenirs_metrics.{name}" for name in METRICS]

# What Django, pytest or asgi.py imports before the models can be imported
EARLY = {"souvenirs.apps", "souvenirs.asgi", "souvenirs.pytest_plugin", "souvenirs_metrics.apps"}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if name.count(".") > 1:
        name = name.removesuffix(".__init__")
    return name


def modules() -> dict[str, Path]:
    paths = [*(ROOT / "souvenirs").rglob("*.py"), *(ROOT / "souvenirs_metrics").rglob("*.py")]
    apart = {"migrations", "grafana", "prometheus"}  # the last two exist only in a wheel
    return {
        module_name(path): path for path in paths if not apart & {*path.relative_to(ROOT).parts}
    }


def imports(tree: ast.AST) -> Iterator[str]:
    """Our modules imported anywhere in the tree, including in functions and for type checkers."""
    for node in ast.walk(tree):
        names: set[str] = set()
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        yield from names & set(FLOW)
        if names & {"souvenirs", "souvenirs_metrics"}:
            yield "souvenirs.__init__"


GRAPH = {
    name: {other for other in imports(ast.parse(path.read_text())) if other != name}
    for name, path in modules().items()
}


def test_every_module_has_its_place_in_the_flow() -> None:
    assert sorted(GRAPH) == sorted(FLOW)
    assert len(FLOW) == len(set(FLOW))


@pytest.mark.parametrize("name", GRAPH)
def test_imports_point_down_the_flow(name: str) -> None:
    assert {other for other in GRAPH[name] if FLOW.index(other) > FLOW.index(name)} == set()


def test_there_is_no_import_cycle() -> None:
    left = dict(GRAPH)
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert left == {}


def test_souvenirs_never_imports_souvenirs_metrics() -> None:
    upwards = {
        name: others
        for name, others in GRAPH.items()
        if name.startswith("souvenirs.") and any(o.startswith("souvenirs_metrics") for o in others)
    }
    assert upwards == {}


def test_imports_in_functions_exist_only_where_models_cannot_be_imported_yet() -> None:
    late = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and any(imports(node))
    }
    assert late <= EARLY
