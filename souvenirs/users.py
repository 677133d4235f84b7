"""Who is a user, and which key is theirs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.signals import setting_changed
from django.db import models, router

from souvenirs.models import Souvenir


@lru_cache(maxsize=128)
def pk_attribute(cls: type) -> str | None:
    """The attribute of instances of `cls` that holds a user's key. None: they are not users, but
    instances of another model."""
    if not issubclass(cls, models.Model):
        return "pk"
    user_model = get_user_model()._meta.concrete_model
    assert user_model is not None
    assert user_model._meta.pk is not None
    # Models of migrations are no subclasses; proxies and models with a table below the user's are
    is_user = issubclass(cls, user_model) or cls._meta.label == user_model._meta.label
    return user_model._meta.pk.attname if is_user else None


def key_of(user: Any) -> Any:
    """The key of a user, or `user` if it is a key itself, as it is found: see `clean_pk`.

    Raises TypeError for an instance of another model, and for what cannot be a key.
    """
    attribute = pk_attribute(user.__class__)
    if attribute is None:
        label = get_user_model()._meta.label
        raise TypeError(f"{user!r} is an instance of {user._meta.label}, not of {label}")
    key = getattr(user, attribute, user)
    if type(key).__hash__ is None:
        raise TypeError(f"{user!r} is neither a user nor a primary key of one")
    return key


def principal_key(principal: Any) -> Any:
    """The key of the user that something authenticated as, as it is found.

    None for nobody: an instance of another model, or whatever has no key.
    """
    attribute = pk_attribute(principal.__class__)
    key = None if attribute is None else getattr(principal, attribute, None)
    return None if type(key).__hash__ is None else key


def clean_pk(user: Any) -> Any:
    """The primary key of a user, or a key, as the user model has it.

    Raises TypeError as `key_of` does, and ValueError for a user without a key and for a value that
    no key can have.
    """
    key = key_of(user)
    if key is None:
        raise ValueError(f"{user!r} has no primary key: only saved users can be remembered")
    field = get_user_model()._meta.pk
    assert field is not None
    value = clean_value(field, key)
    if value is None:
        raise ValueError(f"{user!r} is neither a user nor a primary key of one")
    return value


def clean_value(field: Any, value: Any) -> Any:
    """`value` as the field has it. None if no database can be asked for it."""
    try:
        cleaned = field.to_python(value)
        if isinstance(cleaned, str):
            cleaned.encode()
    except (ValidationError, ArithmeticError, TypeError, ValueError):
        return None
    if isinstance(cleaned, str):
        # Text fields take any object for its str()
        return cleaned if isinstance(value, (str, int, UUID)) and "\0" not in cleaned else None
    is_huge = isinstance(cleaned, int) and not -(2**63) <= cleaned < 2**63
    return None if is_huge else cleaned


def require_user(user_pk: Any) -> None:
    """Raise the user model's DoesNotExist if no user has this key."""
    model = get_user_model()
    users = model._base_manager.using(router.db_for_write(model))
    if not users.filter(pk=user_pk).exists():
        raise model.DoesNotExist(f"There is no user with the primary key {user_pk!r}")


def has_constraint() -> bool:
    """Whether a foreign key checks that users exist: not if they are in another database."""
    field: Any = Souvenir._meta.get_field("user")
    return bool(field.db_constraint)


def _on_setting_changed(setting: str, **kwargs: Any) -> None:
    if setting == "AUTH_USER_MODEL":
        pk_attribute.cache_clear()


setting_changed.connect(_on_setting_changed)
