from __future__ import annotations

import gzip
from urllib.parse import parse_qs

from django.contrib.auth.decorators import login_not_required
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from souvenirs_metrics import access, deadline, exposition


@login_not_required
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """The metrics page, for Prometheus to scrape. `?name[]=` (several): only these metrics."""
    refusal = access.refusal(request)
    if refusal is not None:
        return refusal
    body, content_type = exposition.render(
        request.headers.get("Accept", ""),
        names_in(request),
        deadline.seconds_for(request.headers.get(deadline.HEADER, "")),
    )
    headers = {"Cache-Control": "no-store", "Vary": "Accept, Accept-Encoding"}
    if exposition.accepts_gzip(request.headers.get("Accept-Encoding", "")):
        body = gzip.compress(body, compresslevel=6, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return HttpResponse(body, content_type=content_type, headers=headers)


def names_in(request: HttpRequest) -> list[str]:
    """The query's `name[]`. request.GET raises for more than DATA_UPLOAD_MAX_NUMBER_FIELDS."""
    return parse_qs(request.META.get("QUERY_STRING", ""), keep_blank_values=True).get("name[]", [])


# Outside of a transaction, a query that fails does not take the others with it
for alias in connections:
    transaction.non_atomic_requests(using=alias)(metrics)
