"""Primary keys of users."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import router

from souvenirs.models import Souvenir


def clean_pk(user: Any) -> Any:
    """The primary key of a user, or a key, as the user model has it. ValueError for others."""
    user_pk = getattr(user, "pk", user)
    field = get_user_model()._meta.pk
    assert field is not None
    try:
        user_pk = field.to_python(user_pk)
    except ValidationError:
        raise ValueError(f"{user!r} is no user and no primary key of one") from None
    if user_pk is None:
        raise ValueError(f"{user!r} has no primary key: only saved users can be remembered")
    return user_pk


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
