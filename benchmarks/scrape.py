"""What a scrape costs, and what the same figures cost when they are counted at each scrape.

Two sites in one PostgreSQL server have the same users, who were last seen at the same times. The
large one has 20,000,000 souvenirs of 500,000 users in 60 days (benchmarks/generate.py), and has
them again in 1.0.2's table. The small one has 1,000,000 of these: the last of each user, and some
of the others. All history is rolled up. Then the last week is replayed: an UPDATE of the user's
last-seen row for each of its souvenirs, in chronological order, a thousand to a transaction. So the
table is as traffic leaves it, together with autovacuum in its default configuration. Before each
round of scrapes, one in a hundred users comes back, with a souvenir and an UPDATE of the last-seen
row to now.

Each round scrapes over HTTP:

    souvenirs_exporter            of each site in turn, with cold totals of accounts (a minute
                                  after they were counted) and then with warm ones
prometheus-postgres-exporter  Debian's, with exporters/count_distinct.yml on 1.0.2's table:
                                  the same figures, each by COUNT(DISTINCT)
    the same                      with exporters/one_pass.yml: all figures in one pass over the
                                  rows. There is no target for it

The first round is not measured. The tables have the medians and, for the two sites, the median of
paired ratios. All figures must be the same. (Our rolling windows begin at the minute, so they may
include a few more users, who were last seen in the rest of that minute.) Targets:

    a scrape with cold totals     1/20 of the time that COUNT(DISTINCT) takes
    a scrape with warm totals     1/50
    the large site's scrape       1.5 times the small site's, with cold totals and with warm ones

The targets are meant for the full size: with less data, COUNT(DISTINCT) takes less. PostgreSQL runs
with its default configuration, except that fsync is off. Exits with 1 if a target is missed or a
figure differs.

At full size this takes about half an hour, and 8 GB of disk (in TMPDIR).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import psycopg
from prometheus_client.parser import text_string_to_metric_families
from tabulate import tabulate
from tqdm import tqdm

from benchmarks import website
from benchmarks.history import TABLE, ZONE, Past, duration, in_child, make, roll_up, vacuum
from benchmarks.migrate import ROOT, positive
from tests import servers

EXPORTER = "prometheus-postgres-exporter"
COLD_TARGET = 20.0
WARM_TARGET = 50.0
GROWTH_TARGET = 1.5

DAYS = 60
LIVED_AGAIN = timedelta(days=7)
BATCH = 1000
COLD_SECONDS = 61  # after which totals of accounts, which are cached for 60, are counted again
WARM_SCRAPES = 3  # of each site per round
PAUSE_SECONDS = 0.5  # before each scrape: the previous one may still be rolling something up

SETTINGS = """
SECRET_KEY = "of the benchmark"
USE_TZ = True
TIME_ZONE = {zone!r}
INSTALLED_APPS = [
    "django.contrib.auth", "django.contrib.contenttypes", "souvenirs", "souvenirs_metrics",
]
DATABASES = {{"default": {database!r}}}
"""
WINDOWS = {"1h": 3600, "1d": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}
FIGURES = {
    "souvenirs_active_users",
    "souvenirs_calendar_active_users",
    "souvenirs_previous_calendar_active_users",
    "souvenirs_registered_users",
    "souvenirs_activated_users",
}
COLLECTED = "souvenirs_collection_timestamp_seconds"

# Souvenirs of the large site: the small one gets one of this many of them, too
SOME_SOUVENIRS = """
    SELECT "when", souvenir.user_id
    FROM souvenirs_souvenir AS souvenir JOIN souvenirs_lastseen AS lastseen USING (user_id)
    WHERE date_trunc('second', "when") = seen OR souvenir.id % {} = 0
    ORDER BY "when"
"""
WEEK_AGO = """
    UPDATE souvenirs_lastseen SET seen = earlier.seen
    FROM (
        SELECT lastseen.id, date_trunc('second', MAX("when")) AS seen
        FROM souvenirs_lastseen AS lastseen LEFT JOIN souvenirs_souvenir AS souvenir
            ON souvenir.user_id = lastseen.user_id AND "when" < %s
        GROUP BY lastseen.id
    ) AS earlier
    WHERE earlier.id = souvenirs_lastseen.id
"""
VISITS = """
    SELECT date_trunc('second', "when"), user_id
    FROM souvenirs_souvenir WHERE "when" >= %s ORDER BY "when"
