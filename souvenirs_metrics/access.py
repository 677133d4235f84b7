"""Who may see the metrics."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from hmac import compare_digest

from django.http import HttpRequest, HttpResponse

from souvenirs_metrics.conf import conf

logger = logging.getLogger("souvenirs_metrics")


def deny_response(request: HttpRequest) -> HttpResponse | None:
    """The response to a request that may not see the metrics, without a reason; None if it may.

    If SOUVENIRS_METRICS_AUTHORIZE raises, that is logged, and the request is denied.
    """
    if conf.authorize is not None:
        try:
            is_allowed = conf.authorize(request)
        except Exception as error:
            logger.exception("SOUVENIRS_METRICS_AUTHORIZE failed: %r", error)
            is_allowed = False
        return None if is_allowed else HttpResponse("Forbidden\n", "text/plain", status=403)
    tokens = conf.tokens
    if tokens is not None and not has_token(request.headers.get("Authorization", ""), tokens):
        response = HttpResponse("Unauthorized\n", "text/plain", status=401)
        response.headers["WWW-Authenticate"] = 'Bearer realm="metrics"'
        return response
    return None


def has_token(authorization: str, tokens: Iterable[bytes]) -> bool:
    scheme, _, token = authorization.partition(" ")
    given = token.strip().encode("utf-8", "surrogateescape")
    # Compare all of them, each in constant time, so that timing reveals nothing
    matches = [compare_digest(given, known) for known in tokens]
    return scheme.lower() == "bearer" and any(matches)
