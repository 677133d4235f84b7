"""The benefit of rollups: the past is counted from bitmaps instead of souvenirs.

Two pasts of a site are made with the same number of souvenirs and users (benchmarks/generate.py;
the same each time in the same month): one of 60 days for the counts of 30 days, and one of 24
months for the reports. Each is stored twice: in the tables of 2.0, and as 1.0.2 had it, in a table
with a serial key, one index on "when" and one on user_id. Compared are:

    a count of 30 days    1.0.2: COUNT(DISTINCT user_id). 2.0: count_active_users. From midnight to
                          midnight, and between other times, where the rows outside the quarters of
                          an hour have to be read. Each run counts different 30 days.
    a report              of 24 months. 1.0.2: three queries per period, for active, registered and
                          activated users. 2.0: calendar_monthly_usage. And, without a target,
                          customer_monthly_usage from a time on the 17th that is not midnight: each
                          of its months consists of some 30 days, 100 quarters of an hour, and rows.
    space                 of the rows and their indexes, for 1.0.2 and 2.0, and of the rollups.
    rolling up            the whole past at once, in a separate process: how long it takes, and the
                          peak memory of that process.

Counts and reports alternate in one process, after an unmeasured run of each, and the table has the
medians. All numbers must be the same on both sides. Targets:

    a count of 30 days                50 times faster than 1.0.2's query
    a report of 24 calendar months    20 times faster than 1.0.2's queries
    space of the rollups of 60 days   1/40 of the rows and indexes, both 1.0.2's and 2.0's
    rolling up 60 days                5 minutes, 500 MB

The targets are meant for the full size: with less data, 1.0.2 counts faster, and the rollups of few
users take more space per row. PostgreSQL runs with its default configuration, except that fsync is
off. Exits with 1 if a target is missed or a number differs.

There are no snapshots of accounts from before the roll-up, as on a site that has just come from
1.0.2. The process that rolls up is small; the memory of PostgreSQL's process is not measured.

At full size this takes about a quarter of an hour, and up to 6 GB of disk at a time (in TMPDIR).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from dateutil.relativedelta import relativedelta
from tabulate import tabulate
from tqdm import tqdm

from benchmarks import website
from benchmarks.generate import fill, without_indexes
from benchmarks.migrate import TABLES_OF_1_0_2, positive
from tests import servers

COUNT_TARGET = 50.0
REPORT_TARGET = 20.0
SPACE_TARGET = 40.0
SECONDS_TARGET = 300.0
MEMORY_TARGET = 500.0
MB = 1_000_000

ZONE = ZoneInfo("Europe/Paris")  # the TIME_ZONE of website.py
MONTHS = 24
COUNTED = timedelta(days=30)
ODD = timedelta(hours=10, minutes=37, seconds=42, microseconds=123_456)

TABLE = "souvenirs_of_1_0_2"
IN_PERIOD = f'SELECT COUNT(DISTINCT user_id) FROM {TABLE} WHERE "when" >= %s AND "when" < %s'
REGISTERED = "SELECT COUNT(*) FROM auth_user WHERE date_joined < %s"
ACTIVATED = "SELECT COUNT(*) FROM auth_user WHERE date_joined < %s AND is_active"

Case = tuple[Callable[[], Any], Callable[[], Any]]  # 1.0.2's and 2.0's


class Past(NamedTuple):
    """A past that ends at the most recent beginning of a month."""

    engine: str
    rows: int
    users: int
    days: int
    until: datetime
    seed: int

    def __str__(self) -> str:
        return f"{self.engine}: {self.rows:,} souvenirs of {self.users:,} users in {self.days} days"


class Line(NamedTuple):
    name: str
    old: str
    new: str
    result: float
    target: float | None
    at_least: bool = True

    @property
    def is_missed(self) -> bool:
        if self.target is None:
            return False
        return self.result < self.target if self.at_least else self.result > self.target

    def cells(self) -> list[str]:
        bound = "at least" if self.at_least else "at most"
        target = "" if self.target is None else f"{bound} {self.target:,.0f}"
        return [self.name, self.old, self.new, f"{self.result:,.1f}", target]


# Each of these runs in a separate process


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of the function, called in a new process without this one's memory or
    Django."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def make(database: dict[str, Any], past: Past) -> None:
    """Make the past, in 2.0's tables and in 1.0.2's."""
    website.configure(database)
    website.migrate()
    from django.db import connection, transaction

    fill(connection, past.rows, past.users, past.days, past.until, past.seed)
    with transaction.atomic(), connection.cursor() as cursor:
        for statement in TABLES_OF_1_0_2[past.engine].split(";"):
            cursor.execute(statement.replace("souvenirs_souvenir", TABLE))
        with without_indexes(connection, TABLE):
            cursor.execute(
                f'INSERT INTO {TABLE} (id, "when", user_id)'
                ' SELECT id, "when", user_id FROM souvenirs_souvenir ORDER BY id'
            )


def clean() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("VACUUM ANALYZE")
        else:
            cursor.execute("VACUUM")
            cursor.execute("ANALYZE")


def vacuum(database: dict[str, Any]) -> None:
    website.configure(database)
    clean()


def roll_up(database: dict[str, Any]) -> tuple[float, float]:
    """Roll up; return the seconds that it took and the process's peak memory in MB."""
    website.configure(database)
    from souvenirs.history import maintenance

    started = time.perf_counter()
    maintenance.roll_up()
    seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def measure_counts(database: dict[str, Any], past: Past, runs: int) -> list[Line]:
    website.configure(database)
    from souvenirs.control import count_active_users

    def cases(offset: timedelta) -> Iterator[Case]:
        start = past.until - COUNTED - offset
        step = (past.until - offset - timedelta(days=past.days) - start) / (runs + 1)
        for n in range(runs + 1):
            first = start + timedelta(days=(n * step).days)
            bounds = [first, first + COUNTED]
            yield (
                lambda bounds=bounds: query(IN_PERIOD, *bounds),  # type: ignore[misc]
                lambda bounds=bounds: count_active_users(*bounds),  # type: ignore[misc]
            )

    return [
        compare(f"users of 30 days, from {name}", list(cases(offset)), COUNT_TARGET)
        for name, offset in {"midnight": timedelta(0), "an odd moment": ODD}.items()
    ]


