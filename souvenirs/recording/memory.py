"""The users that this process recorded recently, so that most visits cost a single look-up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

from souvenirs import scopes
from souvenirs.periods import Interval

MAX_USERS = 50_000
MAX_MISSING = 10_000
MISSING_SECONDS = 60  # how long to remember that no user has a key

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memory(Generic[K, V]):
    """A dictionary that drops items not used recently, and never holds more than 2 * `size` items.

    It has two generations: a full young one becomes the old one, whose items move back when they
    are used. So the common case is one look-up in `young`, without bookkeeping. On a scoped site
    each scope has separate items.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.clear()

    def clear(self) -> None:
        self.young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def get(self, key: K) -> V | None:
        value = self.young.get(key)
        if value is None:
            value = self._old.pop(key, None)
            if value is not None:
                self[key] = value
        return value

    def forget(self, key: K) -> None:
        self._old.pop(key, None)
        self.young.pop(key, None)

    def __setitem__(self, key: K, value: V) -> None:
        if len(self.young) >= self.size:
            self.young, self._old = {}, self.young
        if not self.young:  # nothing can be looked up before
            self.young = scopes.make_dict()
        self.young[key] = value


class RecentlyRecorded(NamedTuple):
    """What this process has written for a user, in Unix seconds.

    From `start` until `end` there is nothing left to do: the row and the last-seen time are
    written. From `written_start` until `written_end` the row is written.
    """

    start: float
    end: float
    written_start: float
    written_end: float

    def has_row(self, t: float) -> bool:
        return self.written_start <= t < self.written_end


@lru_cache(maxsize=8)
def interned(*times: float) -> RecentlyRecorded:
    """Return the same object for all users of a minute: each costs only a dictionary item."""
    return RecentlyRecorded(*times)


hits = 0  # only increases: resetting it could lose hits that another thread adds meanwhile


class RecentMemory(Memory[K, RecentlyRecorded]):
    """The users, or sessions, that this process recorded recently."""

    def is_handled(self, key: Any, now: float) -> bool:
        """Return True, and count a hit, if nothing is left to do at `now`. This is the hot path."""
        global hits
        entry = self.young.get(key)
        if entry is not None and entry[0] <= now < entry[1]:
            hits += 1
            return True
        return False


recent_users: RecentMemory[Any] = RecentMemory(MAX_USERS)
# Digests of session cookies -> what was written; not who the users are
recent_sessions: RecentMemory[bytes] = RecentMemory(MAX_USERS)
# Keys that no user has -> until when to remember that; from stateless tokens of other sites, say
missing_users: Memory[Any, float] = Memory(MAX_MISSING)


def is_missing(user_pk: Any, now: float) -> bool:
    """Return True if no user had this key a moment ago."""
    until = missing_users.get(user_pk)
    return until is not None and now < until


def remember_missing(user_pk: Any) -> None:
    """Remember that no user has this key."""
    recent_users.forget(user_pk)
    missing_users[user_pk] = time.time() + MISSING_SECONDS


def note_row(user_pk: Any, slot: Interval) -> None:
    """Remember that the user's souvenir of this slot is written. Only the current slot counts."""
    known = recent_users.young.get(user_pk)
    if (
        known is not None
        and slot.start <= known.start < slot.end
        and not known.has_row(known.start)
    ):
        recent_users[user_pk] = interned(known.start, known.end, slot.start, slot.end)


def forget_user(user_pk: Any) -> None:
    """Forget this key: a user with it was created or deleted."""
    for key in {user_pk, str(user_pk)}:  # tokens contain it as text
        recent_users.forget(key)
        missing_users.forget(key)


_flushed = 0  # how many of the hits
_lock = threading.Lock()


def drain_hits() -> int:
    """Return how many visits process memory has answered since the last call."""
    global _flushed
    with _lock:
        new = hits - _flushed
        _flushed += new
    return new


def clear() -> None:
    """Forget all users, as a restart of the process does."""
    global _flushed
    recent_users.clear()
    recent_sessions.clear()
    missing_users.clear()
    _flushed = hits


def _after_fork() -> None:
    """Start over: the hits so far belong to the parent, and so does the lock."""
    global _flushed, _lock
    _flushed = hits
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
