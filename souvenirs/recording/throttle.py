"""The rate limit among processes: a claim on a user's slot, in the cache that they share.

A slot is claimed, written, and confirmed once the transaction has committed. A claim that is not
confirmed ends by itself, so a crash or a rollback silences nobody for longer than CLAIM_SECONDS.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from django.core.cache import BaseCache, caches
from django.core.cache.backends.db import BaseDatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.signals import setting_changed

from souvenirs import scopes
from souvenirs.breaker import Breaker
from souvenirs.conf import conf
from souvenirs.periods import Interval
from souvenirs.recording import memory

CLAIM_SECONDS = 60
# The cache holds this for a slot that is written, else the time its claim ends at. Not 0: caches of
# django-prometheus take what is false for nothing
CONFIRMED = -1

T = TypeVar("T")


class Claim(NamedTuple):
    """The answer to a claim. If not `granted`, the slot is taken for certain up to `until`."""

    key: str
    granted: bool
    until: float


def try_claim(cache: BaseCache, key: str) -> float | None:
    """Put a claim into the cache. Return None if it is granted, else what the cache holds."""
    for _ in range(2):  # a claim that is there for `add` may have ended before `get`
        ends = time.time() + CLAIM_SECONDS
        if cache.add(key, ends, timeout=CLAIM_SECONDS):
            return None
        held: float | None = cache.get(key)
        if held is not None:
            return held
    # Some clients hide that their server is down, as django-redis does with IGNORE_EXCEPTIONS
    raise ConnectionError(f"{cache!r} keeps nothing, and raises nothing")


def is_left_alone(cache: BaseCache) -> bool:
    """Whether the rate limit does without this cache, and each process limits alone.

    A cache that is not shared knows nothing that process memory does not, and our keys would push
    the site's own entries out of it. One in a database may make a request wait for as long as
    somebody else's transaction.
    """
    return isinstance(cache, (LocMemCache, DummyCache, BaseDatabaseCache))


class Throttle:
    def __init__(self) -> None:
        self.breaker = Breaker("The rate limit's cache")
        # What takes the shared cache's place where there is none, or while it is down
        self._local = LocMemCache("souvenirs.throttle", {"max_entries": memory.MAX_USERS})

    def clear(self) -> None:
        """Forget everybody, as a restart of the process does (but not the shared cache)."""
        memory.clear()
        self._local.clear()
        self.breaker.reset()

    def after_fork(self) -> None:
        self._local._lock = threading.Lock()  # type: ignore[attr-defined]  # a parent's may be held

    def claim(self, user_pk: Any, slot: Interval, limit: float) -> Claim:
        """Ask for the right to write the user's row of this slot: exactly one caller gets it."""
        key = self._key(user_pk, slot, limit)
        taken_until = self._ask(partial(try_claim, key=key))
        if taken_until is None:
            return Claim(key, True, slot.end)
        return Claim(key, False, slot.end if taken_until == CONFIRMED else taken_until)

    def confirm(self, claim: Claim, slot: Interval) -> None:
        """Keep a slot taken to its end: its row is committed."""
        # A slot in the past has no end to wait for. It is kept for its length, against repetition.
        timeout = max(slot.end - time.time(), slot.end - slot.start, CLAIM_SECONDS)
        self._ask(lambda cache: cache.set(claim.key, CONFIRMED, timeout=timeout))

    def release(self, claim: Claim) -> None:
        """Give a slot back whose row could not be written."""
        self._ask(lambda cache: cache.delete(claim.key))

    def _ask(self, question: Callable[[BaseCache], T]) -> T:
        """The answer of the shared cache, or of what takes its place while it fails.

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
        return self._local if is_left_alone(cache) else cache

    def _key(self, user_pk: Any, slot: Interval, limit: float) -> str:
        if scopes.is_scoped():
            user_pk = scopes.current(), user_pk
        # Any string may be a primary key: not every one may be in a cache key, nor should it be
        # readable there.
        if not isinstance(user_pk, (int, UUID)):
            user_pk = blake2b(str(user_pk).encode(), digest_size=16).hexdigest()
        return f"{conf.cache_prefix}{user_pk}.{limit!r}.{slot.start!r}"


def _on_setting_changed(setting: str, **kwargs: Any) -> None:
    if setting.startswith("SOUVENIRS_") or setting in ("CACHES", "TIME_ZONE", "USE_TZ"):
        throttle.clear()


throttle = Throttle()
setting_changed.connect(_on_setting_changed)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=throttle.after_fork)
