from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from souvenirs_metrics import exposition


@login_not_required
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """The metrics page, for Prometheus to scrape."""
    body, content_type = exposition.render(request.headers.get("Accept", ""))
    return HttpResponse(body, content_type=content_type, headers={"Cache-Control": "no-store"})


# Outside of a transaction, a query that fails does not take the others with it
for alias in connections:
    transaction.non_atomic_requests(using=alias)(metrics)
