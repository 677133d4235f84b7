"""What growth, retention and active days add to a scrape.

A past of two years is made in PostgreSQL (benchmarks/generate.py; the same each time on the same
day), and rolled up. Then a collector goes through the last days of it: it collects right after each
midnight, when the periods have changed, and several times again, when they have not. The time of
this part is read from the collected metrics. The figures are medians. Targets, meant for the full
size:

    the first after a midnight    100 ms
    periods have not changed      5 ms

PostgreSQL runs with its default configuration, except that fsync is off. Exits with 1 if a target
is missed. Most of the time goes into making the past and rolling it up, which takes 4 GB of disk
(in TMPDIR). With --data, that is done once, and later runs measure on what is in the directory.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import time_machine
from tabulate import tabulate

from benchmarks import website
from benchmarks.history import ZONE, Past, duration, in_child, roll_up, started, vacuum
from benchmarks.migrate import positive
from benchmarks.prometheus_history import make
from tests import servers

FIRST, UNCHANGED = "the first after a midnight", "periods have not changed"
TARGETS = {FIRST: 0.1, UNCHANGED: 0.005}
DAYS = 2 * 365
PART = "closed_periods"
MINUTE = timedelta(minutes=1)
WARM_SCRAPES = 5  # after each first collection


@contextmanager
def made(past: Past, directory: Path | None) -> Iterator[tuple[dict[str, Any], Past]]:
    """Yield a database with the past, rolled up, from the directory if it is already there."""
    if directory is None:
        with started(past.engine) as database:
            fill(database, past)
            yield database, past
        return
    note = directory / "past.pickle"
    if not note.exists():
        directory.mkdir(parents=True)
        servers.make_postgresql(directory)
    with servers.postgresql_in(directory, servers.free_port()) as database:
        if note.exists():
            past = pickle.loads(note.read_bytes())
        else:
            fill(database, past)
            note.write_bytes(pickle.dumps(past))
        yield database, past


def fill(database: dict[str, Any], past: Past) -> None:
    in_child(make, database, past)
    in_child(vacuum, database)
    in_child(roll_up, database)
    in_child(vacuum, database)


def measure(database: dict[str, Any], until: datetime, runs: int) -> dict[str, list[float]]:
    """The seconds that this part took, by whether the collection is the first after one of the last
    midnights before `until`."""
    website.configure(database)
    from django.conf import settings

    settings.INSTALLED_APPS.append("souvenirs_metrics")
    from souvenirs_metrics.collector import SouvenirsCollector
    from souvenirs_metrics.upkeep import Upkeep

    # Upkeep would set back the last-seen times of users seen since, which lie in the future here
    Upkeep.run = lambda self, deadline: None  # type: ignore[method-assign]

    def collect(collector: SouvenirsCollector) -> float:
        families = {family.name: family for family in collector.collect()}
        if not families["souvenirs_up"].samples[0].value:
            raise SystemExit("The collection is not complete")
        samples = families["souvenirs_previous_calendar_growth_users"].samples
        if len(samples) < 16:  # all kinds of periods except the year
            raise SystemExit(f"Growth is missing: {samples}")
        parts = families["souvenirs_collection_part_duration_seconds"].samples
        return next(sample.value for sample in parts if sample.labels["part"] == PART)

    found: dict[str, list[float]] = {name: [] for name in TARGETS}
    collector = SouvenirsCollector()
    for days in range(runs, -1, -1):
        midnight = until - timedelta(days=days)
        with time_machine.travel(midnight + MINUTE):
            first, *unchanged = (collect(collector) for _ in range(1 + WARM_SCRAPES))
        if days < runs:
            found[FIRST].append(first)
            found[UNCHANGED] += unchanged
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=positive, default=20_000_000, help="default: 20,000,000")
    parser.add_argument("--users", type=positive, help="default: a fortieth of the rows")
    parser.add_argument("--runs", type=positive, default=10, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--data", type=Path, help="keep the past in this directory, or use the one that is there"
    )
    parser.add_argument("--make", action="store_true", help="only make the past")
    options = parser.parse_args(arguments)
    until = datetime.now(ZONE).replace(hour=0, minute=0, second=0, microsecond=0)
    users = options.users or max(1, options.rows // 40)
    past = Past("postgresql", options.rows, users, DAYS, until, options.seed)
    with made(past, options.data) as (database, past):
        if options.make:
            return 0
        found = in_child(measure, database, past.until, options.runs)
    print(f"\n{past}\n")
    lines, missed = [], False
    for name, target in TARGETS.items():
        median, least = statistics.median(found[name]), min(found[name])
        lines.append([name, duration(median), duration(least), f"at most {duration(target)}"])
        missed |= median > target
    headers = ["a collection", "median", "least", "target"]
    align = ("left", *["right"] * 3)
    print(tabulate(lines, headers, colalign=align, disable_numparse=True))
    if missed:
        print("\nA target is missed.", file=sys.stderr)
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
