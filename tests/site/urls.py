from __future__ import annotations

import os
import signal

from django.contrib.auth import login
from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from souvenirs import timestamps
from souvenirs.control import souvenez
from souvenirs.models import LastSeen, Souvenir


def plain(request: HttpRequest) -> HttpResponse:
    """A page that needs neither a user nor a database."""
    return HttpResponse("plain")


def who(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username())


def visit(request: HttpRequest, pk: int) -> HttpResponse:
    """A page of a user whom the view has authenticated; the response names the process."""
    request.user = User.objects.get(pk=pk)
    return HttpResponse(os.getpid())


def enter(request: HttpRequest, pk: int) -> HttpResponse:
    login(request, User.objects.get(pk=pk))
    return HttpResponse("in")


def record(request: HttpRequest, pk: int) -> HttpResponse:
    """Record a user, and return the result."""
    return HttpResponse(souvenez(pk))


def killed(request: HttpRequest) -> HttpResponse:
    """Kill this process with SIGKILL, whatever its other threads are doing."""
    os.kill(os.getpid(), signal.SIGKILL)
    return HttpResponse()


def killed_in_transaction(request: HttpRequest, pk: int) -> HttpResponse:
    """Kill this process before it commits the transaction that recorded the user."""
    with transaction.atomic():
        souvenez(pk)
        return killed(request)


def rows(request: HttpRequest) -> HttpResponse:
    """All souvenirs, as pairs of user and unix time."""
    pairs = Souvenir.objects.values_list("user_id", "when")
    return JsonResponse([[pk, timestamps.to_seconds(when)] for pk, when in pairs], safe=False)


def seen(request: HttpRequest) -> HttpResponse:
    """The last-seen rows, as pairs of user and unix time."""
    pairs = LastSeen.objects.values_list("user_id", "seen")
    return JsonResponse([[pk, timestamps.to_seconds(seen)] for pk, seen in pairs], safe=False)


urlpatterns = [
    path("plain/", plain),
    path("who/", who),
    path("visit/<int:pk>/", visit),
    path("enter/<int:pk>/", enter),
    path("record/<int:pk>/", record),
    path("killed/", killed),
    path("killed/<int:pk>/", killed_in_transaction),
    path("rows/", rows),
    path("seen/", seen),
]
