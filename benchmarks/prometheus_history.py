"""What `souvenirs_history` takes: the gauges of a past, in steps of 5 minutes, for Prometheus.

A past of a site is made (benchmarks/generate.py; the same each time in the same month), and rolled
up. The command then writes all of it in a separate process, whose time and peak memory are
measured. The alternative would be a COUNT(DISTINCT user_id) for each hour and window. Some of these
counts are made, for random hours, and the time for all of them is extrapolated. They must equal the
values of the windows that the command has written. Finally, promtool makes blocks of the file.

Targets, meant for the full size:

    writing    5 minutes, 300 MB of memory
    the file   300 MB

PostgreSQL runs with its default configuration, except that fsync is off. Exits with 1 if a target
is missed or a value differs. Most of the time goes into making the past and rolling it up, which
takes 4 GB of disk (in TMPDIR).
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from benchmarks import website
from benchmarks.generate import fill
from benchmarks.history import MB, ZONE, Past, in_child, roll_up, started, timed, vacuum
from benchmarks.migrate import positive
from tests import servers

SECONDS_TARGET = 300.0
MEMORY_TARGET = 300.0
FILE_TARGET = 300.0

WINDOWS = {"1h": 1, "1d": 24, "7d": 7 * 24, "30d": 30 * 24}  # hours
HOUR = timedelta(hours=1)
COUNT = 'SELECT COUNT(DISTINCT user_id) FROM souvenirs_souvenir WHERE "when" >= %s AND "when" < %s'


# Each of these runs in a separate process


def make(database: dict[str, Any], past: Past) -> None:
    website.configure(database)
    website.migrate()
    from django.db import connection

    fill(connection, past.rows, past.users, past.days, past.until, past.seed)


def write(database: dict[str, Any], past: Past, path: Path) -> tuple[float, float]:
    """Write the file; return the seconds that it took and the process's peak memory in MB."""
    website.configure(database)
    from django.conf import settings
    from django.core.management import call_command

    settings.INSTALLED_APPS.append("souvenirs_metrics")
    from souvenirs_metrics.management.commands.souvenirs_history import Command

    labels = [("job", "souvenirs"), ("instance", "www.example.org:443")]
    options = {"end": past.until.isoformat(), "output": str(path), "label": labels}
    seconds, _ = timed(lambda: call_command(Command(), **options, verbosity=0, skip_checks=True))
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def count(database: dict[str, Any], past: Past, runs: int) -> list[tuple[str, int, int, float]]:
    """(window, instant, users, seconds) at random hours."""
    website.configure(database)
    from benchmarks.history import query

    chance = random.Random(past.seed)
    found = []
    for name, hours in tqdm(WINDOWS.items(), desc="counting", unit=" windows"):
        for _ in range(runs):
            end = (
                past.until.astimezone(timezone.utc)
                - chance.randrange(1, 24 * past.days - hours) * HOUR
            )
            bounds = (end - hours * HOUR, end)
            seconds, users = timed(lambda: query(COUNT, *bounds))  # noqa: B023
            found.append((name, int(end.timestamp()), users, seconds))
    return found


# its parts


def written(path: Path) -> dict[tuple[str, int], int]:
    """The values of windows in the file at full hours, by window and instant."""
    found = {}
    with path.open() as lines:
        for line in lines:
            if line.startswith("souvenirs_active_users{"):
                metric, value, instant = line.rsplit(" ", 2)
                if int(instant) % 3600 == 0:
                    found[metric.split('window="')[1].split('"')[0], int(instant)] = int(value)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sqlite", action="store_true", help="use SQLite instead of PostgreSQL")
    parser.add_argument("--rows", type=positive, default=20_000_000, help="default: 20,000,000")
    parser.add_argument("--users", type=positive, default=100_000, help="default: 100,000")
    parser.add_argument("--days", type=positive, default=365, help="default: %(default)s")
    parser.add_argument("--runs", type=positive, default=5, help="runs of each count (default: 5)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.days < 32:
        parser.error("--days must be 32 or more, for windows of 30 days")

    engine = "sqlite" if options.sqlite else "postgresql"
    until = datetime.now(ZONE).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    past = Past(engine, options.rows, options.users, options.days, until, options.seed)
    with started(engine) as database, servers.directory("blocks") as directory:
        path = directory / "history.txt"
        in_child(make, database, past)
        in_child(vacuum, database)
        in_child(roll_up, database)
        in_child(vacuum, database)
        seconds, memory = in_child(write, database, past, path)
        counts = in_child(count, database, past, options.runs)
        values = written(path)
        promtool = [
            servers.program("promtool", "prometheus"), "tsdb", "create-blocks-from", "openmetrics",
            "--max-block-duration=744h", str(path), str(directory / "blocks"),
        ]  # fmt: skip
        loading, _ = timed(lambda: subprocess.run(promtool, check=True, capture_output=True))
        blocks = sum(f.stat().st_size for f in (directory / "blocks").rglob("*") if f.is_file())
        size = path.stat().st_size
    asked = {
        name: sum(value[3] for value in counts if value[0] == name)
        / options.runs
        * sum(window == name for window, _ in values)
        for name in WINDOWS
    }
    print(f"\n{past}\n")
    lines = [
        ["writing, seconds", f"{seconds:,.1f}", f"at most {SECONDS_TARGET:,.0f}"],
        ["writing, MB of memory", f"{memory:,.1f}", f"at most {MEMORY_TARGET:,.0f}"],
        ["instead: a query for each hour and window, seconds", f"{sum(asked.values()):,.0f}", ""],
        ["the file, MB", f"{size / MB:,.1f}", f"at most {FILE_TARGET:,.0f}"],
        ["promtool with --max-block-duration=744h, seconds", f"{loading:,.1f}", ""],
        ["blocks, MB", f"{blocks / MB:,.1f}", ""],
    ]
    align = ("left", "right", "right")
    print(tabulate(lines, ["", "", "target"], colalign=align, disable_numparse=True))
    differing = [each for each in counts if values.get(each[:2]) != each[2]]
    for name, instant, users, _ in differing:
        found = values.get((name, instant))
        print(f"{name} at {instant}: {found}, not {users}", file=sys.stderr)
    is_large = memory > MEMORY_TARGET or size / MB > FILE_TARGET
    return int(bool(differing) or seconds > SECONDS_TARGET or is_large)


if __name__ == "__main__":
    raise SystemExit(main())
