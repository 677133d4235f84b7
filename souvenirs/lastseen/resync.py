"""The LastSeen table -> shards that were lost; and what else keeps the two alike."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Sequence
from typing import Any
from uuid import uuid4

from django.db import router

from souvenirs.lastseen import table
from souvenirs.lastseen.members import existing_of, member_of
from souvenirs.lastseen.pending import Move
from souvenirs.lastseen.shards import Shards
from souvenirs.models import LastSeen

BATCH_SIZE = 5_000  # users
LOCK_SECONDS = 60  # for a batch

Rows = Sequence[tuple[int, Any, int]]  # (pk, user, seen) of LastSeen


def resync(shards: Shards, *, whole_too: bool = False) -> int | None:
    """Fill the shards that are not whole. Return how many these were, None if another process is at
    it.

    whole_too: also the others, with what may be in the table only.

    Users who are written meanwhile are written, for times only go forward. Users who are deleted
    meanwhile may stay: see Reconciler.
    """
    if not shards.lock(LOCK_SECONDS):
        return None
    try:
        token = uuid4().hex
        found = shards.begin_filling(token)
        for key in found:  # of an old snapshot of Redis: users who were deleted after it
            cursor = remove_deleted(shards, key, 0, BATCH_SIZE)
            while cursor:
                shards.keep_lock(LOCK_SECONDS)
                cursor = remove_deleted(shards, key, cursor, BATCH_SIZE)
        newest = 0
        for batch in _batches() if found or whole_too else ():
            shards.keep_lock(LOCK_SECONDS)
            copy(shards, batch, shards.keys if whole_too else found)
            newest = max(newest, *(seen for _, _, seen in batch))
        shards.finish_filling(token, found, table.exact_from(newest or None, time.time()))
        return len(found)
    finally:
        shards.unlock()


class Reconciler:
    """Go round the shards and the table, and correct what is in one only: members who are no users,
    and users whose time a process had no chance to write."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self._number = self._cursor = 0
        self._last = 0
        self._is_swept = self._is_copied = False

    def step(self, users: int) -> bool:
        """Look at about so many. Return True after a whole round."""
        key = self.shards.keys[self._number]
        self._cursor = remove_deleted(self.shards, key, self._cursor, users)
        if self._cursor == 0:
            self._number = (self._number + 1) % len(self.shards.keys)
            self._is_swept |= self._number == 0
        rows = _rows(self._last, users)
        copy(self.shards, rows, self.shards.keys)
        self._last = rows[-1][0] if rows else 0
        self._is_copied |= not rows
        return self._is_swept and self._is_copied


def copy(shards: Shards, rows: Rows, keys: Container[str]) -> None:
    """Move users of these shards forward to the table's times."""
    moves = {member_of(user_pk): Move(seen) for _, user_pk, seen in rows}
    of_keys = {member: move for member, move in moves.items() if shards.key_of(member) in keys}
    shards.write(of_keys, table.latest())


def remove_deleted(shards: Shards, key: str, cursor: int, users: int) -> int:
    """Remove members who are no users, about so many of a shard at a time: their deletion went past
    us, or another process that did not know of it wrote them again. Return the next cursor, 0 at
    the end."""
    cursor, members = shards.scan(key, cursor, users)
    existing = existing_of(members)
    gone = {member: Move(None) for member in members if member not in existing}
    shards.write(gone, table.latest())
    return cursor


def _batches() -> Iterator[Rows]:
    """The whole table."""
    last = 0
    while batch := _rows(last, BATCH_SIZE):
        yield batch
        last = batch[-1][0]


def _rows(after: int, limit: int) -> Rows:
    """The table's next rows, except times that a wrong clock made."""
    rows = LastSeen.objects.using(router.db_for_write(LastSeen))
    rows = rows.filter(seen__lte=table.latest(), pk__gt=after).order_by("pk")
    return list(rows.values_list("pk", "user_id", "seen")[:limit])
