"""A database that 1.0.2 left behind is migrated in place, on the engine that the tests run on."""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, timezone
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import IntegrityError, connections, transaction
from django.db.migrations.executor import MigrationExecutor
from django.test import override_settings

from benchmarks.migrate import MIGRATION_OF_1_0_2, TABLES_OF_1_0_2
from souvenirs.models import LastSeen, Souvenir
from souvenirs.timestamps import to_seconds

OLD = "old"  # alias of the database that is migrated, which no other test uses
ENGINE = connections["default"].vendor
pytestmark = pytest.mark.where(ENGINE in TABLES_OF_1_0_2 and not settings.SHAPE)
ROOT = Path(__file__).resolve().parent.parent

fill_lastseen = import_module("souvenirs.migrations.0005_fill_lastseen")

Row = tuple[int, datetime, int]


# Databases


@contextmanager
def connected(name: str) -> Iterator[Any]:
    entry = {**connections["default"].settings_dict, "NAME": name}
    if ENGINE == "sqlite":
        entry["OPTIONS"] = {"init_command": "PRAGMA synchronous = OFF"}  # no power failures here
    connections.settings[OLD] = entry
    try:
        yield connections[OLD]
    finally:
        connections[OLD].close()
        del connections[OLD], connections.settings[OLD]


def on_the_server(statement: str) -> None:
    with connections["default"]._nodb_cursor() as cursor:
        cursor.execute(statement)


@contextmanager
def copied(name: str, template: str | None = None) -> Iterator[str]:
    """Create a database of this name, empty or a copy, that is dropped afterwards."""
    if ENGINE == "sqlite":
        if template is not None:
            shutil.copy(template, name)
        yield name
        Path(name).unlink(missing_ok=True)
        return
    on_the_server(f"CREATE DATABASE {name} TEMPLATE {template or 'template0'}")
    try:
        yield name
    finally:
        on_the_server(f"DROP DATABASE {name}")


def name_of_database(directory: Path, name: str) -> str:
    if ENGINE == "sqlite":
        return str(directory / f"{name}.sqlite3")
    return f"souvenirs_{name}_{os.getpid()}"


