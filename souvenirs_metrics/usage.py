"""Serves the reports of souvenirs as JSON, within a deadline."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from typing import Any

from django.contrib.auth import get_user_model
from django.core.serializers.json import DjangoJSONEncoder
from django.db import DatabaseError, InterfaceError, connections, router
from django.http import HttpRequest, JsonResponse

from souvenirs import reports, timestamps
from souvenirs.conf import conf as souvenirs_conf
from souvenirs.history.segments import DELETED
from souvenirs.logs import LogLimit, cause_of, words_of
from souvenirs.models import Souvenir
from souvenirs.selection import USAGE, Selection, SelectionError, select
from souvenirs_metrics import deadline
from souvenirs_metrics.conf import conf
from souvenirs_metrics.deadline import Deadline
from souvenirs_metrics.segments import make_segment

logger = logging.getLogger("souvenirs_metrics")
log_limit = LogLimit()

REPORTS = {"growth": reports.growth, "retention": reports.retention}
CANCEL_GRACE_SECONDS = 0.5  # how long databases may take to cancel statements by themselves
HEADERS = {"Cache-Control": "no-store"}


class DeclarationError(ValueError):
    """A setting of the site is invalid. The message is for its operators."""


class Encoder(DjangoJSONEncoder):
    """Writes datetimes in the site's time zone, with the UTC offset."""

    def default(self, o: Any) -> Any:
        if isinstance(o, datetime):
            return timestamps.aware(o).astimezone(souvenirs_conf.zone).isoformat()
        return super().default(o)


def read(params: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The reports that the URL's parameters select, by name: see docs/usage-json.md.

    Raise SelectionError for bad parameters, DeclarationError for an invalid segment.
    """
    found, now = {}, time.time()
    for name, report in REPORTS.items():
        if period := params.get(name):
            selection = select(params, period, now)
            found[name] = selection.read(partial(report, selection.period))
    if params.get("period") or not found:
        selection = select(params, now=now)
        found["usage"] = read_usage(selection, params.get("by"))
    return found


def read_usage(selection: Selection, by: str | None) -> list[dict[str, Any]]:
    """The usage report. With `by`, the name of a segment, also by its declared values, "none" and
    "other", and "deleted" for users who have been deleted."""
    report = USAGE[selection.period]
    if not by:
        return selection.read(report)
    if by not in conf.segments:
        raise SelectionError(
            f"by must be a segment declared in SOUVENIRS_METRICS_SEGMENTS, not {by!r}. Declared"
            f" segments: {', '.join(conf.segments) or 'none'}."
        )
    try:
        segment = make_segment(conf.segments[by])
    except ValueError as error:
        raise DeclarationError(f"SOUVENIRS_METRICS_SEGMENTS[{by!r}]: {words_of(error)}.") from error
    none = dict.fromkeys([*segment.names.values(), DELETED], 0)
    rows = selection.read(partial(report, by=segment.grouping))
    for row in rows:
        row["usage"]["active_users_by"] = {**none, **row["usage"]["active_users_by"]}
    return rows


def respond(request: HttpRequest) -> JsonResponse:
    """The JSON response. Errors are {"error": "..."}: 400 for bad parameters, 500 for an invalid
    segment, 503 if the database fails or does not answer in time."""
    seconds = deadline.seconds_for(request.headers.get(deadline.HEADER, ""))
    try:
        with read_within(seconds):
            body: dict[str, Any] = read(request.GET.dict())
    except SelectionError as error:
        return JsonResponse({"error": str(error)}, status=400, headers=HEADERS)
    except DeclarationError as error:
        if log_limit.allows(str(error)):
            logger.error("The usage could not be read: %s", error)
        return JsonResponse({"error": str(error)}, status=500, headers=HEADERS)
    except (DatabaseError, InterfaceError, TimeoutError) as error:
        cause = cause_of(error)
        if log_limit.allows(cause):
            logger.error("The usage could not be read: %s", cause, exc_info=error)
        message = f"The database did not answer within {seconds:g} s."
        return JsonResponse({"error": message}, status=503, headers=HEADERS)
    return JsonResponse(body, encoder=Encoder, headers=HEADERS)


@contextmanager
def read_within(seconds: float) -> Iterator[None]:
    """Limit queries inside, on the databases of souvenirs and of users, to this many seconds.

    Inside a transaction of the caller, whose connections are not ours to limit, do nothing.
    """
    if any(each.in_atomic_block for each in connections.all(initialized_only=True)):
        yield
        return
    aliases = dict.fromkeys(router.db_for_read(model) for model in (Souvenir, get_user_model()))
    limit = Deadline(seconds, keeps_connections=True)
    # For a silent server that does not cancel statements by itself
    timer = threading.Timer(seconds + CANCEL_GRACE_SECONDS, limit.abort)
    timer.daemon = True
    timer.start()
    try:
        with ExitStack() as contexts:
            for alias in aliases:
                contexts.enter_context(limit.read_context(alias))
            yield
    finally:
        timer.cancel()
        limit.close()
