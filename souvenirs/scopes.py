"""Scopes: on a scoped site, such as one with tenants, the request decides whose data queries find.

A scope names the data: it is the schema of django-tenants, or what SOUVENIRS_SCOPE returns. The
same key in two scopes belongs to two users. Everything that a process remembers about users is kept
by scope, and work for a request stays in the request's thread: another thread may be in another
scope.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar

from django.apps import apps
from django.conf import settings
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db.models import Model

from souvenirs.conf import conf

V = TypeVar("V")

logger = logging.getLogger("souvenirs")


@cache
def schemas_database() -> str | None:
    """Return the alias of the database with tenants' schemas; None without django-tenants."""
    if not apps.is_installed("django_tenants"):
        return None
    return str(getattr(settings, "TENANT_DB_ALIAS", DEFAULT_DB_ALIAS))


@cache
def is_scoped() -> bool:
    """Return True if the site is scoped. That does not change while a process runs."""
    return getattr(settings, "SOUVENIRS_SCOPE", None) is not None or schemas_database() is not None


def current() -> Hashable:
    """Return the current scope; None if the site is not scoped."""
    if not is_scoped():
        return None
    return current_schema() if conf.scope is None else conf.scope()


def current_schema() -> str | None:
    """Return the schema in which this thread's queries find tables; None without django-tenants."""
    using = schemas_database()
    if using is None:
        return None
    connection: Any = connections[using]
    return str(connection.schema_name)


def has_table(model: type[Model]) -> bool:
    """Return False if `model` has no table in the current schema, such as the public one. Databases
    without a schema for each tenant always have the table."""
    if schemas_database() is None:
        return True
    using = router.db_for_write(model)
    return using != schemas_database() or router.allow_migrate_model(using, model)


class ScopedDict(dict[Any, V]):
    """A dictionary in which each scope sees only its items. (Only these three methods do that.)"""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get((current(), key), default)

    def pop(self, key: Any, *default: Any) -> Any:
        return super().pop((current(), key), *default)

    def __setitem__(self, key: Any, value: V) -> None:
        super().__setitem__((current(), key), value)


def make_dict() -> dict[Any, Any]:
    """Return a dictionary for keys of users or sessions: a plain one unless the site is scoped."""
    return ScopedDict() if is_scoped() else {}


_databases: set[str] = set()  # the databases that visits went to


def note_database(using: str) -> None:
    """Log an error, once, if visits go to several databases though the site is not scoped."""
    if using in _databases:
        return
    _databases.add(using)
    if len(_databases) == 2 and not is_scoped():
        logger.error(
            "The database of souvenirs changes between requests (%s): users with the same key are"
            " taken for one user. Set SOUVENIRS_SCOPE to a function that returns whose data the"
            " current request is about.",
            ", ".join(map(repr, sorted(_databases))),
        )


def _on_setting_changed(**kwargs: Any) -> None:
    _databases.clear()
    for cached in (schemas_database, is_scoped):
        cached.cache_clear()


setting_changed.connect(_on_setting_changed)
