"""The base class of the commands of both packages."""

from __future__ import annotations

import pkgutil
from argparse import Action, ArgumentError, ArgumentParser, ArgumentTypeError
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import InterfaceError, OperationalError, ProgrammingError, connections, router
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from souvenirs import scopes
from souvenirs.models import Souvenir


class SouvenirsCommand(BaseCommand):
    """A command that accepts options as Python values too, from `call_command`, and asks the user
    to run `migrate` if migrations are not applied."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        options = to_values(self.create_parser("", ""), options)
        self.require_tables()
        return super().execute(*args, **options)

    def require_tables(self) -> None:
        """Raise CommandError if migrations of souvenirs are not applied. If the database cannot be
        reached, or its user may not read django_migrations, leave the error to the command."""
        if not scopes.has_table(Souvenir):
            raise CommandError(
                f"The schema {scopes.current_schema()!r} has no tables of souvenirs: run the"
                " command for one tenant with tenant_command, or for all tenants with"
                " all_tenants_command --no-public"
            )
        using = router.db_for_write(Souvenir)
        try:
            names = unapplied_migrations(using)
        except (OperationalError, InterfaceError, ProgrammingError):
            return
        if names:
            option = "" if using == "default" else f" --database={using}"
            raise CommandError(
                f"The tables of souvenirs are missing or out of date ({len(names)} migrations are"
                f" not applied): run python manage.py migrate{option}"
            )


def unapplied_migrations(using: str) -> set[str]:
    """Return the names of the migrations of souvenirs that are not applied to a database.

    Do not look at others: Django's own check loads the migrations of all apps, which on a large
    site takes longer than most commands.
    """
    package, _ = MigrationLoader.migrations_module("souvenirs")
    if package is None:  # MIGRATION_MODULES says that tables are created without migrations
        return set()
    names = {module.name for module in pkgutil.iter_modules(import_module(package).__path__)}
    applied = MigrationRecorder(connections[using]).applied_migrations()
    return {name for name in names if ("souvenirs", name) not in applied}


def to_values(parser: ArgumentParser, options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert options as the command line would: `call_command` passes its keyword arguments
    unchanged. Raises CommandError for values that the command line would reject."""
    values = dict(options)
    try:
        for action in parser._actions:
            if values.get(action.dest) is not None:
                values[action.dest] = _to_value(action, values[action.dest])
        for group in parser._mutually_exclusive_groups:
            given = [a for a in group._group_actions if values.get(a.dest) not in (None, a.default)]
            if len(given) > 1:
                other = "/".join(given[0].option_strings) or given[0].dest
                raise ArgumentError(given[1], f"not allowed with argument {other}")
    except ArgumentError as error:
        raise CommandError(f"Error: {error}", returncode=2) from None
    return values


def _to_value(action: Action, value: Any) -> Any:
    if not isinstance(action.default, list):
        return _converted(action, value)
    if isinstance(value, Mapping):
        value = value.items()
    return [_converted(action, each) for each in ([value] if isinstance(value, str) else value)]


def _converted(action: Action, value: Any) -> Any:
    if callable(action.type):
        try:
            value = action.type(value)
        except ArgumentTypeError as error:
            raise ArgumentError(action, str(error)) from None
        except (TypeError, ValueError, OverflowError):
            kind = getattr(action.type, "__name__", action.type)
            raise ArgumentError(action, f"invalid {kind} value: {value!r}") from None
    if action.choices is not None and value not in action.choices:
        choices = ", ".join(map(repr, action.choices))
        raise ArgumentError(action, f"invalid choice: {value!r} (choose from {choices})")
    return value
