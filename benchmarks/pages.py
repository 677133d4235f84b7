"""How long people wait for the pages of the admin, and programs for the JSON.

Two pasts of a site in PostgreSQL (benchmarks/generate.py) are made and rolled up: one of 20,000,000
souvenirs of 500,000 users in 24 months, for the Usage page and the JSON of 24 months; one of
1,000,000 users for the list of users. Requests are made in the process with Django's test client,
signed in as a member of staff, including sessions, permissions and templates. The table has the
medians, after one unmeasured request, and the number of queries. Targets:

    the Usage page, 12 months, 26 weeks and 30 days     500 ms
    usage, growth or retention of 24 months as JSON     300 ms
    the list of users, by last seen                     200 ms more than by username

The site has kept totals of its accounts on each day, as rolling up each day does. Without a target,
the Usage page is also measured for a past that was loaded ("loaded"), of which there are no totals.

The targets are for the full size, which takes a quarter of an hour and 6 GB of disk (in TMPDIR).
Most of the time goes into making the pasts. `--data` keeps them in a directory for the next run,
and `--make` makes them and measures nothing, so that only the measuring needs a quiet machine. Kept
pasts end when they were made, and the later days are empty.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks import website
from benchmarks.generate import fill
from benchmarks.history import in_child, roll_up, timed, vacuum
from benchmarks.migrate import positive
from tests import servers

DAYS = 730
PAGE, JSON, LIST = 500.0, 300.0, 200.0  # milliseconds
USAGE = {
    "Usage page, 12 months": ("/admin/souvenirs/usage/?period=month", PAGE),
    "Usage page, 26 weeks": ("/admin/souvenirs/usage/?period=week", PAGE),
    "Usage page, 30 days": ("/admin/souvenirs/usage/?period=day", PAGE),
    "JSON, usage of 24 months": ("/souvenirs/usage.json?period=month&recent=24", JSON),
    "JSON, growth of 24 months": ("/souvenirs/usage.json?growth=month&recent=24", JSON),
    "JSON, retention of 24 months": ("/souvenirs/usage.json?retention=month&recent=24", JSON),
}
BY_NAME = "/admin/auth/user/?o=1"
LISTS = {
    "users by last seen": "/admin/auth/user/?o=-6",
    "users by last seen, ascending": "/admin/auth/user/?o=6",
    "users not seen for 30 days, by last seen": "/admin/auth/user/?o=-6&seen=not-30d",
    "Last seen list": "/admin/souvenirs/lastseen/",
}

# name, milliseconds, queries, the most milliseconds allowed
Row = tuple[str, float, int, float | None]


def configure(database: dict[str, Any]) -> None:
    website.configure(
        database,
        ROOT_URLCONF="benchmarks.backstage",
        STATIC_URL="/static/",
        INSTALLED_APPS=[
            "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
            "django.contrib.messages", "django.contrib.sessions", "django.contrib.staticfiles",
            "souvenirs", "souvenirs_metrics",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
    )  # fmt: skip


def make(database: dict[str, Any], rows: int, users: int, days: int) -> None:
    configure(database)
    website.migrate()
    from django.contrib.auth.models import User
    from django.db import connection

    until = datetime.now(timezone.utc).replace(minute=0, second=0, microsecond=0)
    fill(connection, rows, users, days, until)
    User.objects.create_superuser("boss")


def fill_usage(database: dict[str, Any], rows: int, users: int) -> None:
    in_child(make, database, rows, users, DAYS)
    in_child(vacuum, database)
    in_child(roll_up, database)
    in_child(vacuum, database)


def fill_lists(database: dict[str, Any], users: int) -> None:
    in_child(make, database, 2 * users, users, 60)
    in_child(vacuum, database)


@contextmanager
def past(path: Path, fill: Callable[..., None], *numbers: int) -> Iterator[dict[str, Any]]:
    """Yield a PostgreSQL server on the data of a directory, which is filled first if it is new."""
    is_filled = path / "-".join(map(str, ["filled", *numbers]))
    if not is_filled.exists():
        path.mkdir(parents=True)
        servers.make_postgresql(path)
    with servers.postgresql_in(path, servers.free_port()) as database:
        if not is_filled.exists():
            fill(database, *numbers)
            is_filled.touch()
        yield database


class Visitor:
    """A signed-in member of staff."""

    def __init__(self, runs: int) -> None:
        from django.contrib.auth.models import User
        from django.test import Client

        self.runs, self.client = runs, Client(SERVER_NAME="127.0.0.1")
        self.client.force_login(User.objects.get(username="boss"))

    def ask(self, url: str) -> tuple[float, int]:
        """The median in milliseconds, and the number of queries."""
        from django.db import connection
        from django.test.utils import CaptureQueriesContext

        with CaptureQueriesContext(connection) as queries:
            response = self.client.get(url)
        number = len(queries)  # now, because the next request resets them
        assert response.status_code == 200, (url, response.content)
        times = [1000 * timed(lambda: self.client.get(url))[0] for _ in range(self.runs)]
        return statistics.median(times), number


def measure_usage(database: dict[str, Any], runs: int) -> list[Row]:
    configure(database)
    visitor = Visitor(runs)
    keep_totals()
    rows: list[Row] = [(name, *visitor.ask(url), target) for name, (url, target) in USAGE.items()]
    forget_totals()
    rows += [
        (f"{name}, loaded", *visitor.ask(url), None)
        for name, (url, target) in USAGE.items()
        if target == PAGE
    ]
    return rows


def forget_totals() -> None:
    """Delete the totals of accounts at the ends of days, except the last: there are none of a past
    that was loaded, or recorded by 1.0.2."""
    from souvenirs.models import AccountTotals

    last = AccountTotals.objects.latest("end")
    AccountTotals.objects.exclude(pk=last.pk).delete()


def keep_totals() -> None:
    """Make the totals of accounts that rolling up each day would have kept."""
    from souvenirs import periods
    from souvenirs.conf import conf
    from souvenirs.history import accounts, counting
    from souvenirs.models import AccountTotals

    forget_totals()
    first, last = counting.first_recorded(), AccountTotals.objects.latest("end").end
    assert first is not None
    days = [periods.calendar_period("day", first, conf.zone)]
    while days[-1].end < last:
        days.append(periods.calendar_period("day", days[-1].end, conf.zone))
    ends = [day.end for day in days[:-1]]
    AccountTotals.objects.bulk_create(
        AccountTotals(
            date=periods.day_containing(day.start, conf.zone), end=day.end, **totals._asdict()
        )
        for day, totals in zip(days, accounts.as_of_all(ends))
    )


def measure_lists(database: dict[str, Any], runs: int) -> list[Row]:
    configure(database)
    visitor = Visitor(runs)
    by_name, queries = visitor.ask(BY_NAME)
    rows: list[Row] = [("users by username", by_name, queries, None)]
    for name, url in LISTS.items():
        is_judged = name == "users by last seen"
        rows.append((name, *visitor.ask(url), by_name + LIST if is_judged else None))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=positive, default=20_000_000, help="default: %(default)s")
    parser.add_argument("--users", type=positive, default=500_000, help="default: %(default)s")
    parser.add_argument("--listed", type=positive, default=1_000_000, help="users in the list")
    parser.add_argument("--runs", type=positive, default=5, help="default: %(default)s")
    parser.add_argument("--data", type=Path, help="a directory in which the pasts are kept")
    parser.add_argument("--make", action="store_true", help="make the pasts, and measure nothing")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    with ExitStack() as stack:
        root = options.data or stack.enter_context(servers.directory("pages"))
        # PostgreSQL's user needs access to it
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o711)
        with past(root / "usage", fill_usage, options.rows, options.users) as database:
            if not options.make:
                rows += in_child(measure_usage, database, options.runs)
        with past(root / "lists", fill_lists, options.listed) as database:
            if not options.make:
                rows += in_child(measure_lists, database, options.runs)
    if options.make:
        return 0
    print(
        f"{options.rows:,} souvenirs of {options.users:,} users; {options.listed:,} users listed\n"
    )
    cells = [
        (name, f"{ms:,.0f}", queries, "" if most is None else f"at most {most:,.0f}")
        for name, ms, queries, most in rows
    ]
    print(tabulate(cells, ["", "milliseconds", "queries", "target"], disable_numparse=True))
    missed = [name for name, ms, _, most in rows if most is not None and ms > most]
    if missed:
        print("\nThe target is missed:", *missed, sep="\n", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
