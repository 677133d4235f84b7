"""`manage.py sqlmigrate` prints SQL that a database administrator may run, on each engine, even
before anything was migrated."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections
from django.db.migrations.loader import MigrationLoader

EMPTY = "empty"  # alias of a database without any migrated tables

# the users' migrations are in another database
pytestmark = pytest.mark.where("routed" not in settings.SHAPE)


@pytest.fixture
def empty(
    db: None,  # to run on each engine
    add_database: Any,
    tmp_path: Path,
) -> Iterator[Any]:
    name = f"souvenirs_empty_{os.getpid()}"
    if connection.vendor == "sqlite":
        add_database(EMPTY, {**connection.settings_dict, "NAME": tmp_path / name})
        yield connections[EMPTY]
        return
    with connection._nodb_cursor() as cursor:  # type: ignore[attr-defined]
        cursor.execute(f"CREATE DATABASE {name}")
    add_database(EMPTY, {**connection.settings_dict, "NAME": name})
    try:
        yield connections[EMPTY]
    finally:
        connections[EMPTY].close()
        with connection._nodb_cursor() as cursor:  # type: ignore[attr-defined]
            cursor.execute(f"DROP DATABASE {name}")


def sqlmigrate(name: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("sqlmigrate", "souvenirs", name, database=EMPTY, stdout=out, **options)
    return out.getvalue()


def names() -> list[str]:
    migrations = MigrationLoader(None).disk_migrations
    return sorted(name for app, name in migrations if app == "souvenirs")


@pytest.mark.parametrize("name", names())
def test_sqlmigrate__prints_every_migration(empty: Any, name: str) -> None:
    assert sqlmigrate(name).strip()
    assert sqlmigrate(name, backwards=True).strip()


def test_sqlmigrate__prints_the_same_changes_as_migrate_makes(empty: Any) -> None:
    """The tables and indexes are the same, whether Django migrates, or an administrator runs the
    SQL that was printed for each migration beforehand."""
    printed = [sqlmigrate(name) for name in names()]
    call_command("migrate", "souvenirs", database=EMPTY, verbosity=0)
    migrated = schema(empty)
    call_command("migrate", "souvenirs", "zero", database=EMPTY, verbosity=0)
    for text in printed:
        execute(empty, text)
    assert schema(empty) == migrated


def execute(connection: Any, text: str) -> None:
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    for statement in "\n".join(lines).split(";"):
        if statement.strip() not in ("", "BEGIN", "COMMIT"):
            with connection.cursor() as cursor:
                cursor.execute(statement)


def schema(connection: Any) -> dict[str, Any]:
    with connection.cursor() as cursor:
        return {
            table: (
                connection.introspection.get_table_description(cursor, table),
                connection.introspection.get_constraints(cursor, table),
            )
            for table in connection.introspection.table_names(cursor)
            if table.startswith("souvenirs_")
        }
