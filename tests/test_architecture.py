"""Imports point down the data flow only."""

from __future__ import annotations

import ast
from pathlib import Path

import souvenirs

ROOT = Path(souvenirs.__file__).parent.parent

# The modules in the order of the data flow: each may import those before it, none after it.
SOUVENIRS = [
    "__init__", "conf", "signals", "logs", "breaker", "timestamps", "periods",
    "fields", "models", "databases", "isolation", "bitmaps",
    "lastseen.base", "lastseen", "lastseen.table", "lastseen.database", "lastseen.clients",
    "lastseen.pending", "lastseen.shards", "lastseen.members", "lastseen.writer",
    "lastseen.resync", "lastseen.redis",
    "history", "history.marks", "history.deletion", "history.accounts", "history.rows",
    "history.progress", "history.rollups", "history.roller", "history.maintenance",
    "history.plans", "history.counting", "history.pruning", "history.repair",
    "recording", "recording.memory", "recording.throttle", "recording.results", "recording.users",
    "recording.recorder", "recording.failures", "recording.requests", "recording.sessions",
    "recording.hook", "recording.tasks",
    "control", "reports",
    "backfill.entries", "backfill.times", "backfill.naming", "backfill.lines",
    "backfill.csv_rows", "backfill.access_logs", "backfill.readers", "backfill.users",
    "backfill.candidates", "backfill.loading", "backfill",
    "middleware", "testing", "pytest_plugin", "checks", "apps",
    "management", "management.base", "management.options", "management.commands",
    "management.commands.show_usage",
    "management.commands.backfill_souvenirs", "management.commands.prune_souvenirs",
    "management.commands.rollup_souvenirs",
]  # fmt: skip
METRICS = [
    "__init__", "conf", "families", "deadline", "readers.base",
    "readers.build", "readers.active_users", "readers.rollup_lag", "readers.previous_periods",
    "readers.accounts", "readers", "run", "upkeep", "collector", "prometheus_history",
    "allocation", "instruments", "formats", "exposition", "access", "views", "urls", "server",
    "checks", "apps", "management", "management.commands", "management.commands.souvenirs_exporter",
    "management.commands.souvenirs_history", "management.commands.souvenirs_dashboards",
]  # fmt: skip
FLOW = [f"souvenirs.{name}" for name in SOUVENIRS] + [f"souvenirs_metrics.{n}" for n in METRICS]


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if name.count(".") > 1:
        name = name.removesuffix(".__init__")
    return name


def modules() -> dict[str, Path]:
    paths = [*(ROOT / "souvenirs").rglob("*.py"), *(ROOT / "souvenirs_metrics").rglob("*.py")]
    apart = {"migrations", "grafana", "prometheus"}  # the last two are in a wheel only
    return {
        module_name(path): path for path in paths if not apart & {*path.relative_to(ROOT).parts}
    }


def imports(path: Path) -> set[str]:
    """The modules of ours that a module imports when it runs; not those for type checkers only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {name for name in found if name in FLOW}


def test_every_module_has_its_place_in_the_flow() -> None:
    assert sorted(modules()) == sorted(FLOW)


def test_imports_point_down_the_flow() -> None:
    upwards = [
        f"{name} imports {other}"
        for name, path in modules().items()
        for other in imports(path)
        if FLOW.index(other) >= FLOW.index(name)
    ]
    assert upwards == []
