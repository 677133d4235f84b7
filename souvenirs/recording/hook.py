"""Call the site's hooks, SOUVENIRS_SHOULD_RECORD and SOUVENIRS_GET_USER, without side effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import isawaitable, iscoroutine
from typing import Any

from django.contrib.sessions.backends.base import SessionBase
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.functional import SimpleLazyObject, empty

from souvenirs.recording.requests import LOGGED_OUT
from souvenirs.recording.sessions import read_only
from souvenirs.users import is_key, principal_key

# Attributes of the request that a hook may change by reading them
EXPOSED = (LOGGED_OUT, "session", "user", "_cached_user", "_acached_user")


def is_allowed(
    should_record: Callable[[HttpRequest, HttpResponseBase], bool],
    request: HttpRequest,
    response: HttpResponseBase,
) -> bool:
    """Call SOUVENIRS_SHOULD_RECORD. Raises TypeError if it is async: a coroutine would count as
    True."""
    with exposed(request):
        answer = should_record(request, response)
    require_sync("SOUVENIRS_SHOULD_RECORD", answer)
    return bool(answer)


def user_key(
    get_user: Callable[[HttpRequest, HttpResponseBase], Any],
    request: HttpRequest,
    response: HttpResponseBase,
) -> Any:
    """Return the key of the user that SOUVENIRS_GET_USER returns; None if it returns None, or
    something that is not a user. Raises TypeError if it is async."""
    with exposed(request):
        answer = get_user(request, response)
    require_sync("SOUVENIRS_GET_USER", answer)
    return answer if is_key(answer) else principal_key(answer)


def require_sync(name: str, answer: Any) -> None:
    if isawaitable(answer):
        if iscoroutine(answer):
            answer.close()  # otherwise Python warns that it was never awaited
        raise TypeError(f"{name} must not be async, but returned {answer!r}: use a sync function")


@contextmanager
def exposed(request: HttpRequest) -> Iterator[None]:
    """Allow a hook to read session and user, even of a user who has just logged out. Afterwards,
    restore the request as if they had not been read."""
    shown: Any = request
    before = {name: request.__dict__[name] for name in EXPOSED if name in request.__dict__}
    session, user = before.get("session"), before.get("user")
    logged_out = before.get(LOGGED_OUT)
    if isinstance(session, SessionBase) and (logged_out or not session.accessed):
        copy = read_only(type(session))(session.session_key)
        if logged_out:
            copy.update(logged_out.session)
            shown.user = logged_out.user
        elif isinstance(user, SimpleLazyObject) and user.__dict__["_wrapped"] is empty:
            shown.user = SimpleLazyObject(user.__dict__["_setupfunc"])
        shown.session = copy
    try:
        yield
    finally:
        for name in EXPOSED:
            request.__dict__.pop(name, None)
        request.__dict__.update(before)