def measure_reports(database: dict[str, Any], past: Past, runs: int) -> list[Line]:
    website.configure(database)
    from souvenirs import reports

    start = past.until - relativedelta(months=MONTHS)

    def calendar() -> list[Any]:
        return list(reports.calendar_monthly_usage(start, past.until))

    def customer() -> list[Any]:
        anchor = start - relativedelta(months=1) + timedelta(days=16) + ODD
        end = anchor + relativedelta(months=MONTHS)
        return list(reports.customer_monthly_usage(anchor, end=end))

    def numbers(report: Callable[[], list[Any]]) -> list[Any]:
        return [
            [usage["active_users"], usage["registered_users"], usage["activated_users"]]
            for usage in (period["usage"] for period in report())
        ]

    def old(periods: list[Any]) -> list[Any]:
        return [
            [
                query(IN_PERIOD, period["start"], period["end"]),
                query(REGISTERED, period["end"]),
                query(ACTIVATED, period["end"]),
            ]
            for period in periods
        ]

    lines = []
    for report, target in (calendar, REPORT_TARGET), (customer, None):
        periods = [period["period"] for period in report()]
        assert len(periods) == MONTHS, periods
        case = (lambda: old(periods), lambda: numbers(report))  # noqa: B023
        name = f"{report.__name__}_monthly_usage of {MONTHS} months"
        lines.append(compare(name, [case] * (runs + 1), target))
    return lines


def measure_space(database: dict[str, Any]) -> dict[str, float]:
    """The size of each table with its indexes, in MB."""
    website.configure(database)
    from django.db import connection

    sizes = {}
    for table in TABLE, "souvenirs_souvenir", "souvenirs_rollup":
        if connection.vendor == "postgresql":
            sql = "SELECT pg_total_relation_size(%s)"
        else:
            sql = (
                "SELECT SUM(pgsize) FROM dbstat"
                " WHERE name IN (SELECT name FROM sqlite_master WHERE tbl_name = %s)"
            )
        sizes[table] = query(sql, table) / MB
    return sizes


# its parts


def query(sql: str, *parameters: Any) -> Any:
    from django.db import connection

    if connection.vendor == "sqlite":  # SQLite has no type for datetimes
        parameters = tuple(
            connection.ops.adapt_datetimefield_value(value)
            if isinstance(value, datetime)
            else value
            for value in parameters
        )
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone()[0]


