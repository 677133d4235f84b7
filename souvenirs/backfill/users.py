"""Names of users in files -> primary keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import router

from souvenirs.backfill.entries import USER_BY, BackfillError
from souvenirs.users import is_storable

BATCH_SIZE = 500  # users in a query


def find_users(names: Iterable[Any], user_by: str) -> dict[Any, list[Any]]:
    """For each of the names, the primary keys of the users with that name: none, one or several.

    Names are compared exactly, also where the database takes upper case for lower.
    """
    model: Any = get_user_model()
    column = user_field(user_by)
    values = {name: _cleaned(column, name) for name in names}
    wanted = list({value for value in values.values() if value is not None})
    found: dict[Any, list[Any]] = defaultdict(list)
    users = model._base_manager.using(router.db_for_write(model)).order_by()
    for at in range(0, len(wanted), BATCH_SIZE):
        some = users.filter(**{f"{column.name}__in": wanted[at : at + BATCH_SIZE]})
        for value, user_pk in some.values_list(column.name, "pk"):
            found[value].append(user_pk)
    return {name: found.get(value, []) for name, value in values.items()}


def user_field(user_by: str) -> Any:
    """The user model's field that "pk", "username" or "email" means. Raises BackfillError if there
    is none."""
    model: Any = get_user_model()
    if user_by == "pk":
        return model._meta.pk
    if user_by not in USER_BY:
        raise BackfillError(f"users are named by {', '.join(USER_BY)}, not by {user_by!r}")
    name = model.USERNAME_FIELD if user_by == "username" else model.get_email_field_name()
    try:
        return model._meta.get_field(name)
    except FieldDoesNotExist:
        raise BackfillError(
            f"users cannot be found by {user_by}: {model._meta.label} has no field {name}"
        ) from None


def _cleaned(column: Any, name: Any) -> Any:
    """A name as the field has it; None for what no database could be asked for."""
    try:
        value = column.to_python(name)
    except ValidationError:
        return None
    return value if is_storable(value) else None
