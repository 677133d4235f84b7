"""What segments cost: active users by plan, compared with the same pass over all users, in one run.

A site in PostgreSQL has 1,000,000 users, of whom 274,000 were seen in the last 30 days and the rest
in the eleven months before. Each has a subscription (in a separate table) with one of eight plans
and one of 10,000 organizations, and is a member of one to three of eight clubs. The table of
last-seen times is measured as VACUUM leaves it. Measured in turns:

    all users             the reader of active users: all windows and periods to date
    by is_staff           a segment by a column of the user's table
    by plan               a segment of eight values, one join away
    by club               a segment of eight values, many-to-many
    accounts              active organizations
    a scrape              of all readers, without segments
    a scrape, segments    with two segments and the accounts, all of them cached

Then `show_usage --by` runs in a separate process, for a rolled-up month in which 500,000 users of
all organizations were active. Targets:

    by plan               6 times the time of all users
    a scrape, segments    the same time as a scrape (1.1 times, which allows for noise)
    show_usage            10 seconds

The targets are meant for the full size. PostgreSQL runs with its default configuration, except that
fsync is off. Exits with 1 if a target is missed or a figure differs.
"""

from __future__ import annotations

import argparse
import io
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from datetime import date, datetime, timezone
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from benchmarks import website
from benchmarks.history import in_child
from benchmarks.migrate import positive
from tests import servers

PLAN_TARGET, KEPT_TARGET, REPORT_TARGET = 6.0, 1.1, 10.0
ORGANIZATIONS = 10_000
NAMES = [f"plan{n}" for n in range(8)]
SEGMENTS = {
    "is_staff": "is_staff",
    "plan": {"FIELD": "subscription__plan", "VALUES": NAMES},
    "club": {"FIELD": "clubs__name", "VALUES": [f"club{n}" for n in range(8)]},
}
APPS = ["django.contrib.auth", "django.contrib.contenttypes", "souvenirs", "tests.segments"]
MONTH = datetime(2024, 5, 1, tzinfo=timezone.utc)

FILL = """
    INSERT INTO auth_user (id, username, password, first_name, last_name, email, is_superuser,
        is_staff, is_active, date_joined)
    SELECT n, 'user' || n, '!', 'First', 'Last', 'user' || n || '@example.org', false, n % 50 = 0,
        true, now() - interval '400 days'
    FROM generate_series(1, {users}) n;
    INSERT INTO segments_organization (id, slug) SELECT n, 'o' || n
    FROM generate_series(1, {organizations}) n;
    INSERT INTO segments_subscription (user_id, plan, organization_id)
    SELECT n, 'plan' || (n % 8), 1 + n % {organizations} FROM generate_series(1, {users}) n;
    INSERT INTO segments_club (id, name) SELECT n, 'club' || (n - 1) FROM generate_series(1, 8) n;
    INSERT INTO segments_clubmember (user_id, club_id)
    SELECT n, 1 + (n / 3 + m) % 8 FROM generate_series(1, {users}) n, generate_series(0, 2) m
    WHERE m <= n % 3;
    INSERT INTO souvenirs_lastseen (user_id, seen)
    SELECT n, date_trunc('second', now() - CASE WHEN random() < 0.274
        THEN random() * interval '30 days'
        ELSE interval '30 days' + random() * interval '330 days' END)
    FROM generate_series(1, {users}) n;
    INSERT INTO souvenirs_souvenir (user_id, "when")
    SELECT n, timestamptz '{month}' + random() * interval '30 days'
    FROM generate_series(1, {users} / 2) n ORDER BY 2;
"""


