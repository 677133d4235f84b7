"""Who may see the metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from hmac import compare_digest
from inspect import iscoroutine

from django.http import HttpRequest, HttpResponse
from django.urls import (
    NoReverseMatch,
    Resolver404,
    get_resolver,
    get_script_prefix,
    get_urlconf,
    resolve,
    reverse,
)

from souvenirs_metrics.conf import conf

logger = logging.getLogger("souvenirs_metrics")


def deny_response(request: HttpRequest) -> HttpResponse | None:
    """Return the response that denies a request the metrics, or None if access is allowed.

    The response gives no reason. SOUVENIRS_METRICS_AUTHORIZE must return True to allow access. If
    it raises, or returns anything but True or False, access is denied and the error is logged.
    """
    if conf.authorize is not None:
        if is_authorized(request, conf.authorize):
            return None
        return HttpResponse("Forbidden\n", "text/plain", status=403)
    tokens = conf.tokens
    if tokens is not None and not has_token(request.headers.get("Authorization", ""), tokens):
        response = HttpResponse("Unauthorized\n", "text/plain", status=401)
        response.headers["WWW-Authenticate"] = 'Bearer realm="metrics"'
        return response
    return None


def deny_report_response(request: HttpRequest) -> HttpResponse | None:
    """Like `deny_response`, for the reports: these are also open to staff who are signed in and
    may view the admin's Usage page."""
    denied = deny_response(request)
    if denied is None or may_view_usage(request):
        return None
    return denied


def may_view_usage(request: HttpRequest) -> bool:
    """Return True if an admin in the site's URLs would show its Usage page to the request's user.

    Each admin site decides who counts as staff (`AdminSite.has_permission`).
    """
    if not hasattr(request, "user"):
        return False
    for name in get_resolver(get_urlconf()).app_dict.get("admin", ()):
        try:
            url = reverse(f"{name}:souvenirs_usage_changelist")
            page = resolve("/" + url.removeprefix(get_script_prefix())).func
        except (NoReverseMatch, Resolver404):
            continue
        model_admin = getattr(page, "model_admin", None)
        if (
            model_admin is not None
            and model_admin.admin_site.has_permission(request)
            and model_admin.has_view_permission(request)
        ):
            return True
    return False


def is_authorized(request: HttpRequest, authorize: Callable[[HttpRequest], object]) -> bool:
    try:
        answer = authorize(request)
    except Exception as error:
        logger.exception("SOUVENIRS_METRICS_AUTHORIZE failed: %r", error)
        return False
    if not isinstance(answer, bool):  # for example a coroutine or a response, which are truthy
        if iscoroutine(answer):
            answer.close()  # or else Python warns that it was never awaited
        logger.error(
            "SOUVENIRS_METRICS_AUTHORIZE must return True or False, not an object of type %s:"
            " access is denied",
            type(answer).__name__,
        )
    return answer is True


def has_token(authorization: str, tokens: Iterable[bytes]) -> bool:
    scheme, _, token = authorization.partition(" ")
    given = token.strip().encode("utf-8", "surrogateescape")
    # Compare with every token, each in constant time, so that timing reveals nothing
    matches = [compare_digest(given, known) for known in tokens]
    return scheme.lower() == "bearer" and any(matches)
