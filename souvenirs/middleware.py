"""A response to a signed-in user -> souvenez. Sync and async."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any, NamedTuple

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
    load_backend,
)
from django.contrib.auth.signals import user_logged_out
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ValidationError
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    InternalError,
    connections,
)
from django.db.transaction import TransactionManagementError
from django.dispatch import receiver
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.crypto import constant_time_compare
from django.utils.functional import SimpleLazyObject, empty

from souvenirs.breaker import Breaker
from souvenirs.conf import conf
from souvenirs.control import FAILED, SKIPPED, souvenez
from souvenirs.models import Souvenir
from souvenirs.recording.throttle import MAX_USERS, Handled, Memory, throttle
from souvenirs.signals import souvenir_recorded

# How many look-ups of sessions that nobody is signed in with a process makes in a second. It bounds
# what a flood of invented cookies costs; a session that was good before is not subject to it.
LOOKUPS_PER_SECOND = 50

DEPARTED = "_souvenirs_departed"
# What the hook is shown in place of the request's own
SHOWN = (DEPARTED, "session", "user", "_cached_user", "_acached_user")

# Deadlock and serialization failure, of PostgreSQL (SQLSTATE) and of MySQL (error number): the next
# visit can be recorded, so the server is not to be left alone
CONFLICTS = frozenset({"40001", "40P01", 1213})

Response = HttpResponseBase
# What souvenez returns, None if there was nothing to write
Todo = Callable[[], str | None]


class SouvenirsMiddleware:
    """Remembers the user of each request, once the view has answered it.

    So users whom the view authenticated are seen too, and a user who logs out in this request. A
    response never changes, nor fails, because of it: no `Vary`, no cookie, no write to the session.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Response | Awaitable[Response]:
        if self.is_async:
            return self.acall(request)
        response: Response = self.get_response(request)
        if (todo := pending(request, response)) is not None:
            attempt(todo)
        return response

    async def acall(self, request: HttpRequest) -> Response:
        response: Response = await self.get_response(request)
        if (todo := pending(request, response)) is not None:  # else there is no need of a thread
            await sync_to_async(attempt)(todo)
        return response


def pending(request: HttpRequest, response: Response) -> Todo | None:
    """What is left to do for this request: nothing (None), as a rule."""
    try:
        todo = pending_user(request)
        if todo is None or conf.should_record is None:
            return todo
        return partial(consider, conf.should_record, request, response, todo)
    except Exception as error:
        note_failure(error)
        return None


def pending_user(request: HttpRequest) -> Todo | None:
    user_pk, is_known = loaded_user_pk(request)
    if not is_known:
        return pending_session(request)
    if user_pk is None or throttle.is_handled(user_pk, time.time()):
        return None
    return partial(record_user, user_pk)


def record_user(user: Any) -> str | None:
    try:
        return souvenez(user)
    except get_user_model().DoesNotExist:
        return None  # deleted meanwhile: there is nobody to remember


def attempt(todo: Todo) -> None:
    """Does what is pending. Whatever goes wrong is noted, and stays here."""
    if not recording.allows():
        tell(FAILED)
        return
    try:
        result = todo()
    except Exception as error:
        if not note_failure(error):
            recording.untried()
        return
    if result is None:
        recording.untried()
    else:
        recording.success()


def consider(
    should_record: Callable[[HttpRequest, Response], bool],
    request: HttpRequest,
    response: Response,
    todo: Todo,
) -> str | None:
    """Does what is pending if the site's hook agrees."""
    with shown_to_hook(request):
        agrees = should_record(request, response)
    if agrees:
        return todo()
    tell(SKIPPED)
    return None


class Departed(NamedTuple):
    """Who has logged out with this request, and the session that was theirs."""

    user: Any
    session: dict[str, Any]


@contextmanager
def shown_to_hook(request: HttpRequest) -> Iterator[None]:
    """The hook may look at session and user, also at those of somebody who has just logged out.
    For the response, and for whoever handles it after us, it shall be as if nobody had."""
    shown: Any = request
    before = {name: request.__dict__[name] for name in SHOWN if name in request.__dict__}
    session, user = before.get("session"), before.get("user")
    departed = before.get(DEPARTED)
    if isinstance(session, SessionBase) and (departed or not session.accessed):
        copy = read_only(type(session))(session.session_key)
        if departed:
            copy.update(departed.session)
            shown.user = departed.user
        elif isinstance(user, SimpleLazyObject) and user.__dict__["_wrapped"] is empty:
            shown.user = SimpleLazyObject(user.__dict__["_setupfunc"])
        shown.session = copy
    try:
        yield
    finally:
        for name in SHOWN:
            request.__dict__.pop(name, None)
        request.__dict__.update(before)


def tell(result: str) -> None:
    souvenir_recorded.send_robust(sender=Souvenir, result=result, user_pk=None, count=1)


recording = Breaker("Recording souvenirs")


