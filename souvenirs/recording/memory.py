"""Whom this process has recorded lately, so that most visits cost one look-up."""

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
MISSING_SECONDS = 60  # how long a key that no user has is remembered as such

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memory(Generic[K, V]):
    """A dictionary that forgets what was not used lately, and never holds over 2 * `size` items.

    Two generations: a full young one becomes the old one, whose items move back when they are
    asked for. So the common case is one look-up in `young`, with no bookkeeping. On a scoped site
    each scope has its own items.
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
    """What this process has done for a user. Unix seconds.

    From `start` until `end` nothing is left to do: row and last-seen are written. From
    `written_start` until `written_end` the row is.
    """

    start: float
    end: float
    written_start: float
    written_end: float

    def has_row(self, t: float) -> bool:
        return self.written_start <= t < self.written_end


@lru_cache(maxsize=8)
def interned(*times: float) -> RecentlyRecorded:
    """The same object for all users of a minute: each costs a dictionary's item only."""
    return RecentlyRecorded(*times)


hits = 0  # only grows: setting it back would lose what another thread adds meanwhile


class RecentMemory(Memory[K, RecentlyRecorded]):
    """The users, or sessions, that this process has recorded lately."""

    def is_handled(self, key: Any, now: float) -> bool:
        """Return True, and count a hit, if nothing is left to do at `now`. This is the hot path."""
        global hits
        entry = self.young.get(key)
        if entry is not None and entry[0] <= now < entry[1]:
            hits += 1
            return True
        return False


recent_users: RecentMemory[Any] = RecentMemory(MAX_USERS)
# By digests of session cookies: to what was done, not to whose they are
recent_sessions: RecentMemory[bytes] = RecentMemory(MAX_USERS)
# Keys that no user has, until when: those of stateless tokens whose users are elsewhere, say
missing_users: Memory[Any, float] = Memory(MAX_MISSING)


def is_missing(user_pk: Any, now: float) -> bool:
    """Return True if no user had this key a moment ago."""
    until = missing_users.get(user_pk)
    return until is not None and now < until


def remember_missing(user_pk: Any) -> None:
    """No user has this key."""
    recent_users.forget(user_pk)
    missing_users[user_pk] = time.time() + MISSING_SECONDS


def note_row(user_pk: Any, slot: Interval) -> None:
    """The user's souvenir of this slot is written, which is known of the present slot only."""
    known = recent_users.young.get(user_pk)
    if (
        known is not None
        and slot.start <= known.start < slot.end
        and not known.has_row(known.start)
    ):
        recent_users[user_pk] = interned(known.start, known.end, slot.start, slot.end)


def forget_user(user_pk: Any) -> None:
    """Remember nothing of this key: a user got it, or has lost it."""
    for key in {user_pk, str(user_pk)}:  # tokens have it as text
        recent_users.forget(key)
        missing_users.forget(key)


_flushed = 0  # of the hits
_lock = threading.Lock()


def drain_hits() -> int:
    """How many visits process memory has answered since the last call."""
    global _flushed
    with _lock:
        new = hits - _flushed
        _flushed += new
    return new


def clear() -> None:
    """Forget everybody, as a restart of the process does."""
    global _flushed
    recent_users.clear()
    recent_sessions.clear()
    missing_users.clear()
    _flushed = hits


def _after_fork() -> None:
    """The hits so far are the parent's, and so is the lock."""
    global _flushed, _lock
    _flushed = hits
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
