"""Validates and resolves SOUVENIRS_METRICS_SEGMENTS and SOUVENIRS_METRICS_ACCOUNTS.

A label must not identify anybody, and its number of values must be bounded: a segment has the
declared values, "none" and "other".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import models

from souvenirs.bitmaps import bitmap
from souvenirs.history.segments import Grouping, UsersByValue
from souvenirs.paths import NONE, OTHER, PathError, UserPath, resolve

if TYPE_CHECKING:
    from pyroaring import BitMap

MAX_VALUES = 20
NONE_LABEL, OTHER_LABEL = "none", "other"
# Field classes whose values cannot be labels
DOCUMENTS = {"JSONField", "ArrayField", "HStoreField"}


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Users by the value at the end of a path.

    values: the declared values.
    labels: the label value for each of them.
    """

    path: UserPath
    values: tuple[Any, ...]
    labels: tuple[str, ...]

    @property
    def names(self) -> dict[int, str]:
        """All labels, by the number of the value: see souvenirs.paths.number_of."""
        return {**dict(enumerate(self.labels)), NONE: NONE_LABEL, OTHER: OTHER_LABEL}

    @property
    def grouping(self) -> Grouping:
        """The same as a Grouping, to count users by these labels."""
        return Grouping(self.path.name, self.values, self.names)


def make_segment(entry: Any) -> Segment:
    """Build the segment that an entry of SOUVENIRS_METRICS_SEGMENTS declares.

    Raise ValueError if the entry is invalid, with the problem as a sentence without a full stop.
    """
    if isinstance(entry, str):
        entry = {"FIELD": entry}
    if not isinstance(entry, dict) or "FIELD" not in entry or entry.keys() - {"FIELD", "VALUES"}:
        raise ValueError(f"{entry!r} is neither a path nor a dictionary with FIELD and VALUES")
    path = joinable_path(entry["FIELD"])
    if path.field.is_relation or path.field.primary_key:
        raise ValueError(
            f"{path.name!r} ends at a key, and a label must not identify anybody: name another"
            " column of that model"
        )
    names_user = issubclass(get_user_model(), path.field.model)
    if path.is_unique and (names_user or not path.is_shared):
        raise ValueError(
            f"{path.name!r} is different for every user, and a label must not identify anybody"
        )
    if DOCUMENTS.intersection(each.__name__ for each in type(path.field).__mro__):
        raise ValueError(f"{path.name!r} holds documents or lists, and a label is a single value")
    values = declared_values(path.field, entry.get("VALUES"))
    labels = tuple(label_of(value) for value in values)
    counts = Counter([*labels, NONE_LABEL, OTHER_LABEL])
    if repeated := [label for label, count in counts.items() if count > 1]:
        raise ValueError(
            f"several of its values would have the label {repeated[0]!r} (null is {NONE_LABEL!r},"
            f" and undeclared values are {OTHER_LABEL!r})"
        )
    if "" in labels:
        raise ValueError("the empty string cannot be a label: leave it out to count it as 'other'")
    return Segment(path=path, values=values, labels=labels)


def present_members(entries: Mapping[str, Any], using: str) -> dict[tuple[str, str], BitMap]:
    """The LastSeen ids of the users who have each value now, by segment and label."""
    found: dict[tuple[str, str], BitMap] = {}
    for name, entry in entries.items():
        segment = make_segment(entry)
        members = UsersByValue(segment.grouping, using).members
        for label in (*segment.labels, NONE_LABEL, OTHER_LABEL):
            found[name, label] = members.get(label, bitmap())
    return found


def joinable_path(name: Any) -> UserPath:
    """Resolve a path. Raise ValueError if it does not exist or leaves the database of souvenirs."""
    try:
        path = resolve(name)
    except PathError as error:
        raise ValueError(f"{name!r} is not a path from the user model: {error}") from None
    if not path.is_joinable():
        databases = ", ".join(map(repr, sorted(path.databases())))
        raise ValueError(
            f"{name!r} is in {databases}, but last-seen times are in another database, so they"
            " cannot be joined"
        )
    return path


def account_path(name: Any) -> UserPath:
    """Resolve the path of SOUVENIRS_METRICS_ACCOUNTS. Raises ValueError like `make_segment`."""
    path = joinable_path(name)
    leads_to = path.field.related_model if path.field.is_relation else path.field.model
    is_user = leads_to is get_user_model() and (path.field.is_relation or path.field.primary_key)
    if is_user or (path.is_unique and not path.field.is_relation and not path.is_shared):
        raise ValueError(f"{name!r} is different for every user, so each user would be an account")
    return path


def declared_values(field: Any, given: Any) -> tuple[Any, ...]:
    """The given values, or else the field's choices, or True and False for a BooleanField.

    Raise ValueError if the field cannot have a value, or if there are too many values or none.
    """
    if given is None:
        given = [value for value, _ in field.flatchoices if value not in (None, "")]
        if not given and isinstance(field, models.BooleanField):
            given = [True, False]
        if not given:
            raise ValueError(f"{field} has no choices: list the VALUES to count separately")
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"VALUES must be a list, not {given!r}")
    if len(given) > MAX_VALUES:
        raise ValueError(
            f"it has {len(given)} values, but at most {MAX_VALUES} are allowed: list the VALUES to"
            f" count separately, and the rest will be {OTHER_LABEL!r}"
        )
    if not given:
        raise ValueError("VALUES is empty")
    return tuple(clean_value(field, value) for value in given)


def clean_value(field: Any, value: Any) -> Any:
    value = value.value if isinstance(value, Enum) else value
    if value is None:
        raise ValueError(f"VALUES contains None, which is always {NONE_LABEL!r}: leave it out")
    try:
        value = field.to_python(value)
        hash(value)
    except (ValidationError, ValueError, TypeError):
        raise ValueError(f"VALUES contains {value!r}, which {field} cannot have") from None
    return value


def label_of(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
