"""Find the user of a request among what the view has loaded, without a query."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.contrib.sessions.backends.base import SessionBase
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject, empty

from souvenirs.users import principal_key

LOGGED_OUT = "_souvenirs_logged_out"  # attributes of requests
LOGGED_IN = "_souvenirs_logged_in"


class LoggedOut(NamedTuple):
    """A user who logged out in a request, and the data of their session."""

    user: Any
    session: dict[str, Any]


def loaded_user_pk(request: HttpRequest) -> tuple[Any, bool]:
    """Return the signed-in user's key, or None; and whether that is certain without the session.

    Use only what was loaded already: reading request.user would read the session, and put `Vary:
    Cookie` on the response.
    """
    attributes = request.__dict__
    user = attributes.get("user")
    if isinstance(user, SimpleLazyObject):
        wrapped = user.__dict__["_wrapped"]
        user = attributes.get("_acached_user") if wrapped is empty else wrapped
    if getattr(user, "is_authenticated", False):
        return principal_key(user), True
    if (logged_out := attributes.get(LOGGED_OUT)) is not None:
        return principal_key(logged_out.user), True
    if (logged_in := attributes.get(LOGGED_IN)) is not None:
        return principal_key(logged_in), True
    return None, user is not None


@receiver(user_logged_in, dispatch_uid="souvenirs.logged_in")
def remember_logged_in_user(
    request: HttpRequest | None = None, user: Any = None, **kwargs: Any
) -> None:
    """Remember a user who logs in for later requests, such as with a token of allauth's headless
    API: request.user will not be that user when the middleware sees the response."""
    if request is not None:
        setattr(getattr(request, "_request", request), LOGGED_IN, user)


@receiver(user_logged_out, dispatch_uid="souvenirs.logged_out")
def remember_logged_out_user(
    request: HttpRequest | None = None, user: Any = None, **kwargs: Any
) -> None:
    """Remember a user who logs out: they were active, but request.user will be anonymous when the
    middleware sees the response."""
    if request is None or user is None:
        return
    session = getattr(request, "session", None)
    # Only if `accessed`, as when Django logs out: otherwise reading it would add `Vary`
    data = dict(session.items()) if isinstance(session, SessionBase) and session.accessed else {}
    # Set it on the original request, which REST framework may have wrapped
    setattr(getattr(request, "_request", request), LOGGED_OUT, LoggedOut(user, data))
