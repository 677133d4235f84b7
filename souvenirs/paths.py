"""Paths from the user model, such as "subscription__plan", and the fields that they lead to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db import models, router
from django.db.models import Case, SmallIntegerField, Value, When

from souvenirs.models import LastSeen

NONE, OTHER = -1, -2  # numbers for null, and for values that are not declared


class PathError(ValueError):
    """A path cannot be used. The message says why."""


@dataclass(frozen=True)
class UserPath:
    """A path whose fields all exist.

    relations: the fields on the way; each belongs to the model that the previous one leads to.
    field: the last field, a relation or a column.
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
        """Whether several users may share the last relation's object."""
        return any(each.many_to_one or each.many_to_many for each in self.relations)

    @property
    def is_unique(self) -> bool:
        """Whether no two objects have the same value, so that a value identifies one object."""
        if self.field.is_relation or self.field.unique:
            return True
        constraints = self.field.model._meta.total_unique_constraints
        return any(each.fields == (self.field.name,) for each in constraints)

    def databases(self) -> set[str]:
        """The aliases of the databases of the models on the path."""
        tables = [get_user_model(), *(each.related_model for each in self.relations)]
        tables += [each.through for each in self._many_to_many()]
        return {router.db_for_write(table) for table in tables}

    def is_joinable(self) -> bool:
        """Return True if the whole path is in the database of last-seen times."""
        return self.databases() == {router.db_for_write(LastSeen)}

    def _many_to_many(self) -> Iterator[Any]:
        for each in (*self.relations, self.field):
            if each.many_to_many:
                yield each.remote_field if isinstance(each, models.Field) else each


def resolve(path: Any) -> UserPath:
    """Resolve a path of fields and relations, forward or reverse. Raise PathError if that fails."""
    if not isinstance(path, str) or not path:
        raise PathError("write a path such as 'is_staff' or 'subscription__plan'")
    model: Any = get_user_model()
    fields: list[Any] = []
    for name in path.split("__"):
        if model is None:
            raise PathError(f"it continues after {fields[-1].name!r}, which is not a relation")
        try:
            field = model._meta.pk if name == "pk" else model._meta.get_field(name)
        except FieldDoesNotExist:
            raise PathError(f"{model._meta.label} has no field {name!r}") from None
        fields.append(field)
        model = field.related_model if field.is_relation else None
        if field.is_relation and model is None:
            raise PathError(f"{name!r} does not lead to a specific model")
    *relations, last = fields
    return UserPath(path, tuple(relations), last)


def number_of(name: str, values: Sequence[Any]) -> Case:
    """Return an expression for the position of a column's value in `values`, or NONE or OTHER.

    The database compares the values, as in a filter, with the column's collation, in which "Free"
    and "free" may be equal.
    """
    return Case(
        *(When(**{name: each}, then=Value(number)) for number, each in enumerate(values)),
        When(**{f"{name}__isnull": True}, then=Value(NONE)),
        default=Value(OTHER),
        output_field=SmallIntegerField(),
    )