def note_failure(error: Exception) -> bool:
    """Counts and logs it. True if it tells that the server is down, so that nobody asks it."""
    # Errors of one statement, or of a transaction that the site broke, tell nothing of the server
    harmless: tuple[type[Exception], ...] = (IntegrityError, DataError, TransactionManagementError)
    if any(connection.in_atomic_block for connection in connections.all(initialized_only=True)):
        harmless += (InternalError,)  # PostgreSQL's, for each statement in a broken transaction
    cause = error.__cause__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    is_servers = (
        isinstance(error, (DatabaseError, InterfaceError))
        and not isinstance(error, harmless)
        and code not in CONFLICTS
        and (not cause or not cause.args or cause.args[0] not in CONFLICTS)
    )
    recording.failure(error, opens=is_servers)
    tell(FAILED)
    return is_servers


# Who is it? What the view has loaded tells, at no cost


def loaded_user_pk(request: HttpRequest) -> tuple[Any, bool]:
    """The signed-in user's primary key, and whether the answer is known without the session.

    Looks at what was loaded, and loads nothing: to read request.user would read the session, and
    have `Vary: Cookie` put on the response.
    """
    attributes = request.__dict__
    user = attributes.get("user")
    if isinstance(user, SimpleLazyObject):
        wrapped = user.__dict__["_wrapped"]
        user = attributes.get("_acached_user") if wrapped is empty else wrapped
    if user is not None and user.is_authenticated:
        return user.pk, True
    if (departed := attributes.get(DEPARTED)) is not None:
        return departed.user.pk, True
    return None, user is not None


@receiver(user_logged_out, dispatch_uid="souvenirs.middleware")
def note_departure(request: HttpRequest | None = None, user: Any = None, **kwargs: Any) -> None:
    """Whoever logs out was active: request.user will be nobody when the response passes here."""
    if request is None or user is None:
        return
    session = getattr(request, "session", None)
    # `accessed`, as it is when Django logs out: else to look would put `Vary` on the response
    seen = dict(session.items()) if isinstance(session, SessionBase) and session.accessed else {}
    departed = Departed(user, seen)
    setattr(getattr(request, "_request", request), DEPARTED, departed)  # in REST framework's too


# Who is it? The session tells, read once a minute through a store of its own

# Digests of session cookies, to what was done; not to whose they are. None was good for anything.
sessions: Memory[bytes, Handled] = Memory(MAX_USERS)
unknown_sessions: Memory[bytes, float] = Memory(MAX_USERS)
digest_key = os.urandom(16)


class RateCap:
    """Lets at most `limit` calls through in each second of the clock."""

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


fruitless = RateCap(LOOKUPS_PER_SECOND)


def forget() -> None:
    """Forgets all sessions and failures, as a restart of the process does (for tests)."""
    sessions.clear()
    unknown_sessions.clear()
    fruitless.reset()
    recording.reset()


def pending_session(request: HttpRequest) -> Todo | None:
    cookie = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    session = request.__dict__.get("session")
    if not cookie or not isinstance(session, SessionBase):
        return None
    digest = blake2b(cookie.encode(errors="surrogatepass"), digest_size=16, key=digest_key).digest()
    now = time.time()
    known = sessions.young.get(digest)
    if known is not None and known[0] <= now < known[1]:
        throttle.hits += 1
        return None
    until = unknown_sessions.get(digest)
    if until is not None and now < until:
        return None
    if sessions.get(digest) is None and not fruitless.allows(now):
        return None
    return partial(record_session, type(session), cookie, digest)


def record_session(store: type[SessionBase], cookie: str, digest: bytes) -> str | None:
    user = session_user(read_only(store)(cookie))
    if user is None:
        now = time.time()
        fruitless.use(now)
        unknown_sessions[digest] = now + 60
        return None
    is_handled = throttle.is_handled(user.pk, time.time())  # by way of another session
    result = None if is_handled else record_user(user)
    handled = throttle.handled.get(user.pk)
    if handled is not None:
        sessions[digest] = handled
    return result


@lru_cache(maxsize=8)
def read_only(store: type[SessionBase]) -> type[SessionBase]:
    """A session store like `store` that does not write: some clean up or begin anew on loading."""

    def nothing(self: SessionBase, *args: Any, **kwargs: Any) -> None:
        self._session_key = None

    return type(store.__name__, (store,), dict.fromkeys(("save", "create", "delete"), nothing))


def session_user(session: SessionBase) -> Any:
    """The user signed in with `session`, None if there is none.

    As django.contrib.auth.get_user decides, but it never cycles the key or flushes, which that
    does where SECRET_KEY was rotated or the password changed.
    """
    user_id, backend = session.get(SESSION_KEY), session.get(BACKEND_SESSION_KEY, "")
    if user_id is None or backend not in settings.AUTHENTICATION_BACKENDS:
        return None
    key = get_user_model()._meta.pk
    assert key is not None
    try:
        user: Any = load_backend(backend).get_user(key.to_python(user_id))
    except ValidationError:  # of another user model, which the site had before
        return None
    if user is None or not hasattr(user, "get_session_auth_hash"):
        return user
    claimed = session.get(HASH_SESSION_KEY) or ""
    hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    return user if any(constant_time_compare(claimed, known) for known in hashes) else None
