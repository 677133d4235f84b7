"""Primary keys of users."""

from __future__ import annotations

import re
from numbers import Integral
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import router

from souvenirs.models import Souvenir

PLAIN_KEYS = frozenset({int, str, UUID})
SURROGATES = re.compile("[\ud800-\udfff]")
UNSTORABLE = object()


def clean_pk(user: Any) -> Any:
    """The primary key of a user, or a key, as the user model has it.

    Raises TypeError for a value of a type that `is_key` refuses, and ValueError for other values
    that cannot be a key, and for users who are not saved.
    """
    user_pk = getattr(user, "pk", user)
    if user_pk is user and not is_key(user):
        raise TypeError(
            f"{user!r} is no user and no primary key of one: give a user, or a key that is not of"
            f" the type {type(user).__name__}"
        )
    try:
        user_pk = _key_field().to_python(user_pk)
    except ValidationError:
        user_pk = UNSTORABLE
    if user_pk is None:
        raise ValueError(f"{user!r} has no primary key: only saved users can be remembered")
    if not is_storable(user_pk):
        raise ValueError(f"{user!r} is no user and no primary key of one")
    return user_pk


def is_key(value: Any) -> bool:
    """Whether the type of a value is one that primary keys are given in: whole numbers, text and
    UUIDs, or what the user model's own key is.

    Not so a bool, a float or a Decimal, which would be taken for the number that they equal, or
    bytes.
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
    """Whether a database can be asked for this key (or name) at all."""
    if isinstance(key, int):
        return -(2**63) <= key < 2**63
    if not isinstance(key, str):
        return key is not UNSTORABLE
    return "\0" not in key and not SURROGATES.search(key)


def _key_field() -> Any:
    return get_user_model()._meta.pk


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
