"""The middleware that records the signed-in user of each request. Sync and async."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from souvenirs import scopes
from souvenirs.conf import conf
from souvenirs.recording.tasks import next_step, run_safely

Response = HttpResponseBase


class SouvenirsMiddleware:
    """Record the user of each request, after the view.

    This includes users that the view authenticated, and a user who logs out in this request. It
    never changes a response or makes it fail: no `Vary`, no cookie, no write to the session.
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
        self.record(request, response)
        return response

    def record(self, request: HttpRequest, response: Response) -> None:
        if (task := next_step(request, response)) is not None:
            run_safely(task)

    async def acall(self, request: HttpRequest) -> Response:
        response: Response = await self.get_response(request)
        # Only the request's own thread is in its scope, and the site's hook may run queries
        if scopes.is_scoped() or (conf.enabled and conf.has_get_user):
            await sync_to_async(self.record)(request, response)
        elif (task := next_step(request, response)) is not None:  # else no thread is needed
            await sync_to_async(run_safely)(task)
        return response
