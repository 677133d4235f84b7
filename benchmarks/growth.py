"""What growth, retention and active days add to a scrape.

A past of two years is made in PostgreSQL (benchmarks/generate.py; the same each time on the same
day), and rolled up. Then a collector lives through the last days: it collects after each midnight,
when the periods are other ones, and again some times, when they have not changed. The time that the
parts took is read off the collections. Medians. Targets, meant for the full size:

    the first after a midnight    100 ms
    periods have not changed      5 ms

PostgreSQL is as it comes but for fsync, which is off. Exits with 1 if a target is missed. Most of
the time goes into making the past and rolling it up; that takes 4 GB of disk (in TMPDIR).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import time_machine
from tabulate import tabulate

from benchmarks import website
from benchmarks.history import ZONE, Past, duration, in_child, roll_up, started, vacuum
from benchmarks.migrate import positive
from benchmarks.prometheus_history import make

TARGETS = {"the first after a midnight": 0.1, "periods have not changed": 0.005}
DAYS = 2 * 365
PARTS = ("growth", "retention", "active_days")
AFTER_MIDNIGHT = timedelta(minutes=1)
WARM_SCRAPES = 5  # after each first one


def measure(
    database: dict[str, Any], until: datetime, runs: int
) -> dict[str, list[dict[str, float]]]:
    """The seconds of each part, of the collections after each of the last midnights up to `until`;
    but for the first of them."""
    website.configure(database)
    from django.conf import settings

    settings.INSTALLED_APPS.append("souvenirs_metrics")
    from souvenirs_metrics.collector import SouvenirsCollector
    from souvenirs_metrics.upkeep import Upkeep

    # Users who were seen since are seen in the future of these days: it would set them back
    Upkeep.run = lambda self, deadline: None  # type: ignore[method-assign]

    def collect(collector: SouvenirsCollector) -> dict[str, float]:
        families = {family.name: family for family in collector.collect()}
        if not families["souvenirs_up"].samples[0].value:
            raise SystemExit("The collection is not complete")
        samples = families["souvenirs_previous_calendar_growth_users"].samples
        if len(samples) < 16:  # all kinds of periods but the year
            raise SystemExit(f"Growth is missing: {samples}")
        parts = families["souvenirs_collection_part_duration_seconds"].samples
        return {sample.labels["part"]: sample.value for sample in parts}

    found: dict[str, list[dict[str, float]]] = {name: [] for name in TARGETS}
    collector = SouvenirsCollector()
    for days in range(runs, -1, -1):
        with time_machine.travel(until - timedelta(days=days) + AFTER_MIDNIGHT):
            collections = [collect(collector) for _ in range(1 + WARM_SCRAPES)]
        if days < runs:
            for name, of_name in zip(TARGETS, (collections[:1], collections[1:])):
                found[name] += of_name
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=positive, default=20_000_000, help="default: 20,000,000")
    parser.add_argument("--users", type=positive, help="default: a fortieth of the rows")
    parser.add_argument("--runs", type=positive, default=10, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    options = parser.parse_args(arguments)
    until = datetime.now(ZONE).replace(hour=0, minute=0, second=0, microsecond=0)
    users = options.users or max(1, options.rows // 40)
    past = Past("postgresql", options.rows, users, DAYS, until, options.seed)
    with started("postgresql") as database:
        in_child(make, database, past)
        in_child(vacuum, database)
        in_child(roll_up, database)
        in_child(vacuum, database)
        found = in_child(measure, database, until, options.runs)
    print(f"\n{past}\n")
    lines, missed = [], False
    for name, target in TARGETS.items():
        of_parts = [
            duration(statistics.median(each[part] for each in found[name])) for part in PARTS
        ]
        total = statistics.median(sum(each[part] for part in PARTS) for each in found[name])
        lines.append([name, *of_parts, duration(total), f"at most {duration(target)}"])
        missed |= total > target
    headers = ["a collection", *(part.replace("_", " ") for part in PARTS), "together", "target"]
    align = ("left", *["right"] * 5)
    print(tabulate(lines, headers, colalign=align, disable_numparse=True))
    if missed:
        print("\nA target is missed.", file=sys.stderr)
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