"""
VISITORS = f"""
    SELECT user_id FROM (SELECT DISTINCT user_id FROM {TABLE} WHERE "when" >= %s) AS people
    ORDER BY md5(user_id::text)
"""
# The statement of souvenirs.lastseen.table
SEE = "UPDATE souvenirs_lastseen SET seen = %s WHERE user_id = %s AND (seen IS NULL OR seen < %s)"
STATE = """
    SELECT pg_relation_size(relid) / 8192, n_live_tup, n_dead_tup, autovacuum_count
    FROM pg_stat_user_tables WHERE relname = 'souvenirs_lastseen'
"""

Database = dict[str, Any]
Page = dict[tuple[str, str], float]  # (metric, window or period): value


class Line(NamedTuple):
    name: str
    first: float  # seconds
    second: float
    ratio: float
    target: str
    is_missed: bool

    def cells(self) -> list[str]:
        return [
            self.name,
            duration(self.first),
            duration(self.second),
            f"{self.ratio:,.2f}",
            self.target,
        ]


# The sites


def connect(database: Database) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host=database["HOST"],
        port=database["PORT"],
        user=database["USER"],
        dbname=database["NAME"],
        autocommit=True,
    )


def make_sites(large: Database, small: Database, past: Past, rows: int) -> None:
    """Make the past of the large site, and copy about this many souvenirs of it to the small one.
    Last-seen times are as they were before the replay of LIVED_AGAIN."""
    in_child(make, large, past)
    in_child(migrate, small)
    with connect(large) as source, connect(small) as target:
        every = max(1, past.rows // max(1, rows - past.users))
        copy(source, target, "auth_user", "SELECT * FROM auth_user ORDER BY id")
        copy(source, target, 'souvenirs_souvenir ("when", user_id)', SOME_SOUVENIRS.format(every))
        source.execute(  # the rows were copied with their keys
            f"SELECT setval(pg_get_serial_sequence('{TABLE}', 'id'), MAX(id)) FROM {TABLE}"
        )
        source.execute(WEEK_AGO, [past.until - LIVED_AGAIN])
        copy(source, target, "souvenirs_lastseen", "SELECT * FROM souvenirs_lastseen ORDER BY id")
        for connection in source, target:
            connection.execute("VACUUM FULL souvenirs_lastseen")
    for database in large, small:
        in_child(vacuum, database)
        in_child(roll_up, database)
        in_child(vacuum, database)


def migrate(database: Database) -> None:
    website.configure(database)
    website.migrate()


def copy(
    source: psycopg.Connection[Any], target: psycopg.Connection[Any], table: str, query: str
) -> None:
    with (
        source.cursor().copy(f"COPY ({query}) TO STDOUT") as rows,
        target.cursor().copy(f"COPY {table} FROM STDIN") as copied,
    ):
        for block in rows:
            copied.write(block)


def live_again(large: Database, small: Database, since: datetime) -> None:
    """Replay the large site's visits since then in the last-seen tables of both sites."""
    with connect(large) as connection, connect(small) as other:
        visits = connection.execute(VISITS, [since]).fetchall()
        progress = tqdm(desc="last seen", total=len(visits), unit=" visits", unit_scale=True)
        for at in range(0, len(visits), BATCH):
            batch = [(seen, user, seen) for seen, user in visits[at : at + BATCH]]
            for site in connection, other:
                site.cursor().executemany(SEE, batch)
            progress.update(len(batch))
        progress.close()


def visit(connection: psycopg.Connection[Any], users: Sequence[int], tables: Sequence[str]) -> None:
    """Record each of these users as seen now, for the first time in this hour."""
    now = datetime.now(timezone.utc)
    seen = now.replace(microsecond=0)
    with connection.cursor() as cursor:
        for table in tables:
            insert = f'INSERT INTO {table} ("when", user_id) VALUES (%s, %s)'
            cursor.executemany(insert, [(now, user) for user in users])
        cursor.executemany(SEE, [(seen, user, seen) for user in users])


def state(connection: psycopg.Connection[Any]) -> str:
    """The state of the last-seen table."""
    [row] = connection.execute(STATE).fetchall()
    return "{} pages, {} rows, {} dead ones, {} autovacuums".format(*row)


# Scrapes