@pytest.fixture(scope="module")
def template(django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a database with the users' tables, created today, and the tables of 1.0.2, all
    empty."""
    directory = tmp_path_factory.mktemp("template")
    with django_db_blocker.unblock(), copied(name_of_database(directory, "template")) as name:
        with connected(name) as connection:
            call_command("migrate", "auth", database=OLD, verbosity=0)
            with connection.cursor() as cursor:
                for statement in (TABLES_OF_1_0_2[ENGINE] + MIGRATION_OF_1_0_2).split(";"):
                    if statement.strip():
                        cursor.execute(statement)
        yield name


@pytest.fixture
def new_database(template: str, django_db_blocker: Any, tmp_path: Path) -> Callable[[], Any]:
    """A factory of empty 1.0.2 databases: a context manager that yields the connection."""

    @contextmanager
    def make() -> Iterator[Any]:
        with (
            django_db_blocker.unblock(),
            copied(name_of_database(tmp_path, "old"), template) as name,
            connected(name) as connection,
        ):
            yield connection

    return make


@pytest.fixture
def old(new_database: Callable[[], Any]) -> Iterator[Any]:
    """The connection to a 1.0.2 database with data."""
    with new_database() as connection:
        fill(connection)
        yield connection


# The old database: users 1 to 25 were active, 26 to 28 will be, 29 and 30 never were

LAST = datetime(2017, 3, 1, 12, tzinfo=timezone.utc)
FUTURE = datetime(2090, 1, 1, tzinfo=timezone.utc)
ACTIVE, TO_COME, ALL = range(1, 26), range(26, 29), range(1, 31)


def old_rows() -> list[Row]:
    chance = random.Random(102)
    rows: list[Row] = []
    for number in range(400):
        when = LAST - timedelta(microseconds=chance.randrange(60 * 24 * 3_600 * 1_000_000))
        if number % 3 == 0:
            when = when.replace(microsecond=0)
        rows.append((1 + 2 * number, when, chance.choice(ACTIVE)))
    rows += [(901 + user, LAST - timedelta(days=user), user) for user in ACTIVE]
    rows += [(931 + user, FUTURE + timedelta(days=user), user) for user in (3, *TO_COME)]
    rows.append((1_000, rows[7][1], rows[7][2]))  # a duplicate
    return rows


ROWS = old_rows()


def fill(connection: Any) -> None:
    add_users()
    insert(connection, [(pk, text(when), user) for pk, when, user in ROWS])
    if ENGINE == "postgresql":
        execute(connection, "SELECT setval('souvenirs_souvenir_id_seq', 1000)")


def add_users() -> None:
    User.objects.using(OLD).bulk_create(User(pk=pk, username=f"user{pk}") for pk in ALL)


def text(when: datetime) -> str:
    return when.replace(tzinfo=None).isoformat(" ")  # as Django wrote it, without a zero fraction


def insert(connection: Any, rows: list[tuple[int, str, int]]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            'INSERT INTO souvenirs_souvenir (id, "when", user_id) VALUES (%s, %s, %s)', rows
        )


def execute(connection: Any, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query, arguments or None)
        return list(cursor.fetchall()) if cursor.description else []


def raw_rows(connection: Any) -> list[tuple[Any, ...]]:
    return execute(connection, 'SELECT id, "when", user_id FROM souvenirs_souvenir ORDER BY id')


def raw_counts(connection: Any) -> list[int]:
    """The distinct users of every day, and of all time, as the database counts them."""
    days = [LAST + timedelta(days=n) for n in range(-61, 2)]
    query = (
        'SELECT COUNT(DISTINCT user_id) FROM souvenirs_souvenir WHERE "when" >= %s AND "when" < %s'
    )
    bounds = [*pairwise(days), (days[0], days[-1]), (days[0], FUTURE + timedelta(days=99))]
    return [execute(connection, query, text(start), text(end))[0][0] for start, end in bounds]


def migrate(target: str | None = None) -> None:
    arguments = ["souvenirs"] if target is None else ["souvenirs", target]
    call_command("migrate", *arguments, database=OLD, verbosity=0)


def indexes(connection: Any, table: str = "souvenirs_souvenir") -> dict[str, list[str]]:
    with connection.cursor() as cursor:
        constraints = connection.introspection.get_constraints(cursor, table)
    return {name: item["columns"] for name, item in constraints.items() if item["index"]}


def last_seen_of_rows(rows: list[Row]) -> dict[int, int | None]:
    """The expected content of LastSeen: user -> seen."""
    seen: dict[int, int | None] = {user: None for _, _, user in rows}
    for _, when, user in rows:
        if when < FUTURE:
            seen[user] = max(seen[user] or 0, math.floor(when.timestamp()))
    return seen


def last_seen_rows(connection: Any) -> dict[int, int | None]:
    rows = LastSeen.objects.using(connection.alias).values_list("user_id", "seen")
    assert len(rows) == len(dict(rows))
    return {user: None if seen is None else to_seconds(seen) for user, seen in rows}


def last_seen_ids(connection: Any) -> list[int]:
    return [pk for (pk,) in execute(connection, "SELECT id FROM souvenirs_lastseen ORDER BY id")]


def assert_is_migrated(connection: Any) -> None:
    assert [(pk, user) for pk, _, user in raw_rows(connection)] == [
        (pk, user) for pk, _, user in sorted(ROWS)
    ]
    assert dict(Souvenir.objects.using(OLD).values_list("pk", "when")) == {
        pk: when for pk, when, _ in ROWS
    }
    assert sorted(indexes(connection).values()) == [["user_id"], ["when", "user_id"]]
    assert last_seen_rows(connection) == last_seen_of_rows(ROWS)
    executor = MigrationExecutor(connection)
    assert not executor.migration_plan(executor.loader.graph.leaf_nodes("souvenirs"))


# Rows


def test_migrate__keeps_all_rows_and_their_keys(old: Any) -> None:
    before = raw_rows(old)
    assert len(before) == len(ROWS)
    migrate()
    assert raw_rows(old) == before


def test_migrate__keeps_all_counts(old: Any) -> None:
    before = raw_counts(old)
    assert before[-2:] == [25, 28]
    migrate()
    assert raw_counts(old) == before


def test_migrate__counts_of_the_new_version_equal_those_of_the_old_one(old: Any) -> None:
    *days, _, _ = raw_counts(old)
    migrate()
    counts = [
        Souvenir.objects.using(OLD)
        .between(LAST + timedelta(days=n), LAST + timedelta(days=n + 1))
        .count_users()
        for n in range(-61, 1)
    ]
    assert counts == days
    assert max(counts) > 1


def test_migrate__all_data_is_in_place(old: Any) -> None:
    migrate()
    assert_is_migrated(old)


def test_migrate__keys_continue(old: Any) -> None:
    migrate()
    row = Souvenir.objects.using(OLD).create(user_id=29)
    assert row.pk == 1_001


def test_migrate__keys_continue_beyond_32_bits(old: Any) -> None:
    migrate()
    Souvenir.objects.using(OLD).create(pk=2**31 - 1, user_id=29)
    if ENGINE == "postgresql":  # the sequence does not notice keys that are given
        [(sequence,)] = execute(old, "SELECT pg_get_serial_sequence('souvenirs_souvenir', 'id')")
        execute(old, "SELECT setval(%s, %s)", sequence, 2**31 - 1)
    rows = [Souvenir.objects.using(OLD).create(user_id=29) for _ in range(2)]
    assert [row.pk for row in rows] == [2**31, 2**31 + 1]


def test_migrate__key_has_64_bits(old: Any) -> None:
    query, before, after = {
        "sqlite": (
            "SELECT lower(type) FROM pragma_table_info('souvenirs_souvenir') WHERE name = 'id'",
            "integer",  # already 64 bits, and required for a primary key of SQLite
            "integer",
        ),
        "postgresql": (
            "SELECT data_type FROM information_schema.columns"
            " WHERE table_name = 'souvenirs_souvenir' AND column_name = 'id'",
            "integer",
            "bigint",
        ),
    }[ENGINE]
    assert execute(old, query) == [(before,)]
    migrate()
    assert execute(old, query) == [(after,)]


def test_migrate__rows_without_a_user_stay_impossible(old: Any) -> None:
    migrate()
    with pytest.raises(IntegrityError), transaction.atomic(using=OLD):
        insert(old, [(5_000, text(LAST), 999)])
    with pytest.raises(IntegrityError), transaction.atomic(using=OLD):
        execute(old, "INSERT INTO souvenirs_lastseen (user_id) VALUES (999)")


def test_migrate__deleting_a_user_deletes_their_rows(old: Any) -> None:
    migrate()
    User.objects.using(OLD).get(pk=3).delete()
    assert {user for _, _, user in raw_rows(old)} == {*ACTIVE, *TO_COME} - {3}
    assert 3 not in last_seen_rows(old)


# Indexes


def test_migrate__has_the_covering_index_and_drops_the_one_on_when_alone(old: Any) -> None:
    before = indexes(old)
    assert before.pop("souvenirs_souvenir_df491a4d") == ["when"]
    migrate()
    after = indexes(old)
    assert after.pop("souvenirs_when_user") == ["when", "user_id"]
    assert list(after.values()) == list(before.values()) or ENGINE == "sqlite"
    assert ["user_id"] in after.values()
    assert ["when"] not in after.values()


def test_migrate__counts_are_read_from_the_covering_index(old: Any) -> None:
    migrate()
    # Whether the index can answer, not whether a planner prefers it for a few rows
    hint = {"sqlite": "INDEXED BY souvenirs_when_user ", "postgresql": ""}[ENGINE]
    query = f'SELECT COUNT(DISTINCT user_id) FROM souvenirs_souvenir {hint}WHERE "when" >= %s'
    explain = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}[ENGINE]
    if ENGINE == "postgresql":
        with closing(old.connection.cursor()) as cursor:
            cursor.execute("VACUUM souvenirs_souvenir")
        execute(old, "SET enable_seqscan = off")
        execute(old, "SET enable_bitmapscan = off")
    plan = " ".join(str(line) for line in execute(old, explain + query, text(LAST)))
    assert "souvenirs_when_user" in plan
    assert {"sqlite": "COVERING INDEX", "postgresql": "Index Only Scan"}[ENGINE] in plan


# Last seen


def test_migrate__last_seen_is_the_newest_souvenir_not_in_the_future(old: Any) -> None:
    migrate()
    seen = last_seen_rows(old)
    assert seen == last_seen_of_rows(ROWS)
    assert seen[3] is not None
    assert [seen[user] for user in TO_COME] == [None] * 3
    assert 29 not in seen


def test_migrate__last_seen_wastes_no_id(old: Any) -> None:
    migrate()
    assert last_seen_ids(old) == list(range(1, 29))
    assert LastSeen.objects.using(OLD).create(user_id=29).pk == 29


def test_migrate__last_seen_of_a_site_without_use_tz(new_database: Callable[[], Any]) -> None:
    kolkata = ZoneInfo("Asia/Kolkata")
    noon = datetime(2017, 3, 1, 12, 30, 15, 250_000)
    with (
        override_settings(USE_TZ=False, TIME_ZONE="Asia/Kolkata"),
        new_database() as connection,
    ):
        add_users()
        insert(connection, [(1, text(noon), 1), (2, text(noon - timedelta(days=1)), 1)])
        migrate()
        assert last_seen_rows(connection) == {
            1: math.floor(noon.replace(tzinfo=kolkata).timestamp())
        }


def test_migrate__database_without_souvenirs(new_database: Callable[[], Any]) -> None:
    with new_database() as connection:
        add_users()
        migrate()
        assert last_seen_rows(connection) == {}
        assert Souvenir.objects.using(OLD).create(user_id=1).pk == 1


# Interruptions


class InterruptionError(Exception):
    pass


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_fill_last_seen__continues_after_an_interruption_and_wastes_no_id(
    old: Any, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    inserted = 0

    def fail_later(execute: Any, sql: str, *args: Any) -> Any:
        nonlocal inserted
        if "INTO" in sql and "souvenirs_lastseen" in sql:
            inserted += 1
            if inserted > batches:
                raise InterruptionError
        return execute(sql, *args)

    monkeypatch.setattr(fill_lastseen, "BATCH", 7)
    with old.execute_wrapper(fail_later), pytest.raises(InterruptionError):
        migrate()
    assert len(last_seen_ids(old)) == 7 * batches
    migrate()
    assert last_seen_rows(old) == last_seen_of_rows(ROWS)
    assert last_seen_ids(old) == list(range(1, 29))


def test_fill_last_seen__keeps_existing_rows(old: Any) -> None:
    migrate("0004")
    LastSeen.objects.using(OLD).create(user_id=2, seen=FUTURE)
    migrate()
    assert last_seen_rows(old) == {**last_seen_of_rows(ROWS), 2: int(FUTURE.timestamp())}


def is_write(statement: str) -> bool:
    """Whether it changes a table of the site. Django records a migration after it has committed it,
    so any migration is lost if the process is killed between these two."""
    if "django_migrations" in statement:
        return False
    return statement.split()[0] in {"CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE"}


def writes_of_migration(new_database: Callable[[], Any]) -> list[str]:
    """The writes that migrate the old database."""
    statements: list[str] = []

    def note(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        statements.append(str(sql))
        return execute(sql, params, many, context)

    with new_database() as connection:
        fill(connection)
        with connection.execute_wrapper(note):
            migrate()
    return [statement for statement in statements if is_write(statement)]


@contextmanager
def dying_after(writes: int, connection: Any) -> Iterator[None]:
    """Kill the process after this many writes: nothing else reaches the database."""
    left = writes

    def interrupt(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        nonlocal left
        left -= is_write(str(sql))
        if left < 0:
            raise InterruptionError
        return execute(sql, params, many, context)

    with connection.execute_wrapper(interrupt), pytest.raises(InterruptionError):
        yield
    connection.connection.close()
    del connections[OLD]


def test_migrate__continues_after_it_was_killed_anywhere(new_database: Callable[[], Any]) -> None:
    failures = []
    for number, statement in enumerate(writes_of_migration(new_database)):
        with new_database() as connection:
            fill(connection)
            with dying_after(number, connection):
                migrate()
            try:
                migrate()
                assert_is_migrated(connections[OLD])
            except Exception as error:
                failures.append(f"killed before {statement!r}: {error!r}")
    assert failures == []


LEFTOVERS = {
    "valid": 'CREATE INDEX souvenirs_when_user ON souvenirs_souvenir ("when", user_id)',
    "another": "CREATE INDEX souvenirs_when_user ON souvenirs_souvenir (user_id)",
    "invalid": None,
}

# Only PostgreSQL builds an index in steps, and may leave a half-built one
on_postgresql = pytest.mark.where(ENGINE == "postgresql")


def is_valid(connection: Any) -> list[tuple[Any, ...]]:
    return execute(
        connection,
        "SELECT indisvalid, indisready FROM pg_index"
        " WHERE indexrelid = 'souvenirs_when_user'::regclass",
    )


@on_postgresql
def test_migrate__index_is_valid(old: Any) -> None:
    migrate()
    assert is_valid(old) == [(True, True)]


@on_postgresql
@pytest.mark.parametrize("kind", LEFTOVERS)
def test_migrate__replaces_an_index_that_was_left_over(old: Any, kind: str) -> None:
    migrate("0002")
    if kind == "invalid":
        # With two rows of one user a unique index fails, and if built concurrently it stays behind
        with pytest.raises(IntegrityError):
            execute(
                old,
                "CREATE UNIQUE INDEX CONCURRENTLY souvenirs_when_user"
                " ON souvenirs_souvenir (user_id)",
            )
        [(valid, _)] = is_valid(old)
        assert not valid
    else:
        execute(old, LEFTOVERS[kind])
    migrate()
    assert is_valid(old) == [(True, True)]
    assert_is_migrated(old)


# Backwards, and no missing migrations


def test_migrate__backwards_and_forwards_again(old: Any) -> None:
    before, indexed = raw_rows(old), sorted(indexes(old).values())
    migrate()
    migrate("0001")
    assert raw_rows(old) == before
    assert sorted(indexes(old).values()) == indexed
    assert "souvenirs_lastseen" not in old.introspection.table_names()
    migrate()
    assert raw_rows(old) == before
    assert_is_migrated(old)
    assert last_seen_ids(old) == list(range(1, 29))


@pytest.mark.parametrize("field", ["AutoField", "BigAutoField", "SmallAutoField"])
def test_makemigrations__has_no_changes_with_any_default_key(tmp_path: Path, field: str) -> None:
    (tmp_path / "other_settings.py").write_text(
        'SECRET_KEY = "of the tests"\n'
        'SILENCED_SYSTEM_CHECKS = ["souvenirs.W004"]\n'
        f'DEFAULT_AUTO_FIELD = "django.db.models.{field}"\n'
        'DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}\n'
        "INSTALLED_APPS = [\n"
        '    "django.contrib.auth",\n'
        '    "django.contrib.contenttypes",\n'
        '    "souvenirs",\n'
        '    "souvenirs_metrics",\n'
        "]\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = subprocess.run(
        [sys.executable, "-m", "django", "makemigrations", "--check", "--dry-run"],
        env={**os.environ, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "other_settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith("No changes detected")