def make(database: dict[str, Any], users: int) -> None:
    website.configure(database, INSTALLED_APPS=APPS)
    website.migrate()
    from django.db import connection

    from souvenirs.history import maintenance

    fill = FILL.format(users=users, organizations=ORGANIZATIONS, month=MONTH)
    with connection.cursor() as cursor:
        for statement in tqdm(fill.split(";\n")[:-1], desc="filling", unit=" tables"):
            cursor.execute(statement)
    maintenance.roll_up()
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def measure(database: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Milliseconds."""
    website.configure(
        database, INSTALLED_APPS=APPS, SOUVENIRS_METRICS_ACCOUNTS="subscription__organization"
    )
    from django.test import override_settings

    from souvenirs.isolation import repeatable_read
    from souvenirs_metrics.readers import load_readers
    from souvenirs_metrics.readers.active_users import ActiveUsers
    from souvenirs_metrics.readers.segments import ActiveAccounts, Segments

    def pass_over(reader: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: reader().read(time.time(), repeatable_read)

    def scrape(readers: list[Any]) -> Callable[[], Any]:
        return lambda: [
            family for reader in readers for family in reader.read(time.time(), repeatable_read)
        ]

    declared = {name: {name: entry} for name, entry in SEGMENTS.items()}
    plain, warm = load_readers(), load_readers()
    two = {name: SEGMENTS[name] for name in ("is_staff", "plan")}
    cases: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
        "all users": ({}, pass_over(ActiveUsers)),
        **{f"by {name}": (entry, pass_over(Segments)) for name, entry in declared.items()},
        "accounts": ({}, pass_over(ActiveAccounts)),
        "a scrape": ({"": None}, scrape(plain)),
        "a scrape, segments": (two, scrape(warm)),
    }
    times: dict[str, list[float]] = defaultdict(list)
    pages: dict[str, Any] = {}
    for number in tqdm(range(rounds + 1), desc="passes", unit=" rounds"):
        for name, (segments, run) in cases.items():
            accounts = None if segments == {"": None} else "subscription__organization"
            with override_settings(
                SOUVENIRS_METRICS_SEGMENTS={k: v for k, v in segments.items() if k},
                SOUVENIRS_METRICS_ACCOUNTS=accounts,
            ):
                started = time.perf_counter()
                pages[name] = run()
                if number:  # the first read connects
                    times[name].append((time.perf_counter() - started) * 1000)
    check(pages)
    return times


def check(pages: dict[str, Any]) -> None:
    """Raise SystemExit unless the users of all plans add up to all users. (Short windows lose some
    meanwhile.)"""
    totals: dict[str, float] = defaultdict(float)
    for sample in pages["by plan"][0].samples:
        totals[sample.labels["window"]] += sample.value
    everybody = {s.labels["window"]: s.value for s in pages["all users"][0].samples}
    if any(abs(everybody[w] - totals[w]) > 0.01 * totals[w] for w in ("1d", "7d", "30d")):
        raise SystemExit(f"{everybody} users by window, {dict(totals)} by plan")


def report(database: dict[str, Any]) -> tuple[float, float, int]:
    """Seconds, MB of additional memory, and rows."""
    website.configure(database, INSTALLED_APPS=APPS)
    from django.core.management import call_command

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output = io.StringIO()
    started = time.perf_counter()
    with redirect_stdout(output):
        call_command(
            "show_usage", calendar=True, after=MONTH, before=date(2024, 6, 1), recent=1,
            by="subscription__organization__slug", format="csv",
        )  # fmt: skip
    seconds = time.perf_counter() - started
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return seconds, memory, output.getvalue().count("\n") - 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=positive, default=1_000_000)
    parser.add_argument("--rounds", type=positive, default=9)
    options = parser.parse_args(arguments)
    with servers.postgresql() as server:
        database = {**server, "NAME": "postgres"}
        in_child(make, database, options.users)
        times = in_child(measure, database, options.rounds)
        seconds, memory, rows = in_child(report, database)
    medians = {name: statistics.median(each) for name, each in times.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[name], times[base]))
        for name in medians
        for base in ["a scrape" if name.startswith("a scrape") else "all users"]
    }
    targets = {"by plan": PLAN_TARGET, "a scrape, segments": KEPT_TARGET}
    print(
        tabulate(
            [
                [name, f"{medians[name]:,.0f}", f"{ratios[name]:,.2f}", targets.get(name, "")]
                for name in medians
            ],
            ["", "ms", "ratio", "target"],
            tablefmt="pipe",
        )
    )
    print(
        f"\nshow_usage --by: {rows:,} rows in {seconds:.1f} s, {memory:.0f} MB of additional memory"
    )
    missed = [name for name, target in targets.items() if ratios[name] > target]
    return 1 if missed or seconds > REPORT_TARGET else 0


if __name__ == "__main__":
    sys.exit(main())
