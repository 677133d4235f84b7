"""The rate limit across processes: a claim on a user's slot, in the cache that they share.

A slot is claimed, written, and confirmed once the transaction has committed. A claim that is not
confirmed expires, so a crash or a rollback stops a user from being recorded for at most
CLAIM_SECONDS.
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
# The cache's value for a slot that is written; otherwise it is the time when the claim expires. Not
# 0: django-prometheus's caches treat false values as missing
CONFIRMED = -1

T = TypeVar("T")


class Claim(NamedTuple):
    """The result of a claim. If not `granted`, the slot is certainly taken up to `until`."""

    key: str
    granted: bool
    until: float


def try_claim(cache: BaseCache, key: str) -> float | None:
    """Add a claim to the cache. Return None if it is granted, otherwise the cache's value."""
    for _ in range(2):  # a claim that makes `add` fail may expire before `get`
        ends = time.time() + CLAIM_SECONDS
        if cache.add(key, ends, timeout=CLAIM_SECONDS):
            return None
        held: float | None = cache.get(key)
        if held is not None:
            return held
    # Some clients hide that their server is down, such as django-redis with IGNORE_EXCEPTIONS
    raise ConnectionError(f"{cache!r} does not store values, and raises no error")


def is_bypassed(cache: BaseCache) -> bool:
    """Return True if the rate limit does not use this cache: each process then limits separately.

    A cache that is not shared has nothing that process memory does not have, and our keys would
    evict the site's entries from it. A cache in a database may make a request wait for as long as
    another transaction lasts.
    """
    return isinstance(cache, (LocMemCache, DummyCache, BaseDatabaseCache))


class Throttle:
    def __init__(self) -> None:
        self.breaker = Breaker("The rate limit's cache")
        # Used instead of the shared cache if there is none, or while it is down
        self._local = LocMemCache("souvenirs.throttle", {"max_entries": memory.MAX_USERS})

    def clear(self) -> None:
        """Forget all users, as a restart of the process does (but not the shared cache)."""
        memory.clear()
        self._local.clear()
        self.breaker.reset()

    def after_fork(self) -> None:
        # The parent's lock may be held
        self._local._lock = threading.Lock()  # type: ignore[attr-defined]

    def claim(self, user_pk: Any, slot: Interval, limit: float) -> Claim:
        """Claim the right to write the user's row of this slot: exactly one caller gets it."""
        key = self._key(user_pk, slot, limit)
        taken_until = self._ask(partial(try_claim, key=key))
        if taken_until is None:
            return Claim(key, True, slot.end)
        return Claim(key, False, slot.end if taken_until == CONFIRMED else taken_until)

    def confirm(self, claim: Claim, slot: Interval) -> None:
        """Keep a slot taken until its end: its row is committed."""
        # A slot in the past has already ended: keep it for its length, against repeated calls
        timeout = max(slot.end - time.time(), slot.end - slot.start, CLAIM_SECONDS)
        self._ask(lambda cache: cache.set(claim.key, CONFIRMED, timeout=timeout))

    def release(self, claim: Claim) -> None:
        """Release a slot whose row could not be written."""
        self._ask(lambda cache: cache.delete(claim.key))

    def _ask(self, question: Callable[[BaseCache], T]) -> T:
        """Return the answer of the shared cache, or of the local one while the shared one fails.

        A claim that is lost with the cache needs no clean-up; one that is not confirmed there may
        lead to a second row, which does no harm.
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
        return self._local if is_bypassed(cache) else cache

    def _key(self, user_pk: Any, slot: Interval, limit: float) -> str:
        if scopes.is_scoped():
            user_pk = scopes.current(), user_pk
        # Any string may be a primary key, but not every string may be in a cache key, and keys
        # should not be readable there.
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
