"""Find the user of a session: look it up once a minute, through a store that does not write."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
    load_backend,
)
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ValidationError
from django.utils.crypto import constant_time_compare

from souvenirs.recording.memory import MAX_USERS, Memory
from souvenirs.users import principal_key

# How many sessions without a user a process looks up per second. This bounds the cost of a flood of
# invented cookies; it does not apply to sessions that had a user before.
LOOKUPS_PER_SECOND = 50
UNKNOWN_SECONDS = 60  # how long a session without a user is remembered as such

# Digests of session cookies -> until when they count as unknown, in Unix seconds
unknown_sessions: Memory[bytes, float] = Memory(MAX_USERS)
digest_key = os.urandom(16)


class RateCap:
    """Allow at most `limit` uses in each second of the clock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        self.second, self.used = 0, 0

    def allows(self, now: float) -> bool:
        return int(now) != self.second or self.used < self.limit

    def use(self, now: float) -> None:
        if int(now) != self.second:
            self.second, self.used = int(now), 0
        self.used += 1


failed_lookups = RateCap(LOOKUPS_PER_SECOND)


def forget() -> None:
    unknown_sessions.clear()
    failed_lookups.reset()


def is_plausible(cookie: str) -> bool:
    """Return True if this may be a session key: printable ASCII, as in every store. Databases raise
    errors for some other strings."""
    return cookie.isascii() and cookie.isprintable()


def digest_of(cookie: str) -> bytes:
    return blake2b(cookie.encode(errors="surrogatepass"), digest_size=16, key=digest_key).digest()


def may_look_up(digest: bytes, now: float, *, was_good: bool) -> bool:
    """Return True if a session may be looked up now. was_good: whether it had a user before."""
    until = unknown_sessions.get(digest)
    if until is not None and now < until:
        return False
    return was_good or failed_lookups.allows(now)


def look_up(store: type[SessionBase], cookie: str, digest: bytes) -> Any:
    """Return the key of the user signed in with this session, or None. Remember a session without a
    user, or with an error."""
    key = None
    try:
        key = principal_key(session_user(read_only(store)(cookie)))
    finally:
        if key is None:
            remember_failed_lookup(digest)
    return key


def signed_in_by_cookie(store: type[SessionBase], cookie: str) -> str | None:
    """Return a text that identifies the user signed in by a signed cookie; None if there is none,
    or the cookie is forged. Does not query the database."""
    session = read_only(store)(cookie)
    if session.get(SESSION_KEY) is None:
        return None
    return repr([session.get(key) for key in (SESSION_KEY, BACKEND_SESSION_KEY, HASH_SESSION_KEY)])


def remember_failed_lookup(digest: bytes) -> None:
    """Remember that a look-up found no user to record."""
    now = time.time()
    failed_lookups.use(now)
    unknown_sessions[digest] = now + UNKNOWN_SECONDS


@lru_cache(maxsize=8)
def read_only(store: type[SessionBase]) -> type[SessionBase]:
    """Return a subclass of `store` that does not write: some stores clean up or replace the session
    when they load it."""

    def nothing(self: SessionBase, *args: Any, **kwargs: Any) -> None:
        self._session_key = None

    return type(store.__name__, (store,), dict.fromkeys(("save", "create", "delete"), nothing))


def session_user(session: SessionBase) -> Any:
    """Return the user signed in with `session`, or None.

    The rules are those of django.contrib.auth.get_user, but without cycling the key or flushing the
    session, as it does if SECRET_KEY was rotated or the password changed.
    """
    user_id, backend = session.get(SESSION_KEY), session.get(BACKEND_SESSION_KEY, "")
    if user_id is None or backend not in settings.AUTHENTICATION_BACKENDS:
        return None
    key = get_user_model()._meta.pk
    assert key is not None
    try:
        user: Any = load_backend(backend).get_user(key.to_python(user_id))
    except ValidationError:  # the session is from a time with another user model
        return None
    if user is None or not hasattr(user, "get_session_auth_hash"):
        return user
    claimed = session.get(HASH_SESSION_KEY) or ""
    hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    return user if any(constant_time_compare(claimed, known) for known in hashes) else None
