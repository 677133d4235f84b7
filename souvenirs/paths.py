"""A path from the user model, such as "subscription__plan", and the field that it leads to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db import models, router
from django.db.models import Case, SmallIntegerField, Value, When

from souvenirs.models import LastSeen

NONE, OTHER = -1, -2  # numbers of null, and of what is not declared


class PathError(ValueError):
    """Why a path cannot be used, as a relative clause: "which ..."."""


@dataclass(frozen=True)
class UserPath:
    """A path that exists.

    relations: the fields on the way, each of the model that the one before leads to.
    field: the last one, a relation or a column.
    """

    name: str
    relations: tuple[Any, ...]
    field: Any

    @property
    def is_multivalued(self) -> bool:
        """Whether a user may have several values."""
        return any(each.one_to_many or each.many_to_many for each in (*self.relations, self.field))

    @property
    def is_shared(self) -> bool:
        """Whether many users may have the last relation's object in common."""
        return any(each.many_to_one or each.many_to_many for each in self.relations)

    @property
    def is_unique(self) -> bool:
        """Whether no two objects have the same value, so that a value names a single one."""
        if self.field.is_relation or self.field.unique:
            return True
        constraints = self.field.model._meta.total_unique_constraints
        return any(each.fields == (self.field.name,) for each in constraints)

    def databases(self) -> set[str]:
        """The aliases of the databases that the models on the path are in."""
        tables = [get_user_model(), *(each.related_model for each in self.relations)]
        tables += [each.through for each in self._many_to_many()]
        return {router.db_for_write(table) for table in tables}

    def is_joinable(self) -> bool:
        """Whether all of it is in the database of last-seen times."""
        return self.databases() == {router.db_for_write(LastSeen)}

    def _many_to_many(self) -> Iterator[Any]:
        for each in (*self.relations, self.field):
            if each.many_to_many:
                yield each.remote_field if isinstance(each, models.Field) else each


def resolve(path: Any) -> UserPath:
    """Follow a path of fields and relations, forwards or back. Raise PathError for any other."""
    if not isinstance(path, str) or not path:
        raise PathError("which is not a path such as 'is_staff' or 'subscription__plan'")
    model: Any = get_user_model()
    fields: list[Any] = []
    for name in path.split("__"):
        if model is None:
            raise PathError(f"which goes on after {fields[-1].name!r}, which is not a relation")
        try:
            field = model._meta.pk if name == "pk" else model._meta.get_field(name)
        except FieldDoesNotExist:
            raise PathError(f"but {model._meta.label} has no field {name!r}") from None
        fields.append(field)
        model = field.related_model if field.is_relation else None
        if field.is_relation and model is None:
            raise PathError(f"and {name!r} leads to no model in particular")
    *relations, last = fields
    return UserPath(path, tuple(relations), last)


def number_of(name: str, values: Sequence[Any]) -> Case:
    """An expression for the position in `values` of a column, or NONE or OTHER.

    The database compares, as it does for a filter: by the column's collation, to which "Free" and
    "free" may be the same.
    """
    return Case(
        *(When(**{name: each}, then=Value(number)) for number, each in enumerate(values)),
        When(**{f"{name}__isnull": True}, then=Value(NONE)),
        default=Value(OTHER),
        output_field=SmallIntegerField(),
    )
