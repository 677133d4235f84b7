"""Which tenant's data does a query find? On a scoped site, that depends on the request.

A scope names the data: the schema of django-tenants, or what SOUVENIRS_SCOPE says. Users with the
same key in two scopes are two users. Whatever is remembered of users carries the scope, and work
for a request stays in the request's thread: another one may be in another scope.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, TypeVar

from django.conf import settings
from django.core.signals import setting_changed
from django.db import connections, router
from django.db.models import Model
from django.db.utils import load_backend
from django.utils.module_loading import import_string

V = TypeVar("V")


@cache
def schema_databases() -> tuple[str, ...]:
    """The aliases of databases in which a connection is in a tenant's schema (django-tenants)."""
    return tuple(
        alias
        for alias, entry in connections.settings.items()
        if hasattr(load_backend(entry["ENGINE"]).DatabaseWrapper, "set_schema")
    )


@cache
def is_scoped() -> bool:
    """Whether the site is scoped. That does not change while a process runs."""
    return getattr(settings, "SOUVENIRS_SCOPE", None) is not None or bool(schema_databases())


@cache
def scope_function() -> Callable[[], Hashable]:
    path = getattr(settings, "SOUVENIRS_SCOPE", None)
    function: Callable[[], Hashable] = current_schemas if path is None else import_string(path)
    return function


def current_schemas() -> tuple[str, ...]:
    return tuple(vars(connections[alias])["schema_name"] for alias in schema_databases())


def current() -> Hashable:
    """The current scope; None if the site is not scoped."""
    return scope_function()() if is_scoped() else None


def has_table(model: type[Model]) -> bool:
    """Return False if `model` has no table in the current schema, such as the public one. Databases
    without schemas of tenants always have it."""
    using = router.db_for_write(model)
    return using not in schema_databases() or router.allow_migrate_model(using, model)


class ScopedDict(dict[Any, V]):
    """A dictionary in which each scope sees its own items. (Only these three methods do so.)"""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get((current(), key), default)

    def pop(self, key: Any, *default: Any) -> Any:
        return super().pop((current(), key), *default)

    def __setitem__(self, key: Any, value: V) -> None:
        super().__setitem__((current(), key), value)


def make_dict() -> dict[Any, Any]:
    """A dictionary by users, or their sessions: a plain one unless the site is scoped."""
    return ScopedDict() if is_scoped() else {}


def _on_setting_changed(setting: str, **kwargs: Any) -> None:
    if setting in ("DATABASES", "SOUVENIRS_SCOPE"):
        for cached in (schema_databases, is_scoped, scope_function):
            cached.cache_clear()


setting_changed.connect(_on_setting_changed)
