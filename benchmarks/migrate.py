"""How long a site that comes from 1.0.2 takes to migrate, how much memory that needs, and whether
the counts stay the same.

Makes a database as 1.0.2 left it, runs `migrate souvenirs` on it in a separate process, and
compares brute-force counts from before and after. Exits with 1 if they differ.

    python benchmarks/migrate.py                        1,000,000 rows in SQLite
    python benchmarks/migrate.py 20000000 --users 500000
    python benchmarks/migrate.py --postgresql           in a PostgreSQL server started for it
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# What 1.0.2 created on Django 1.8 to 1.10, where index names end in a hash of the column's name
TABLES_OF_1_0_2 = {
    "sqlite": """
        CREATE TABLE "souvenirs_souvenir" (
            "id" integer NOT NULL PRIMARY KEY AUTOINCREMENT,
            "when" datetime NOT NULL,
            "user_id" integer NOT NULL REFERENCES "auth_user" ("id")
        );
        CREATE INDEX "souvenirs_souvenir_df491a4d" ON "souvenirs_souvenir" ("when");
        CREATE INDEX "souvenirs_souvenir_e8701ad4" ON "souvenirs_souvenir" ("user_id");
    """,
    "postgresql": """
        CREATE TABLE "souvenirs_souvenir" (
            "id" serial NOT NULL PRIMARY KEY,
            "when" timestamp with time zone NOT NULL,
            "user_id" integer NOT NULL
        );
        ALTER TABLE "souvenirs_souvenir"
            ADD CONSTRAINT "souvenirs_souvenir_user_id_1f5bf3c9_fk_auth_user_id"
            FOREIGN KEY ("user_id") REFERENCES "auth_user" ("id") DEFERRABLE INITIALLY DEFERRED;
        CREATE INDEX "souvenirs_souvenir_df491a4d" ON "souvenirs_souvenir" ("when");
        CREATE INDEX "souvenirs_souvenir_e8701ad4" ON "souvenirs_souvenir" ("user_id");
    """,
}
MIGRATION_OF_1_0_2 = """
    INSERT INTO django_migrations (app, name, applied)
    VALUES ('souvenirs', '0001_initial', '2017-03-01 12:00:00+00:00');
"""

SETTINGS = """
SECRET_KEY = "of the benchmark"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "souvenirs"]
DATABASES = {{"default": {database!r}}}
"""

LAST = datetime(2017, 3, 1, tzinfo=timezone.utc)
DAYS = 60

COUNTS = {
    "rows": "SELECT COUNT(*) FROM souvenirs_souvenir",
    "sum of the keys": "SELECT SUM(id) FROM souvenirs_souvenir",
    "users": "SELECT COUNT(DISTINCT user_id) FROM souvenirs_souvenir",
    **{
        f"users of the last {days} days": "SELECT COUNT(DISTINCT user_id) FROM souvenirs_souvenir"
        f""" WHERE "when" >= '{(LAST - timedelta(days=days)).replace(tzinfo=None)}'"""
        for days in (1, 7, 30)
    },
}
LAST_SEEN = "SELECT COUNT(*) FROM souvenirs_lastseen"


def visits(rows: int, users: int) -> Iterator[tuple[str, int]]:
    """Yield this many rows of (when, user), in chronological order, of users who come more or less
    often."""
    chance = random.Random(1)
    for number in range(rows):
        when = LAST - timedelta(days=DAYS) * ((rows - number) / rows)
        user = 1 + int(users * chance.random() ** 2)
        yield f"{when:%Y-%m-%d %H:%M:%S.%f}", user


def django(*arguments: str, directory: Path) -> tuple[float, float]:
    """Run a management command of the benchmark's site; return its seconds and its peak MiB."""
    path = os.pathsep.join([str(directory), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "site_settings"}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "django", *arguments, "--verbosity=0"], env=environment
    )
    # The usage of this child alone. It starts with the memory that this process has when it starts
    # the child, which is why Django is not loaded here.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"`django {' '.join(arguments)}` failed: its message is above")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def sqlite(stack: ExitStack, directory: Path) -> tuple[dict[str, Any], Callable[[], Any]]:
    import sqlite3

    path = directory / "site.sqlite3"
    settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}
    return settings, lambda: sqlite3.connect(path)


