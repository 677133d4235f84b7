"""Decide what to record for a request and its response, and do it without raising exceptions."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.backends.signed_cookies import SessionStore as SignedCookieStore
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from souvenirs import scopes
from souvenirs.conf import conf
from souvenirs.models import Souvenir
from souvenirs.recording import memory, sessions, windows
from souvenirs.recording.failures import breaker, note_failure, session_breaker
from souvenirs.recording.hook import is_allowed, user_key
from souvenirs.recording.recorder import record
from souvenirs.recording.requests import loaded_user_pk
from souvenirs.recording.results import FAILED, SKIPPED, send_recorded
from souvenirs.recording.writer import writer
from souvenirs.users import UNSTORABLE, clean_key, clean_pk

# Returns the result of souvenez; None if there was nothing to write
RecordTask = Callable[[], str | None]


def next_step(request: HttpRequest, response: HttpResponseBase) -> RecordTask | None:
    """Return what is left to do for this request: usually nothing (None). Never raises."""
    try:
        if not conf.enabled:
            return None
        task = _user_task(request, response)
        if task is not None and not scopes.has_table(Souvenir):
            return None  # such as in the schema that tenants share
        if task is None or conf.should_record is None:
            return task
        return partial(run_if_allowed, conf.should_record, request, response, task)
    except Exception as error:
        note_failure(error)
        return None


def run_safely(task: RecordTask) -> None:
    """Run a task. Exceptions are counted and logged, but not raised."""
    try:
        if writer.is_used():  # then the writer handles failures of the database
            task()
            return
    except Exception as error:
        note_failure(error)
        return
    if not breaker.allows():
        send_recorded(FAILED)
        return
    try:
        result = task()
    except Exception as error:
        if not note_failure(error):
            breaker.untried()
        return
    if result is None:
        breaker.untried()
    else:
        breaker.success()


def run_if_allowed(
    should_record: Callable[[HttpRequest, HttpResponseBase], bool],
    request: HttpRequest,
    response: HttpResponseBase,
    task: RecordTask,
) -> str | None:
    """Run a task if SOUVENIRS_SHOULD_RECORD allows it."""
    if is_allowed(should_record, request, response):
        return task()
    send_recorded(SKIPPED)
    return None


def _user_task(request: HttpRequest, response: HttpResponseBase) -> RecordTask | None:
    user_pk, is_known = None, True
    if conf.get_user is not None:
        user_pk = user_key(conf.get_user, request, response)
    if user_pk is None:
        user_pk, is_known = loaded_user_pk(request)
    if not is_known:
        return _session_task(request)
    now = time.time()
    if user_pk is None or memory.recent_users.is_handled(user_pk, now):
        return None
    if memory.is_missing(user_pk, now):
        return None
    if conf.should_record is None and writer.is_used():
        return queue_user(user_pk, now)
    return partial(record_user, user_pk)


def _session_task(request: HttpRequest) -> RecordTask | None:
    cookie = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    session = request.__dict__.get("session")
    if not cookie or not isinstance(session, SessionBase) or not sessions.is_plausible(cookie):
        return None
    digest, now = sessions.digest_of(cookie), time.time()
    if memory.recent_sessions.is_handled(digest, now):
        return None
    if isinstance(session, SignedCookieStore):
        # The cookie contains the session: it changes at each save, but that is not a new session
        signed_in = sessions.signed_in_by_cookie(type(session), cookie)
        if signed_in is None:
            return None
        digest = sessions.digest_of(signed_in)
        if memory.recent_sessions.is_handled(digest, now):
            return None
    was_good = memory.recent_sessions.get(digest) is not None
    if not sessions.may_look_up(digest, now, was_good=was_good):
        return None
    return partial(record_session, type(session), cookie, digest)


def record_user(key: Any) -> str | None:
    """Record the user with this key. Return None if another request has done so, or there is no
    such user."""
    now = time.time()
    if memory.recent_users.is_handled(key, now) or memory.is_missing(key, now):
        return None
    if writer.is_used():
        task = queue_user(key, now)
        return None if task is None else task()
    try:
        clean_pk(key)
    except (TypeError, ValueError):  # not a user's key, but a service's name in a token, say
        return None
    try:
        return record(key)
    except get_user_model().DoesNotExist:
        memory.remember_missing(key)
        return None


def queue_user(key: Any, now: float) -> RecordTask | None:
    """Queue a visit of the user with this key for the writer. If the writer is stalled, return a
    task that writes a batch in its place."""
    user_pk = clean_key(key)
    if user_pk is UNSTORABLE:  # a service's name in a token, say
        return None
    now = int(now * 1_000_000) / 1_000_000  # so that no row is rounded into the next slot
    window = windows.containing(now)
    known = memory.recent_users.get(user_pk)
    has_row = known is not None and known.has_row(now)
    writer.add(user_pk, window.slot, now, has_row)
    memory.recent_users[user_pk] = recent = window.with_row if has_row else window.without_row
    if key is not user_pk:
        memory.recent_users[key] = recent
    return write_if_stalled if writer.is_stalled() else None


def write_if_stalled() -> str | None:
    writer.write_if_stalled()
    return None


def record_session(store: type[SessionBase], cookie: str, digest: bytes) -> str | None:
    """Record the user signed in with this session, if there is one."""
    if not session_breaker.allows():
        send_recorded(FAILED)
        return None
    try:
        key = sessions.look_up(store, cookie, digest)
    except Exception as error:
        if not note_failure(error, session_breaker):
            session_breaker.untried()
        return None
    session_breaker.success()
    if key is None:
        return None
    result = record_user(key)
    entry = memory.recent_users.get(key)
    if entry is not None:
        # Remember the cookie too, if its digest is different: while it does not change, a visit
        # takes one look-up
        for known in {digest, sessions.digest_of(cookie)}:
            memory.recent_sessions[known] = entry
    elif result is None:
        sessions.remember_failed_lookup(digest)
    return result