@contextmanager
def souvenirs_exporter(directory: Path, database: Database) -> Iterator[str]:
    """Yield the URL of its metrics."""
    name = f"site_{database['NAME']}"
    (directory / f"{name}.py").write_text(SETTINGS.format(zone=str(ZONE), database=database))
    path = os.pathsep.join([str(directory), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": name}
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    with servers.running(
        [sys.executable, "-m", "django", "souvenirs_exporter", f":{port}"],
        lambda: servers.answers(f"{url}/-/healthy"),
        directory / f"{name}.log",
        env=environment,
    ):
        yield f"{url}/metrics"


@contextmanager
def postgres_exporter(
    directory: Path, database: Database, queries: str, work_mem: str
) -> Iterator[str]:
    """Yield the URL of its metrics. `queries` is a file in exporters/."""
    port = servers.free_port()
    source = "postgresql://{USER}@{HOST}:{PORT}/{NAME}?sslmode=disable".format(**database)
    source += f"&timezone={ZONE}&work_mem={work_mem}"
    with servers.running(
        [
            servers.program(EXPORTER, EXPORTER),
            f"--web.listen-address=127.0.0.1:{port}",
            f"--extend.query-path={ROOT / 'benchmarks' / 'exporters' / queries}",
            "--disable-default-metrics",
            "--disable-settings-metrics",
            "--no-collector.database",
            "--no-collector.bgwriter",
        ],
        lambda: servers.accepts(port),
        directory / f"{queries}.log",
        env={**os.environ, "DATA_SOURCE_NAME": source},
    ):
        yield f"http://127.0.0.1:{port}/metrics"


def scrape(url: str) -> tuple[float, Page]:
    """Return the seconds that the scrape took, and the figures on the page."""
    time.sleep(PAUSE_SECONDS)
    now = time.time()
    started = time.perf_counter()
    with urlopen(url, timeout=1800) as response:
        text = response.read().decode()
    seconds = time.perf_counter() - started
    page: Page = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            name = labels.get("metric", sample.name)
            if name in FIGURES or name == COLLECTED:
                label = labels.get("window") or labels.get("period") or labels.get("name", "")
                page[name, label] = sample.value
    if page.get((COLLECTED, ""), now) < now:
        raise SystemExit(f"{url} shows what was collected before")
    return seconds, page


def check(connection: psycopg.Connection[Any], ours: Page, theirs: Page, are_all: bool) -> None:
    """Raise SystemExit if figures differ. Theirs were counted later."""
    collected = ours[COLLECTED, ""]
    now = time.time()
    expected = {key for key in ours if key[0] in FIGURES}
    if len(expected) < len(WINDOWS) + 5 + 2 + 2 or (are_all and theirs.keys() != expected):
        raise SystemExit(f"Figures are missing: {sorted(ours)}, {sorted(theirs)}")
    for key in expected & theirs.keys():
        name, label = key
        more = 0
        if name == "souvenirs_active_users":  # at most the users that a window has lost meanwhile
            ago = WINDOWS[label]
            [(more,)] = connection.execute(
                f'SELECT COUNT(*) FROM {TABLE} WHERE "when" >= to_timestamp(%s)'
                ' AND "when" < to_timestamp(%s)',
                [(collected - ago) // 60 * 60, now - ago],
            ).fetchall()
        if not ours[key] - more <= theirs[key] <= ours[key]:
            raise SystemExit(f"{name} {label}: {ours[key]:,.0f}, and {theirs[key]:,.0f} by SQL")


def measure(
    directory: Path, large: Database, small: Database, past: Past, rounds: int, work_mem: str
) -> dict[str, list[float]]:
    """Seconds of the scrapes, by what was scraped."""
    times: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(database)) for database in (large, small)]
        tables = [["souvenirs_souvenir", TABLE], ["souvenirs_souvenir"]]
        urls = {
            database["NAME"]: stack.enter_context(souvenirs_exporter(directory, database))
            for database in (large, small)
        }
        others = {
            name: stack.enter_context(postgres_exporter(directory, large, f"{name}.yml", work_mem))
            for name in ("count_distinct", "one_pass")
        }
        yesterday = past.until - timedelta(days=1)
        visitors = [user for (user,) in connections[0].execute(VISITORS, [yesterday]).fetchall()]
        some = max(1, min(past.users // 100, len(visitors) // (rounds + 1)))
        cold_from = 0.0
        for number in tqdm(range(rounds + 1), desc="scrapes", unit=" rounds"):
            time.sleep(max(0.0, cold_from - time.monotonic()))
            users = visitors[number * some : (number + 1) * some]
            for connection, names in zip(connections, tables):
                visit(connection, users, names)
                tqdm.write(f"{connection.info.dbname}: {state(connection)}", file=sys.stderr)
            found: dict[str, list[float]] = defaultdict(list)
            pages: dict[str, Page] = {}
            sites = list(urls) if number % 2 else list(urls)[::-1]
            for totals in ["cold", *["warm"] * WARM_SCRAPES]:
                for site in sites:
                    seconds, pages[site] = scrape(urls[site])
                    found[f"{site}, {totals}"].append(seconds)
                if totals == "cold":
                    cold_from = time.monotonic() + COLD_SECONDS
                sites.reverse()
            for name, url in others.items():
                seconds, page = scrape(url)
                found[name].append(seconds)
                check(connections[0], pages["large"], page, are_all=name == "count_distinct")
            if number:
                for name, seconds_of in found.items():
                    times[name] += seconds_of
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        type=positive,
        default=20_000_000,
        help="souvenirs of the large site (default: %(default)s)",
    )
    parser.add_argument("--users", type=positive, help="default: a fortieth of the rows")
    parser.add_argument(
        "--small", type=positive, help="souvenirs of the small site (default: a twentieth)"
    )
    parser.add_argument(
        "--work-mem",
        default="4MB",
        help="of prometheus-postgres-exporter's sessions; COUNT(DISTINCT) sorts in it (default:"
        " %(default)s, PostgreSQL's)",
    )
    parser.add_argument("--rounds", type=positive, default=5, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the rows and users, which is too few for the targets: there are none",
    )
    options = parser.parse_args(arguments)
    rows = options.rows
    users = options.users or max(1, rows // 40)
    small_rows = options.small or max(1, rows // 20)
    if options.quick:
        rows, users, small_rows = rows // 10, users // 10, small_rows // 10

    until = datetime.now(timezone.utc).replace(minute=0, second=0, microsecond=0)
    past = Past("postgresql", rows, users, DAYS, until, options.seed)
    servers.program(EXPORTER, EXPORTER)  # if it is missing, say so now
    with servers.postgresql() as server, servers.directory("scrape") as directory:
        large, small = ({**server, "NAME": name} for name in ("large", "small"))
        with connect(server) as connection:
            connection.execute("CREATE DATABASE large")
            connection.execute("CREATE DATABASE small")
        make_sites(large, small, past, small_rows)
        live_again(large, small, until - LIVED_AGAIN)
        times = measure(directory, large, small, past, options.rounds, options.work_mem)
        with connect(small) as connection:
            [(small_rows,)] = connection.execute(
                "SELECT COUNT(*) FROM souvenirs_souvenir"
            ).fetchall()

    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    lines = []
    for other in "count_distinct", "one_pass":
        for totals, target in ("cold", COLD_TARGET), ("warm", WARM_TARGET):
            first, second = medians[other], medians[f"large, {totals}"]
            is_judged = other == "count_distinct" and not options.quick
            bound = f"at least {target:,.0f}" if is_judged else ""
            is_missed = is_judged and first / second < target
            name = f"{other}.yml, {totals} totals"
            lines.append(Line(name, first, second, first / second, bound, is_missed))
    print(f"\n{past}\n")
    table(lines, ["a scrape", EXPORTER, "souvenirs_exporter"])
    growth = []
    for totals in "cold", "warm":
        pairs = zip(times[f"large, {totals}"], times[f"small, {totals}"])
        ratio = statistics.median(big / little for big, little in pairs)
        bound = "" if options.quick else f"at most {GROWTH_TARGET}"
        is_missed = not options.quick and ratio > GROWTH_TARGET
        first, second = medians[f"small, {totals}"], medians[f"large, {totals}"]
        growth.append(Line(f"{totals} totals", first, second, ratio, bound, is_missed))
    print()
    table(growth, ["souvenirs_exporter", f"{small_rows:,} souvenirs", f"{rows:,} souvenirs"])
    missed = [line.name for line in lines + growth if line.is_missed]
    if missed:
        print("\nThe target is missed:", *missed, sep="\n", file=sys.stderr)
    return 1 if missed else 0


def table(lines: Sequence[Line], headers: Sequence[str]) -> None:
    cells = [line.cells() for line in lines]
    align = ("left", *["right"] * 4)
    print(tabulate(cells, [*headers, "ratio", "target"], colalign=align, disable_numparse=True))


if __name__ == "__main__":
    raise SystemExit(main())
