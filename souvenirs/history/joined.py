"""Find the users who joined before the record began: their first activity is not known."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from django.contrib.auth import get_user_model
from django.db import router
from django.db.models import F, IntegerField, QuerySet, Sum, Value
from django.db.models.functions import Cast

from souvenirs import timestamps
from souvenirs.bitmaps import bitmap
from souvenirs.databases import as_in_list
from souvenirs.lastseen.base import ReadContext
from souvenirs.models import LastSeen
from souvenirs.users import has_constraint, has_date_joined, key_of_row

if TYPE_CHECKING:
    from pyroaring import BitMap

MAX_ORDINALS = 3_000  # to look up by id; if there are more, all users are read
BATCH_SIZE = 500  # users in a statement


class JoinedBefore:
    """Finds out which users joined before an instant, and remembers the answers.

    They are kept until users are deleted: when an account joined does not change, and reading all
    accounts takes longer than the rest of a sweep. Thread-safe: what is kept is replaced in one
    step, never modified.
    """

    def __init__(self) -> None:
        self._kept: tuple[Hashable, BitMap, BitMap] = (None, bitmap(), bitmap())

    def among(
        self, users: BitMap, t: float, deletions: int, using: str, read_context: ReadContext
    ) -> BitMap | None:
        """Return the LastSeen ids of those of `users` (and possibly of others) who exist and joined
        before `t` (Unix seconds). Return None, without a query, if the user model has no datetime
        column `date_joined`. Two queries at most.

        deletions: the number of transactions that have deleted users.
        """
        if not has_date_joined():
            return None
        key, asked, joined = self._kept
        if key != (t, deletions, using):
            asked, joined = bitmap(), bitmap()
        if new := users - asked:
            rows = LastSeen.objects.using(using).order_by()
            if len(new) <= MAX_ORDINALS:
                rows = rows.filter(pk__in=as_in_list(new, using))
            joined = joined | _joined(rows, t, read_context)
            self._kept = (t, deletions, using), asked | users, joined
        return joined


def _joined(rows: QuerySet[LastSeen], t: float, read_context: ReadContext) -> BitMap:
    when = timestamps.to_datetime(t)
    if has_constraint():
        return _packed(rows.filter(user__date_joined__lt=when))
    ordinals = {user_pk: pk for pk, user_pk in rows.values_list("pk", "user_id").iterator()}
    keys = _read_users({"date_joined__lt": when}, read_context)
    return bitmap(ordinals[user_pk] for user_pk in keys if user_pk in ordinals)


def _packed(rows: QuerySet[LastSeen]) -> BitMap:
    """The ids of these rows. The database packs them, 16 in a number: that is less to send, and it
    needs no cursor on the server, which would keep PostgreSQL from running the join in parallel."""
    pk, one = F("pk"), Cast(Value(1), IntegerField())
    bit = one.bitleftshift(pk.bitand(15))  # type: ignore[arg-type]  # the stubs take int only
    groups = rows.annotate(high=pk.bitrightshift(4)).values_list("high").annotate(bits=Sum(bit))
    return bitmap(high << 4 | low for high, bits in groups for low in _bits_of(int(bits)))


@cache
def _bits_of(number: int) -> tuple[int, ...]:
    """Return which of the 16 bits of the number are 1."""
    return tuple(bit for bit in range(16) if number >> bit & 1)


def keys_joined_before(t: float, keys: Iterable[Any], read_context: ReadContext) -> list[Any]:
    """Return those keys (as the database returns them) whose users joined before `t`. One query per
    BATCH_SIZE keys."""
    if not has_date_joined():
        return []
    raw = {key_of_row(key): key for key in keys}
    pks, found = list(raw), []
    for at in range(0, len(pks), BATCH_SIZE):
        joined = {"pk__in": pks[at : at + BATCH_SIZE], "date_joined__lt": timestamps.to_datetime(t)}
        found += [raw[pk] for pk in _read_users(joined, read_context)]
    return found


def _read_users(conditions: Mapping[str, Any], read_context: ReadContext) -> list[Any]:
    """Return the keys of the users that meet the conditions."""
    model: Any = get_user_model()
    using = router.db_for_read(model)
    with read_context(using):
        rows = model._base_manager.using(using).filter(**conditions)
        return list(rows.values_list("pk", flat=True))
