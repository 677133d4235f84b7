"""Users and their primary keys: what counts as a user, and how keys are normalised."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import cache, lru_cache
from numbers import Integral
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.core.signals import setting_changed
from django.db import connections, models, router

from souvenirs.databases import lock_keys
from souvenirs.models import Souvenir

PLAIN_KEYS = frozenset({int, str, UUID})
SURROGATES = re.compile("[\ud800-\udfff]")
UNSTORABLE = object()


@lru_cache(maxsize=128)
def pk_attribute(cls: type) -> str | None:
    """Return the attribute of instances of `cls` that holds a user's key; None if they are not
    users, but instances of another model."""
    if not issubclass(cls, models.Model):
        return "pk"
    user_model = get_user_model()._meta.concrete_model
    assert user_model is not None
    assert user_model._meta.pk is not None
    # Historical models are not subclasses; proxies and multi-table children are
    is_user = issubclass(cls, user_model) or cls._meta.label == user_model._meta.label
    return user_model._meta.pk.attname if is_user else None


def key_of(user: Any) -> Any:
    """Return the key of a user, or `user` if it is a key itself, without converting it (`clean_pk`
    does).

    Raises TypeError for an instance of another model, or a key of a type that `is_key` rejects.
    """
    attribute = pk_attribute(user.__class__)
    if attribute is None:
        label = get_user_model()._meta.label
        raise TypeError(f"{user!r} is an instance of {user._meta.label}, not of {label}")
    key = getattr(user, attribute, user)
    if not is_key(key):
        raise TypeError(
            f"{user!r} is neither a user nor a user's primary key: pass a user, or a key that is"
            f" not of type {type(key).__name__}"
        )
    return key


def principal_key(principal: Any) -> Any:
    """Return the key of the user that a principal represents, without converting it.

    Return None if it is not a user: an instance of another model, or an object without a key of a
    user's type.
    """
    attribute = pk_attribute(principal.__class__)
    key = None if attribute is None else getattr(principal, attribute, None)
    return key if is_key(key) else None


def clean_pk(user: Any) -> Any:
    """Return the primary key of a user, or a key, converted to the type of the user model's key.

    Raises TypeError as `key_of` does, and ValueError for a user who is not saved and for a value
    that cannot be a key.
    """
    key = clean_key(key_of(user))
    if key is None:
        raise ValueError(f"{user!r} has no primary key: only saved users can be recorded")
    if key is UNSTORABLE:
        raise ValueError(f"{user!r} is neither a user nor a user's primary key")
    return key


def clean_key(key: Any) -> Any:
    """Convert a key that passed `is_key` to the type of the user model's key. Return UNSTORABLE if
    it cannot be one."""
    try:
        key = _key_field().to_python(key)
    except ValidationError:
        return UNSTORABLE
    return key if is_storable(key) else UNSTORABLE


def is_key(value: Any) -> bool:
    """Return True if a value has a type that primary keys may be passed in: whole numbers, text,
    UUIDs, or the type of the user model's key.

    Return False for a bool, a float or a Decimal, which would be mistaken for the number that they
    equal, and for bytes.
    """
    if type(value) in PLAIN_KEYS:
        return True
    if isinstance(value, bool):
        return False
    if value is None or isinstance(value, (Integral, str, UUID)):
        return True
    try:
        return isinstance(value, type(_key_field().to_python(value)))
    except (ValidationError, ArithmeticError, AttributeError, TypeError, ValueError):
        return False


def is_storable(key: Any) -> bool:
    """Return True if this key (or name) can be used in a query at all."""
    if isinstance(key, int):
        return -(2**63) <= key < 2**63
    if not isinstance(key, str):
        return True
    return "\0" not in key and not SURROGATES.search(key)


@cache
def _key_field() -> Any:
    return get_user_model()._meta.pk


def column(name: str) -> Any:
    """Return the user model's field of this name, or None if there is none."""
    try:
        return get_user_model()._meta.get_field(name)
    except FieldDoesNotExist:
        return None


def has_date_joined() -> bool:
    """Return True if the user model has a datetime column `date_joined`."""
    return isinstance(column("date_joined"), models.DateTimeField)


def key_of_row(raw: Any) -> Any:
    """Convert a user's key, as a raw statement returned it, to the type of the user model's key."""
    user: Any = Souvenir._meta.get_field("user")
    return user.target_field.to_python(raw)


def require_user(user_pk: Any) -> None:
    """Raise the user model's DoesNotExist if no user has this key."""
    model = get_user_model()
    users = model._base_manager.using(router.db_for_write(model))
    if not users.filter(pk=user_pk).exists():
        raise model.DoesNotExist(f"There is no user with the primary key {user_pk!r}")


def existing_users(user_pks: Iterable[Any], using: str | None = None) -> set[Any]:
    """Return those keys that belong to existing users. One query."""
    model = get_user_model()
    users = model._base_manager.using(using or router.db_for_write(model))
    return set(users.filter(pk__in=list(user_pks)).values_list("pk", flat=True))


def lock_users(user_pks: Collection[Any], using: str, *, shared: bool) -> set[Any]:
    """Lock the users with these keys that are not locked already: see `databases.lock_keys`."""
    return lock_keys(get_user_model(), user_pks, using, shared=shared)


def lock_before_deletion(user_pks: Collection[Any], using: str) -> None:
    """Lock these users until the transaction ends, and wait for transactions that have locked them
    to insert rows of theirs: if those committed after our rows are deleted, the constraint would
    prevent the deletion of the user. SQLite has one writer at a time anyway."""
    if connections[using].features.has_select_for_update:
        lock_keys(get_user_model(), user_pks, using, shared=False, wait=True)


def has_constraint() -> bool:
    """Return True if a foreign key checks that users exist: not if they are in another database."""
    field: Any = Souvenir._meta.get_field("user")
    return bool(field.db_constraint)


def _on_setting_changed(setting: str, **kwargs: Any) -> None:
    if setting == "AUTH_USER_MODEL":
        pk_attribute.cache_clear()
        _key_field.cache_clear()


setting_changed.connect(_on_setting_changed)
