"""Find the primary keys for names of users in files."""

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
    """Return, for each name, the primary keys of the users with that name: none, one or several.

    Names are compared exactly, even if the database ignores case.
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
    """Return the user model's field for "pk", "username" or "email". Raises BackfillError if there
    is none."""
    model: Any = get_user_model()
    if user_by == "pk":
        return model._meta.pk
    if user_by not in USER_BY:
        raise BackfillError(f"user_by must be one of {', '.join(USER_BY)}, not {user_by!r}")
    name = model.USERNAME_FIELD if user_by == "username" else model.get_email_field_name()
    try:
        return model._meta.get_field(name)
    except FieldDoesNotExist:
        raise BackfillError(
            f"users cannot be found by {user_by}: {model._meta.label} has no field {name}"
        ) from None


def _cleaned(column: Any, name: Any) -> Any:
    """Convert a name to the field's type; None if it cannot be used in a query."""
    try:
        value = column.to_python(name)
    except ValidationError:
        return None
    return value if is_storable(value) else None
