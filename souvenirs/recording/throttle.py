"""Who may be recorded now: process memory first, then the cache that processes share.

A slot is claimed, written, and confirmed once the transaction has committed. A claim that is not
confirmed ends by itself, so a crash or a rollback silences nobody for longer than CLAIM_SECONDS.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable
from functools import partial
from hashlib import blake2b
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from django.core.cache import BaseCache, caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.signals import setting_changed

from souvenirs.breaker import Breaker
from souvenirs.conf import conf
from souvenirs.periods import Interval

CLAIM_SECONDS = 60
# The cache holds this for a slot that is written, else the time its claim ends at. Not 0: caches of
# django-prometheus take what is false for nothing
CONFIRMED = -1
MAX_USERS = 50_000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")


class Memory(Generic[K, V]):
    """A dictionary that forgets what was not used lately, and never holds over 2 * `size` items.

    Two generations: a full young one becomes the old one, whose items move back when they are
    asked for. So the common case is one look-up in `young`, with no bookkeeping.
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

    def __setitem__(self, key: K, value: V) -> None:
        if len(self.young) >= self.size:
            self.young, self._old = {}, self.young
        self.young[key] = value


class Handled(NamedTuple):
    """What a process has done for a user. Unix seconds; one object serves all users of a minute.

    Until `end` nothing is left to do: row and last-seen are written. The row is to `written_end`.
    """

    start: float
    end: float
    written_start: float
    written_end: float


class Claim(NamedTuple):
    """The answer to a claim. If not `granted`, the slot is taken for certain up to `until`."""

    key: str
    granted: bool
    until: float


def take(cache: BaseCache, key: str) -> float | None:
    """Puts a claim into the cache. None: it is granted; else what the cache holds instead."""
    for _ in range(2):  # a claim that is there for `add` may have ended before `get`
        ends = time.time() + CLAIM_SECONDS
        if cache.add(key, ends, timeout=CLAIM_SECONDS):
            return None
        held: float | None = cache.get(key)
        if held is not None:
            return held
    # Some clients hide that their server is down, as django-redis does if it is told to
    raise ConnectionError(f"{cache!r} keeps nothing, and raises nothing")


class Throttle:
    def __init__(self) -> None:
        self.handled: Memory[Any, Handled] = Memory(MAX_USERS)
        self.breaker = Breaker("The rate limit's cache")
        self.hits = 0  # only grows: setting it back would lose what another thread adds meanwhile
        self._told = 0
        self._lock = threading.Lock()
        # What takes the shared cache's place where there is none, or while it is down
        self._local = LocMemCache("souvenirs.throttle", {"max_entries": MAX_USERS})

    def clear(self) -> None:
        """Forgets everybody, as a restart of the process does (for tests; not the shared cache)."""
        self.handled.clear()
        self._local.clear()
        self.breaker.reset()
        self._told = self.hits

    # Visits that process memory answers

    def is_handled(self, user_pk: Any, now: float) -> bool:
        """Whether nothing is left to do for the user at `now`. This is the hot path."""
        entry = self.handled.young.get(user_pk)
        if entry is not None and entry[0] <= now < entry[1]:
            self.hits += 1
            return True
        return False

    def take_hits(self) -> int:
        """How many visits process memory has answered since the last call."""
        with self._lock:
            hits = self.hits - self._told
            self._told += hits
        return hits

    def after_fork(self) -> None:
        """Makes a child process independent: its parent tells its own hits, and holds its locks."""
        self._told = self.hits
        self._lock = threading.Lock()
        self._local._lock = threading.Lock()  # type: ignore[attr-defined]

    # Claim, confirm, release

    def claim(self, user_pk: Any, slot: Interval, limit: float) -> Claim:
        """Asks for the right to write the user's row of this slot: exactly one caller gets it."""
        key = self._key(user_pk, slot, limit)
        taken_until = self._ask(partial(take, key=key))
        if taken_until is None:
            return Claim(key, True, slot.end)
        return Claim(key, False, slot.end if taken_until == CONFIRMED else taken_until)

    def confirm(self, claim: Claim, slot: Interval) -> None:
        """Keeps a slot taken to its end: its row is committed."""
        # A slot in the past has no end to wait for. It is kept for its length, against repetition.
        timeout = max(slot.end - time.time(), slot.end - slot.start, CLAIM_SECONDS)
        self._ask(lambda cache: cache.set(claim.key, CONFIRMED, timeout=timeout))

    def release(self, claim: Claim) -> None:
        """Gives a slot back whose row could not be written."""
        self._ask(lambda cache: cache.delete(claim.key))

    def _ask(self, question: Callable[[BaseCache], T]) -> T:
        """What the shared cache answers, or while that fails what takes its place.

        A claim that is lost with the cache ends by itself; one that is not confirmed there may
        bring a second row, which does no harm.
        """
        cache = self._cache()
        if cache is self._local:
            return question(cache)
        try:
            answer = question(cache)
        except Exception as error:
            self.breaker.failure(error)
            return question(self._local)
        self.breaker.success()
        return answer

    def _cache(self) -> BaseCache:
        if not self.breaker.allows():
            return self._local
        cache = caches[conf.cache_name]
        # A cache that is not shared has nothing to tell that process memory does not know, and
        # our keys would push the site's own entries out of it.
        if isinstance(cache, (LocMemCache, DummyCache)):
            return self._local
        return cache

    def _key(self, user_pk: Any, slot: Interval, limit: float) -> str:
        # Any string may be a primary key: not every one may be in a cache key, nor should it be
        # readable there.
        if not isinstance(user_pk, (int, UUID)):
            user_pk = blake2b(str(user_pk).encode(), digest_size=16).hexdigest()
        return f"{conf.cache_prefix}{user_pk}.{limit!r}.{slot.start!r}"


def clear_on_setting_changed(setting: str, **kwargs: Any) -> None:
    if setting.startswith("SOUVENIRS_") or setting in ("CACHES", "TIME_ZONE", "USE_TZ"):
        throttle.clear()


throttle = Throttle()
setting_changed.connect(clear_on_setting_changed)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=throttle.after_fork)
