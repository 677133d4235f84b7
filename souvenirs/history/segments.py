"""Count users of past ranges by an attribute that they have now, such as their plan."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldError
from django.db.models import F

from souvenirs.bitmaps import bitmap, union
from souvenirs.history.plans import Users
from souvenirs.models import LastSeen
from souvenirs.paths import number_of
from souvenirs.users import has_constraint, key_of_row

if TYPE_CHECKING:
    from pyroaring import BitMap

DELETED = "deleted"
CHUNK = 10_000  # rows read at once
MAX_KEYS = 900  # in a query: SQLite may allow no more than 999 parameters


class Grouping(NamedTuple):
    """What users are counted by: labels for the values of a path.

    values: the values that have a label.
    labels: by the value's position; NONE is for null, OTHER for all other values.
    """

    path: str
    values: Sequence[Any]
    labels: Mapping[int, str]


By = str | Grouping  # a path alone is a grouping by its values


class UsersByValue:
    """The existing users by their value of a path, or by its label.

    It reads them once (in one query, or two if they are in a different database from souvenirs),
    and then counts any number of sets of users without further queries, except for users without an
    ordinal.
    """

    def __init__(self, by: By, using: str) -> None:
        self.using = using
        self.path = by.path if isinstance(by, Grouping) else by
        self.grouping = by if isinstance(by, Grouping) else None

    @cached_property
    def members(self) -> dict[Any, BitMap]:
        """The ordinals of the users with each value."""
        ordinals: dict[Any, array[int]] = defaultdict(lambda: array("I"))
        try:
            for ordinal, value in self._ordinals():
                ordinals[value].append(ordinal)
        except TypeError:  # a list, say, which cannot be a dictionary's key
            raise FieldError(
                f"{self.path!r} leads to documents or lists: users can only be counted by a single"
                " value"
            ) from None
        return {self._shown(value): bitmap(each) for value, each in ordinals.items()}

    @cached_property
    def existing(self) -> BitMap:
        return union([bitmap(), *self.members.values()])

    def count(self, users: Users) -> Counter[Any]:
        """Count these users by value, the most frequent first, and last, as DELETED, those who no
        longer exist. There are no zeros; None is a value.

        Raises FieldError if the user model has no such path.
        """
        counts: Counter[Any] = Counter()
        deleted = 0
        if users.members:
            for value, members in self.members.items():
                if number := members.intersection_cardinality(users.members):
                    counts[value] = number
            deleted = len(users.members) - self.existing.intersection_cardinality(users.members)
        if users.without_ordinal:
            found = self._values_of(users.without_ordinal)
            pairs = set(found)
            counts.update(self._shown(value) for _, value in pairs)
            deleted += len(users.without_ordinal) - len({key for key, _ in pairs})
        counts = Counter(dict(sorted(counts.items(), key=_by_size)))
        if deleted:
            counts[DELETED] += deleted
        return counts

    def _ordinals(self) -> Iterator[tuple[int, Any]]:
        rows = LastSeen.objects.using(self.using)
        if has_constraint():
            yield from self._with_values(rows, "id", f"user__{self.path}")
            return
        ordinals = dict(rows.values_list("user_id", "id").iterator(CHUNK))
        users = self._with_values(get_user_model()._base_manager, "pk", self.path)
        for key, value in users:
            if key in ordinals:
                yield ordinals[key], value

    def _values_of(self, raw_keys: Collection[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield the keys that still belong to users, each with its values."""
        users = get_user_model()._base_manager
        if has_constraint():
            users = users.using(self.using)
        keys = [key_of_row(key) for key in raw_keys]
        for at in range(0, len(keys), MAX_KEYS):
            found = users.filter(pk__in=keys[at : at + MAX_KEYS])
            yield from self._with_values(found, "pk", self.path)

    def _with_values(self, rows: Any, key: str, path: str) -> Iterator[tuple[Any, Any]]:
        """Yield pairs of the key and the value of the path, or the number of its label."""
        if self.grouping is None:
            return rows.values_list(key, path).iterator(CHUNK)  # type: ignore[no-any-return]
        # Under names that no model has as a field
        rows = rows.annotate(souvenirs_raw=F(path)).annotate(
            souvenirs_number=number_of("souvenirs_raw", self.grouping.values)
        )
        return rows.values_list(key, "souvenirs_number").iterator(CHUNK)  # type: ignore[no-any-return]

    def _shown(self, value: Any) -> Any:
        return value if self.grouping is None else self.grouping.labels[value]


def _by_size(item: tuple[Any, int]) -> tuple[int, str]:
    value, number = item
    return -number, str(value)