def timed(do: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = do()
    return time.perf_counter() - started, result


def compare(name: str, cases: Sequence[Case], target: float | None) -> Line:
    """Time the cases alternately; the first case is not measured."""
    times: list[list[float]] = []
    for n, case in enumerate(tqdm(cases, desc=name, unit=" runs")):
        turns = (0, 1) if n % 2 else (1, 0)
        found = {side: timed(case[side]) for side in turns}
        if found[0][1] != found[1][1]:
            raise SystemExit(f"{name}: 1.0.2 has {found[0][1]}, 2.0 has {found[1][1]}")
        times.append([found[0][0], found[1][0]])
    old, new = (statistics.median(side) for side in zip(*times[1:]))
    return Line(name, duration(old), duration(new), old / new, target)


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


@contextmanager
def started(engine: str) -> Iterator[dict[str, Any]]:
    """Yield the DATABASES entry of an empty database."""
    if engine == "postgresql":
        with servers.postgresql() as entry:
            yield entry
    else:
        with servers.directory("history") as directory:
            yield {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(directory / "site.sqlite3"),
            }


def lines_of(
    past: Past, measure: Callable[..., list[Line]], runs: int, is_judged: bool
) -> list[Line]:
    """Measure everything on one past. Space and rolling up have targets if `is_judged`."""
    with started(past.engine) as database:
        in_child(make, database, past)
        in_child(vacuum, database)
        seconds, memory = in_child(roll_up, database)
        in_child(vacuum, database)
        lines: list[Line] = in_child(measure, database, past, runs)
        sizes = in_child(measure_space, database)
    new = sizes.pop("souvenirs_rollup")
    for name, old in zip(["1.0.2's", "2.0's"], sizes.values()):
        target = SPACE_TARGET if is_judged else None
        title = f"MB, {name} rows and the rollups"
        lines.append(Line(title, f"{old:,.1f}", f"{new:,.1f}", old / new, target))
    for title, value, target in (
        ("rolling up, seconds", seconds, SECONDS_TARGET),
        ("rolling up, MB of memory", memory, MEMORY_TARGET),
    ):
        target = target if is_judged else None
        lines.append(Line(title, "", f"{value:,.1f}", value, target, at_least=False))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--postgresql", action="store_true", help="only PostgreSQL")
    parser.add_argument("--sqlite", action="store_true", help="only SQLite")
    parser.add_argument(
        "--rows", type=positive, help="default: 20,000,000 in PostgreSQL, 2,000,000 in SQLite"
    )
    parser.add_argument("--users", type=positive, help="default: a fortieth of the rows")
    parser.add_argument(
        "--days",
        type=positive,
        default=60,
        help="days of the past for the counts, 31 or more (default: %(default)s)",
    )
    parser.add_argument("--runs", type=positive, default=5, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the rows and users, which is too few for the targets",
    )
    options = parser.parse_args(arguments)
    if options.days < 31:
        parser.error("--days must be 31 or more, for counts of 30 days from odd moments")

    until = datetime.now(ZONE).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    start = until - relativedelta(months=MONTHS)
    # In UTC, because datetimes in the same zone are subtracted as local times
    month_days = round((until.timestamp() - start.timestamp()) / 86_400)
    missed = []
    for engine, rows in {"postgresql": 20_000_000, "sqlite": 2_000_000}.items():
        if (options.postgresql or options.sqlite) and not getattr(options, engine):
            continue
        rows = options.rows or rows
        users = options.users or max(1, rows // 40)
        if options.quick:
            rows, users = rows // 10, users // 10
        for days, measure in (options.days, measure_counts), (month_days, measure_reports):
            past = Past(engine, rows, users, days, until, options.seed)
            lines = lines_of(past, measure, options.runs, measure is measure_counts)
            headers = ["", "1.0.2", "2.0", "ratio or figure", "target"]
            print(f"\n{past}\n")
            align = ("left", *["right"] * 4)
            cells = [line.cells() for line in lines]
            print(tabulate(cells, headers, colalign=align, disable_numparse=True), flush=True)
            missed += [f"{past}: {line.name}" for line in lines if line.is_missed]
    if missed:
        print("\nThe target is missed:", *missed, sep="\n", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