def postgresql(stack: ExitStack, directory: Path) -> tuple[dict[str, Any], Callable[[], Any]]:
    import psycopg

    sys.path.insert(0, str(ROOT))
    from tests import servers

    settings = stack.enter_context(servers.postgresql())
    return settings, lambda: psycopg.connect(
        host=settings["HOST"],
        port=settings["PORT"],
        user=settings["USER"],
        dbname=settings["NAME"],
        options="-c timezone=UTC",
    )


def fill_sqlite(connection: Any, rows: int, users: int) -> None:
    connection.executescript(TABLES_OF_1_0_2["sqlite"] + MIGRATION_OF_1_0_2)
    connection.executemany(
        "INSERT INTO auth_user (id, username, password, first_name, last_name, email,"
        " is_superuser, is_staff, is_active, date_joined)"
        " VALUES (?, ?, '', '', '', '', 0, 0, 1, '2016-01-01 00:00:00')",
        ((user, f"user{user}") for user in range(1, users + 1)),
    )
    connection.executemany(
        'INSERT INTO souvenirs_souvenir ("when", user_id) VALUES (?, ?)', visits(rows, users)
    )


def fill_postgresql(connection: Any, rows: int, users: int) -> None:
    connection.execute(TABLES_OF_1_0_2["postgresql"] + MIGRATION_OF_1_0_2)
    connection.execute(
        "INSERT INTO auth_user (id, username, password, first_name, last_name, email,"
        " is_superuser, is_staff, is_active, date_joined)"
        " SELECT n, 'user' || n, '', '', '', '', false, false, true, '2016-01-01'"
        f" FROM generate_series(1, {users}) AS n"
    )
    with (
        connection.cursor() as cursor,
        cursor.copy('COPY souvenirs_souvenir ("when", user_id) FROM STDIN') as copy,
    ):
        for visit in visits(rows, users):
            copy.write_row(visit)


def count(connection: Any) -> dict[str, int]:
    counts = {}
    for name, query in COUNTS.items():
        [(number,)] = connection.execute(query).fetchall()
        counts[name] = int(number)
    return counts


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "rows", type=positive, nargs="?", default=1_000_000, help="souvenirs (default: %(default)s)"
    )
    parser.add_argument(
        "--users", type=positive, default=50_000, help="users with souvenirs (default: %(default)s)"
    )
    parser.add_argument(
        "--postgresql",
        action="store_true",
        help="use PostgreSQL, which must be installed, instead of SQLite",
    )
    options = parser.parse_args(arguments)
    begin, fill = (postgresql, fill_postgresql) if options.postgresql else (sqlite, fill_sqlite)

    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="souvenirs-migrate-")))
        database, connect = begin(stack, directory)
        (directory / "site_settings.py").write_text(SETTINGS.format(database=database))
        django("migrate", "auth", directory=directory)
        with closing(connect()) as connection:
            fill(connection, options.rows, options.users)
            connection.commit()
            before = count(connection)
        seconds, memory = django("migrate", "souvenirs", directory=directory)
        with closing(connect()) as connection:
            after = count(connection)
            [(last_seen,)] = connection.execute(LAST_SEEN).fetchall()

    print(f"migrate took {seconds:.1f} s and at most {memory:.0f} MiB of memory\n")
    print(f"{'':25} {'before':>18} {'after':>18}")
    for name, number in before.items():
        print(f"{name:25} {number:18,} {after[name]:18,}")
    print(f"{'last-seen rows':25} {'':18} {last_seen:18,}")
    if before != after or last_seen != before["users"]:
        print("\nThe counts differ", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
