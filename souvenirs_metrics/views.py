"""The views of /metrics and /souvenirs/usage.json."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from django.contrib.auth.decorators import login_not_required
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.gzip import gzip_page
from django.views.decorators.http import require_safe

from souvenirs_metrics import access, deadline, exposition, formats, usage

# gzip_page ignores quality values, so it would compress for these clients too
REFUSES_GZIP = re.compile(r"\bgzip\s*;\s*q=0(\.0*)?\s*(,|$)")


@login_not_required
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """The metrics page, for Prometheus to scrape. `?name[]=` (repeatable) selects metrics."""
    denied = access.deny_response(request)
    if denied is not None:
        return denied
    if REFUSES_GZIP.search(request.headers.get("Accept-Encoding", "")):
        return page(request)
    return gzip_page(page)(request)


def page(request: HttpRequest) -> HttpResponse:
    page_format = formats.negotiate(request)
    body = exposition.render(
        page_format,
        requested_names(request),
        deadline.seconds_for(request.headers.get(deadline.HEADER, "")),
    )
    headers = {"Cache-Control": "no-store", "Vary": "Accept, Accept-Encoding"}
    return HttpResponse(body, content_type=page_format.content_type, headers=headers)


def requested_names(request: HttpRequest) -> list[str]:
    """The values of `name[]` in the query string. Not from request.GET, which raises if there are
    more than DATA_UPLOAD_MAX_NUMBER_FIELDS."""
    return parse_qs(request.META.get("QUERY_STRING", ""), keep_blank_values=True).get("name[]", [])


@login_not_required
@require_safe
@gzip_page
def usage_json(request: HttpRequest) -> HttpResponse:
    """The reports as JSON, open to those who may see the metrics, and to staff: see usage.read."""
    return access.deny_report_response(request) or usage.respond(request)


# Outside a transaction, a failed query does not make later ones fail
for alias in connections:
    for view in (metrics, usage_json):
        transaction.non_atomic_requests(using=alias)(view)
