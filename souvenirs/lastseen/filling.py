"""The table of LastSeen -> shards that were lost; and what else keeps the two alike."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import QuerySet

from souvenirs.conf import conf
from souvenirs.lastseen.shards import Move, Shards
from souvenirs.models import LastSeen
from souvenirs.periods import slot_containing

BATCH = 5_000  # users
LOCK_SECONDS = 60  # for a batch


def member_of(user_pk: Any) -> bytes:
    """The user with this key, in a shard."""
    return str(_user_field().to_python(user_pk)).encode()


def slot_start(t: float) -> float:
    """Of the rate limit's slot that holds `t`. The table has a time of each slot in which a user
    was seen: so from a slot's start on, it counts everybody."""
    if not conf.ratelimit_seconds:
        return t
    return slot_containing(t, conf.ratelimit_seconds, conf.zone).start


def exact_from(newest: int | None, now: float) -> int:
    """From when on the table's times are as good as a store's, if this is its newest one: a time
    in the table is up to a slot behind, but not beyond the slot's end."""
    if newest is None:
        return 0
    if not conf.ratelimit_seconds:
        return newest
    slot = slot_containing(newest, conf.ratelimit_seconds, conf.zone)
    return min(math.floor(now) + 1, math.ceil(slot.end))


def fill(shards: Shards, *, all_of_them: bool = False) -> int | None:
    """Fills the shards that are not whole, and returns how many these were; None if somebody else
    does it. `all_of_them`: also those that are, with what may be in the table only.

    Who is written meanwhile is written, for times only go forward. Users who are deleted meanwhile
    may stay: see `Round`.
    """
    if not shards.lock(LOCK_SECONDS):
        return None
    try:
        token = uuid4().hex
        found = shards.begin_filling(token)
        for key in found:  # of an old snapshot, those who were deleted after it
            cursor = sweep(shards, key, 0, BATCH)
            while cursor:
                shards.keep_lock(LOCK_SECONDS)
                cursor = sweep(shards, key, cursor, BATCH)
        newest = 0
        for batch in _batches() if found or all_of_them else ():
            shards.keep_lock(LOCK_SECONDS)
            copy(shards, batch, shards.keys if all_of_them else found)
            newest = max(newest, *(seen for _, _, seen in batch))
        shards.finish_filling(token, found, exact_from(newest or None, time.time()))
        return len(found)
    finally:
        shards.unlock()


Rows = Sequence[tuple[int, Any, int]]


def _rows(after: int, most: int) -> Rows:
    """The next (pk, user, seen) of the table; not times that a wrong clock made."""
    rows = _table().filter(seen__lte=latest(), pk__gt=after).order_by("pk")
    return list(rows.values_list("pk", "user_id", "seen")[:most])


def _batches() -> Iterator[Rows]:
    """All of them."""
    last = 0
    while batch := _rows(last, BATCH):
        yield batch
        last = batch[-1][0]


def latest() -> float:
    """The latest time, in unix seconds, that may be right."""
    return time.time() + conf.last_seen_seconds


def copy(shards: Shards, rows: Rows, keys: Container[str]) -> None:
    """Moves users of these shards forward to the table's times."""
    moves = {member_of(user_pk): Move(seen) for _, user_pk, seen in rows}
    of_keys = {member: move for member, move in moves.items() if shards.key_of(member) in keys}
    shards.write(of_keys, latest())


def sweep(shards: Shards, key: str, cursor: int, users: int) -> int:
    """Removes about so many members who are no users from a shard: whose deletion went past us, or
    who were written again by somebody who did not know of it yet. Returns the next cursor, 0 at
    the end."""
    cursor, members = shards.scan(key, cursor, users)
    existing = existing_of(members)
    gone = {member: Move(None) for member in members if member not in existing}
    shards.write(gone, latest())
    return cursor


class Round:
    """Goes round the shards and the table, and corrects what is in one only: members who are no
    users, and users whose time a process had no chance to write."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self._number = self._cursor = 0
        self._last = 0
        self._is_swept = self._is_copied = False

    def step(self, users: int) -> bool:
        """Looks at about so many. True once it is round."""
        key = self.shards.keys[self._number]
        self._cursor = sweep(self.shards, key, self._cursor, users)
        if self._cursor == 0:
            self._number = (self._number + 1) % len(self.shards.keys)
            self._is_swept |= self._number == 0
        rows = _rows(self._last, users)
        copy(self.shards, rows, self.shards.keys)
        self._last = rows[-1][0] if rows else 0
        self._is_copied |= not rows
        return self._is_swept and self._is_copied


def existing_of(members: Collection[bytes]) -> set[bytes]:
    """Those of the members who are users with a souvenir."""
    field = _user_field()
    keys = []
    for member in members:
        with suppress(ValueError, ValidationError):  # of users whose keys once were of another type
            keys.append(field.to_python(member.decode()))
    found: set[bytes] = set()
    for at in range(0, len(keys), 500):
        rows = _table().filter(user_id__in=keys[at : at + 500])
        found.update(map(member_of, rows.values_list("user_id", flat=True)))
    return found


def _table() -> QuerySet[LastSeen]:
    rows: QuerySet[LastSeen] = LastSeen.objects.using(router.db_for_write(LastSeen))
    return rows


def _user_field() -> Any:
    user: Any = LastSeen._meta.get_field("user")
    return user.target_field
