"""Refill lost shards from the LastSeen table, and keep shards and table consistent."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Sequence
from typing import Any
from uuid import uuid4

from django.db import router

from souvenirs.databases import shown_until, to_column
from souvenirs.lastseen import future, table
from souvenirs.lastseen.members import existing_of, member_of
from souvenirs.lastseen.pending import Move
from souvenirs.lastseen.shards import Shards
from souvenirs.models import LastSeen

BATCH_SIZE = 5_000  # users
LOCK_SECONDS = 60  # per batch

Rows = Sequence[tuple[int, Any, int]]  # (pk, user, seen) of LastSeen


def resync(shards: Shards, *, whole_too: bool = False) -> int | None:
    """Refill the shards that are not whole. Return how many there were; None if another process is
    refilling them.

    whole_too: also copy to the other shards times that may be only in the table.

    Concurrent updates are not lost, because times only move forward. Users who are deleted
    meanwhile may remain: see Reconciler.
    """
    if not shards.lock(LOCK_SECONDS):
        return None
    try:
        token = uuid4().hex
        found = shards.begin_resync(token)
        for key in found:  # an old snapshot of Redis may contain users who were deleted after it
            cursor = remove_deleted(shards, key, 0, BATCH_SIZE)
            while cursor:
                shards.keep_lock(LOCK_SECONDS)
                cursor = remove_deleted(shards, key, cursor, BATCH_SIZE)
        newest = 0
        for batch in _batches() if found or whole_too else ():
            shards.keep_lock(LOCK_SECONDS)
            copy(shards, batch, shards.keys if whole_too else found)
            newest = max(newest, *(seen for _, _, seen in batch))
        shards.finish_resync(token, found, table.exact_from(newest or None, time.time()))
        return len(found)
    finally:
        shards.unlock()


class Reconciler:
    """Go through the shards and the table repeatedly, and correct differences: remove members that
    are not users, and add users whose time a process could not write."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self._number = self._cursor = 0
        self._last = 0
        self._is_swept = self._is_copied = False

    def step(self, users: int) -> bool:
        """Check about `users` users. Return True after a full round."""
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
    """Move the times of users in these shards forward to those in the table."""
    moves = {member_of(user_pk): Move(seen) for _, user_pk, seen in rows}
    of_keys = {member: move for member, move in moves.items() if shards.key_of(member) in keys}
    shards.write(of_keys, table.latest())


def remove_deleted(shards: Shards, key: str, cursor: int, users: int) -> int:
    """Remove members that are not users, checking about `users` members of a shard. Either their
    deletion was not noticed, or another process wrote them again after it. Return the next cursor,
    0 at the end."""
    cursor, members = shards.scan(key, cursor, users)
    existing = existing_of(members)
    gone = {member: Move(None) for member in members if member not in existing}
    shards.write(gone, table.latest())
    return cursor


def set_back(shards: Shards, users: int) -> bool:
    """Reset times in the future to those in the table; remove users without one there. Return False
    if none are left, except for those that are in the future in the table too."""
    latest = future.latest()
    members = shards.seen_after(latest, users)
    future.warn(len(members))
    moves = {}
    for member, seen in {**dict.fromkeys(members), **existing_of(members)}.items():
        known = None if seen is None else table.seconds(seen)
        if known is None or known <= latest:
            moves[member] = Move(known, latest=latest)
    shards.write(moves, latest)
    return bool(moves)


def _batches() -> Iterator[Rows]:
    """Yield the whole table in batches."""
    last = 0
    while batch := _rows(last, BATCH_SIZE):
        yield batch
        last = batch[-1][0]


def _rows(after: int, limit: int) -> Rows:
    """Return the table's next rows, except those with a time from a wrong clock."""
    using = router.db_for_write(LastSeen)
    until = to_column(shown_until(table.latest(), using), using)
    rows = LastSeen.objects.using(using).filter(seen__lte=until)
    found = rows.filter(pk__gt=after).order_by("pk").values_list("pk", "user_id", "seen")[:limit]
    return [(pk, user_pk, table.seconds(seen)) for pk, user_pk, seen in found]
