"""The table of LastSeen -> shards that have been lost; and members who are no users any more."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import uuid4

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


def exact_from(newest: int | None, now: float) -> float:
    """From when on the table's times are as good as a store's, if this is its newest one: a time
    in the table is up to a slot behind, but not beyond the slot's end."""
    if newest is None:
        return 0
    if not conf.ratelimit_seconds:
        return newest
    return min(now, slot_containing(newest, conf.ratelimit_seconds, conf.zone).end)


def fill(shards: Shards, *, all_of_them: bool = False) -> int | None:
    """Fills the shards that are not whole, and returns how many these were; None if somebody else
    does it. `all_of_them`: also those that are, with what may be in the table only.

    Who is written meanwhile is written, for times only go forward. Users who are deleted meanwhile
    may stay: see `Sweep`.
    """
    if not shards.lock(LOCK_SECONDS):
        return None
    try:
        token = uuid4().hex
        found = shards.begin_filling(token)
        newest = 0
        for batch in _batches() if found or all_of_them else ():
            shards.keep_lock(LOCK_SECONDS)
            times = {member_of(user_pk): seen for user_pk, seen in batch}
            shards.write(
                {
                    member: Move(seen)
                    for member, seen in times.items()
                    if all_of_them or shards.key_of(member) in found
                }
            )
            newest = max(newest, *times.values())
        shards.finish_filling(token, found, exact_from(newest or None, time.time()))
        return len(found)
    finally:
        shards.unlock()


def _batches() -> Iterator[list[tuple[Any, int]]]:
    """(user, seen) of the whole table; not times that a wrong clock made."""
    rows = _table().filter(seen__lte=time.time() + conf.last_seen_seconds).order_by("pk")
    last = 0
    while batch := list(rows.filter(pk__gt=last).values_list("pk", "user_id", "seen")[:BATCH]):
        yield [(user_pk, seen) for _, user_pk, seen in batch]
        last = batch[-1][0]


class Sweep:
    """Goes round the shards, and removes members who are no users: whose deletion went past us, or
    who were written again by somebody who did not know of it yet."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self._number = self._cursor = 0

    def step(self, users: int) -> bool:
        """Looks at about so many users. True at the end of the round."""
        key = self.shards.keys[self._number]
        self._cursor, members = self.shards.scan(key, self._cursor, users)
        existing = set(_existing(members))
        self.shards.write({member: Move(None) for member in members if member not in existing})
        if self._cursor == 0:
            self._number = (self._number + 1) % len(self.shards.keys)
        return self._cursor == 0 and self._number == 0


def _existing(members: Iterable[bytes]) -> Iterator[bytes]:
    field = _user_field()
    keys = [field.to_python(member.decode()) for member in members]
    for at in range(0, len(keys), 500):
        found = _table().filter(user_id__in=keys[at : at + 500]).values_list("user_id", flat=True)
        yield from map(member_of, found)


def _table() -> QuerySet[LastSeen]:
    rows: QuerySet[LastSeen] = LastSeen.objects.using(router.db_for_write(LastSeen))
    return rows


def _user_field() -> Any:
    user: Any = LastSeen._meta.get_field("user")
    return user.target_field
