from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import time_machine
from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.contrib.auth import authenticate, login, logout
from django.contrib.auth.decorators import login_required
from django.contrib.sessions.models import Session
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from rest_framework.authentication import SessionAuthentication
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from souvenirs import middleware
from souvenirs.breaker import PROBE_SECONDS
from souvenirs.control import asouvenez, last_seen
from souvenirs.models import Souvenir
from souvenirs.recording import failures, memory, sessions, tasks
from souvenirs.recording.results import flush_hits
from souvenirs.recording.throttle import throttle
from tests.people import NOBODY, User, ours, run, site, with_databases

NOON = datetime(2024, 5, 14, 12, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)


# A site


class Backend:
    """A custom authentication backend with only the methods that a session needs."""

    def get_user(self, user_pk: Any) -> Any:
        return User.objects.filter(pk=user_pk).first()


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("the same for everybody")


def who(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username())


@login_required
def secret(request: HttpRequest) -> HttpResponse:
    return HttpResponse("secret")


def enter(request: HttpRequest) -> HttpResponse:
    user = authenticate(request, username="ada", password="pw")
    assert user
    login(request, user)
    return HttpResponse("in")


def leave(request: HttpRequest) -> HttpResponse:
    logout(request)
    return HttpResponse("out")


class LeaveApi(APIView):
    authentication_classes = [SessionAuthentication]

    def get(self, request: Request) -> Response:
        assert request.user.is_authenticated
        logout(request)
        return Response("out")


leave_api = LeaveApi.as_view()


def change(request: HttpRequest) -> HttpResponse:
    logout(request)
    login(request, User.objects.get(username="grace"))
    return HttpResponse("changed")


async def async_souvenez(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await asouvenez(request.user))


def by_token(request: HttpRequest) -> HttpResponse:
    request.user = User.objects.get(username=request.headers["Token"])  # as REST framework does
    return HttpResponse("api")


def broken(request: HttpRequest) -> HttpResponse:
    assert request.user.is_authenticated
    raise ZeroDivisionError


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter([b"a", b"b"]))


async def async_plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("the same for everybody")


async def async_who(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    return HttpResponse(user.get_username())


urlpatterns = [
    path(f"{view.__name__}/", view)
    for view in [plain, who, secret, enter, leave, by_token, broken, stream]
] + [
    path("async_plain/", async_plain),
    path("async_who/", async_who),
    path("async_souvenez/", async_souvenez),
    path("leave_api/", leave_api),
    path("change/", change),
]

pytestmark = [with_databases, pytest.mark.urls(__name__)]


@pytest.fixture
def user() -> User:
    return User.objects.create_user("ada", password="pw")


@pytest.fixture
def signed_in(user: User, client: Client) -> Client:
    client.force_login(user)
    return client


def seen() -> list[str]:
    names = {user.pk: user.username for user in User.objects.all()}
    return sorted(names[row.user_id] for row in Souvenir.objects.all())


# Who is recorded


@pytest.mark.parametrize("view", ["plain", "who", "secret", "stream"])
def test_records__a_signed_in_user(signed_in: Client, view: str) -> None:
    response = signed_in.get(f"/{view}/")
    assert response.status_code == 200
    assert seen() == ["ada"]


@pytest.mark.parametrize("view", ["plain", "who"])
def test_records__a_user_of_a_custom_backend(user: User, view: str) -> None:
    backend = f"{__name__}.Backend"
    client = Client()
    with override_settings(AUTHENTICATION_BACKENDS=[backend]):
        client.force_login(user, backend=backend)
        client.get(f"/{view}/")
    assert seen() == ["ada"]


@pytest.mark.parametrize("view", ["plain", "who", "stream"])
def test_records__nobody_for_an_anonymous_request(client: Client, view: str) -> None:
    client.get(f"/{view}/")
    assert seen() == []


def test_records__a_user_authenticated_by_the_view(user: User, client: Client) -> None:
    client.get("/by_token/", headers={"Token": "ada"})
    assert seen() == ["ada"]


def test_records__a_user_who_logs_in_with_this_request(user: User, client: Client) -> None:
    client.get("/enter/")
    assert seen() == ["ada"]


def test_records__a_user_who_logs_out_with_this_request(signed_in: Client) -> None:
    signed_in.get("/leave/")
    assert seen() == ["ada"]


def test_records__a_user_who_logs_out_within_rest_framework(signed_in: Client) -> None:
    signed_in.get("/leave_api/")
    assert seen() == ["ada"]


def test_records__the_remaining_user_if_another_logs_out(signed_in: Client) -> None:
    User.objects.create_user("grace", password="pw")
    signed_in.get("/change/")
    assert seen() == ["grace"]


def test_records__a_user_whose_view_calls_asouvenez(user: User) -> None:
    client = AsyncClient()
    client.force_login(user)
    with time_machine.travel(datetime.now(timezone.utc), tick=False):
        assert run(client.get("/async_souvenez/")).content == b"added"
        assert run(client.get("/async_souvenez/")).content == b"rate-limited"


def test_records__a_user_whose_view_raises(signed_in: Client) -> None:
    signed_in.raise_request_exception = False
    assert signed_in.get("/broken/").status_code == 500
    assert seen() == ["ada"]


def test_records__a_session_once_an_hour_and_last_seen_by_the_minute(
    signed_in: Client, user: User
) -> None:
    with time_machine.travel(datetime.now(timezone.utc), tick=False) as traveller:
        start = datetime.now(timezone.utc)
        for _ in range(60):
            signed_in.get("/plain/")
            traveller.shift(MINUTE)
        assert 1 <= len(seen()) <= 2  # this hour may span two hours of the clock
        newest = last_seen(user)
        assert newest is not None
        assert newest >= site(start + 58 * MINUTE).replace(microsecond=0)


# The response and the session show nothing of it


@pytest.mark.parametrize("view", ["plain", "stream", "async_plain"])
def test_response__of_a_view_that_ignores_the_user_does_not_vary(
    signed_in: Client, view: str
) -> None:
    response = signed_in.get(f"/{view}/")
    assert seen() == ["ada"]
    assert "Vary" not in response.headers
    assert not response.cookies


@pytest.mark.parametrize("view", ["plain", "who", "secret", "by_token", "stream", "leave"])
def test_response__is_the_same_as_without_the_middleware(
    user: User, view: str, settings: Any
) -> None:
    def headers() -> dict[str, str]:
        client = Client(headers={"Token": "ada"})
        client.force_login(user)
        response = client.get(f"/{view}/")
        return {**response.headers, "cookies": response.cookies.output()}

    settings.SESSION_SAVE_EVERY_REQUEST = False
    with_it = headers()
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "souvenirs" not in name]
    assert headers() == with_it


def test_session__is_not_written_when_secret_key_rotates(signed_in: Client) -> None:
    before = list(Session.objects.values())
    rotated = {"SECRET_KEY": "another", "SECRET_KEY_FALLBACKS": [settings.SECRET_KEY]}
    with override_settings(**rotated):
        response = signed_in.get("/plain/")
    assert seen() == ["ada"]
    assert list(Session.objects.values()) == before
    assert not response.cookies


def test_session__of_a_changed_password_records_nobody_and_is_not_flushed(
    signed_in: Client, user: User
) -> None:
    user.set_password("another")
    user.save()
    signed_in.get("/plain/")
    assert seen() == []
    assert Session.objects.count() == 1


def test_session__of_a_deleted_user_records_nobody(signed_in: Client, user: User) -> None:
    user.delete()
    assert signed_in.get("/plain/").status_code == 200
    assert seen() == []


def test_session__expired_records_nobody(signed_in: Client) -> None:
    Session.objects.update(expire_date=site(NOON))
    signed_in.get("/plain/")
    assert seen() == []


def test_session__of_a_removed_backend_records_nobody(signed_in: Client) -> None:
    with override_settings(AUTHENTICATION_BACKENDS=["tests.test_middleware.NoBackend"]):
        signed_in.get("/plain/")
    assert seen() == []


@pytest.mark.parametrize("engine", ["db", "cache", "cached_db", "file", "signed_cookies"])
def test_session__of_any_engine(user: User, engine: str, tmp_path: Any) -> None:
    with override_settings(
        SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}",
        SESSION_FILE_PATH=str(tmp_path),
    ):
        client = Client()
        client.force_login(user)
        files = sorted(tmp_path.iterdir())
        response = client.get("/plain/")
        assert seen() == ["ada"]
        assert "Vary" not in response.headers
        forged = Client()
        forged.cookies[settings.SESSION_COOKIE_NAME] = "forged" * 6
        response = forged.get("/plain/")
        assert seen() == ["ada"]
        assert not response.cookies
        assert sorted(tmp_path.iterdir()) == files


SIGNED = "django.contrib.sessions.backends.signed_cookies"


def test_session__in_a_cookie_that_changes_costs_no_query(
    user: User, django_assert_num_queries: Any
) -> None:
    with override_settings(SESSION_ENGINE=SIGNED, SESSION_SAVE_EVERY_REQUEST=True):
        client = Client()
        client.force_login(user)
        cookies, now = set(), datetime.now(timezone.utc)
        for seconds in range(5):
            with (
                time_machine.travel(now.replace(second=seconds), tick=False),
                django_assert_num_queries(0) if seconds else nullcontext(),
            ):
                client.get("/visited/")
            cookies.add(client.cookies[settings.SESSION_COOKIE_NAME].value)
        assert len(cookies) == 5
        assert seen() == ["ada"]
        # Another user in the same browser
        client.force_login(User.objects.create(username="bob"))
        client.get("/plain/")
        assert seen() == ["ada", "bob"]
        # No session, and a forged cookie that must not cause a query
        client.logout()
        client.cookies[settings.SESSION_COOKIE_NAME] = "forged:by:me"
        with django_assert_num_queries(0):
            client.get("/plain/")
        assert seen() == ["ada", "bob"]


def test_session__in_a_constant_cookie_takes_one_look_up(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        override_settings(SESSION_ENGINE=SIGNED, SESSION_SAVE_EVERY_REQUEST=False),
        time_machine.travel(datetime.now(timezone.utc), tick=False),
    ):
        client = Client()
        client.force_login(user)
        client.get("/plain/")
        assert seen() == ["ada"]
        monkeypatch.setattr(sessions, "signed_in_by_cookie", lambda *args: pytest.fail("read it"))
        client.get("/plain/")


# Cost


def test_cost__a_limited_request_is_free(
    signed_in: Client, results: list[str], django_assert_num_queries: Any, monkeypatch: Any
) -> None:
    with time_machine.travel(datetime.now(timezone.utc), tick=False):
        signed_in.get("/plain/")
        results.clear()
        monkeypatch.setattr(throttle, "_cache", lambda: pytest.fail("read the cache"))
        with django_assert_num_queries(0):
            for _ in range(5):
                signed_in.get("/plain/")
    assert results == []
    flush_hits()
    assert results == ["rate-limited"] * 5


def test_cost__a_flood_of_invented_cookies_takes_few_queries(
    client: Client, django_assert_max_num_queries: Any
) -> None:
    at_noon = time_machine.travel(NOON, tick=False)
    with at_noon, django_assert_max_num_queries(sessions.LOOKUPS_PER_SECOND):
        for number in range(500):
            client.cookies[settings.SESSION_COOKIE_NAME] = f"{number:032d}"
            client.get("/plain/")


def test_cost__an_invented_cookie_is_looked_up_once_a_minute(
    client: Client, django_assert_num_queries: Any
) -> None:
    client.cookies[settings.SESSION_COOKIE_NAME] = "f" * 32
    with time_machine.travel(NOON, tick=False) as traveller:
        with django_assert_num_queries(1):
            for _ in range(5):
                client.get("/plain/")
        traveller.shift(MINUTE)
        with django_assert_num_queries(1):
            client.get("/plain/")


def test_cost__an_ended_session_is_looked_up_once_a_minute(
    signed_in: Client, django_assert_num_queries: Any
) -> None:
    with time_machine.travel(datetime.now(timezone.utc), tick=False) as traveller:
        signed_in.get("/plain/")
        Session.objects.all().delete()
        traveller.shift(MINUTE)
        with django_assert_num_queries(1):
            for _ in range(5):
                signed_in.get("/plain/")


def test_cost__a_flood_does_not_stop_a_valid_session_from_being_recorded(
    signed_in: Client, client: Client, user: User
) -> None:
    now = datetime.now(timezone.utc).replace(second=1, microsecond=0) + MINUTE
    with time_machine.travel(now, tick=False) as traveller:
        signed_in.get("/plain/")
        traveller.shift(2 * MINUTE)
        attacker = Client()
        for number in range(100):
            attacker.cookies[settings.SESSION_COOKIE_NAME] = f"{number:032d}"
            attacker.get("/plain/")
        signed_in.get("/plain/")
        assert last_seen(user) == site(now + 2 * MINUTE)


def test_memory__contains_no_cookie_and_no_identity(signed_in: Client, user: User) -> None:
    signed_in.get("/plain/")
    cookie = signed_in.cookies[settings.SESSION_COOKIE_NAME].value
    ((digest, handled),) = memory.recent_sessions.young.items()
    assert cookie.encode() not in digest
    assert all(isinstance(value, float) for value in handled)


# Failures


@pytest.fixture
def broken_database() -> Iterator[list[bool]]:
    """Statements on souvenirs' tables fail while the list contains True."""
    state = [True]

    def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if state[0] and "souvenirs_" in sql:
            raise OperationalError("the server is gone")
        return execute(sql, params, many, context)

    with ours().execute_wrapper(refuse):
        yield state


def test_failure__of_the_database_leaves_the_response_alone(
    signed_in: Client, broken_database: list[bool], results: list[str], caplog: Any
) -> None:
    for _ in range(5):
        response = signed_in.get("/who/")
        assert (response.status_code, response.content) == (200, b"ada")
    assert results == ["failed"] * 5
    (record,) = (r for r in caplog.records if r.name == "souvenirs")
    assert record.levelno == logging.ERROR
    assert "the server is gone" in record.message


def test_failure__of_conflicting_transactions_does_not_open_the_breaker(
    signed_in: Client, user: User, client: Client
) -> None:
    state = ["deadlock detected"]

    def refuse(execute: Any, sql: str, *args: Any) -> Any:
        if "souvenirs_" in sql and state:
            raise OperationalError(state.pop()) from OSError(1213, "Deadlock found")
        return execute(sql, *args)

    with ours().execute_wrapper(refuse):
        signed_in.get("/who/")
        signed_in.get("/who/")
    assert seen() == ["ada"]


def test_failure__without_a_query_does_not_probe(
    signed_in: Client, broken_database: list[bool]
) -> None:
    signed_in.get("/who/")
    assert not failures.breaker.allows()
    failures.note_failure(ZeroDivisionError())
    assert not failures.breaker.allows()


def test_failure__is_over_when_the_database_is_back(
    signed_in: Client, broken_database: list[bool], monkeypatch: Any
) -> None:
    now = [1000.0]
    monkeypatch.setattr("souvenirs.breaker.time.monotonic", lambda: now[0])
    signed_in.get("/who/")
    broken_database[0] = False
    signed_in.get("/who/")
    assert seen() == []  # the breaker is open: nobody waits for a server that is down
    now[0] += PROBE_SECONDS
    signed_in.get("/who/")
    assert seen() == ["ada"]


def test_failure__of_any_kind_leaves_the_response_alone(
    signed_in: Client, monkeypatch: Any, results: list[str]
) -> None:
    def explode(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(tasks, "record", explode)
    assert signed_in.get("/who/").content == b"ada"
    monkeypatch.setattr(tasks, "loaded_user_pk", explode)
    assert signed_in.get("/who/").content == b"ada"
    assert results == ["failed"] * 2


def test_failure__of_one_users_row_does_not_stop_the_others(
    signed_in: Client, user: User, client: Client
) -> None:
    class Ghost(User):
        class Meta:
            proxy = True
            app_label = "tests"

    request = HttpRequest()
    request.user = Ghost(pk=NOBODY, username="ghost")
    todo = tasks.next_step(request, HttpResponse())
    assert todo is not None
    tasks.run_safely(todo)
    signed_in.get("/who/")
    assert seen() == ["ada"]


# The hook


def nobody(request: HttpRequest, response: HttpResponse) -> bool:
    return False


def not_impersonated(request: HttpRequest, response: HttpResponse) -> bool:
    return "hijack_history" not in request.session


def only_by_get(request: HttpRequest, response: HttpResponse) -> bool:
    return request.method == "GET" and response.status_code == 200


def explode(request: HttpRequest, response: HttpResponse) -> bool:
    raise ZeroDivisionError


@pytest.fixture
def hook(settings: Any) -> Callable[[Callable[..., bool]], None]:
    def use(function: Callable[..., bool]) -> None:
        settings.SOUVENIRS_SHOULD_RECORD = f"{__name__}.{function.__name__}"

    return use


def test_hook__refusal_skips_the_request(signed_in: Client, hook: Any, results: list[str]) -> None:
    hook(nobody)
    signed_in.get("/who/")
    assert (seen(), results) == ([], ["skipped"])


def test_hook__gets_request_and_response(signed_in: Client, hook: Any) -> None:
    hook(only_by_get)
    signed_in.post("/who/")
    assert seen() == []
    signed_in.get("/who/")
    assert seen() == ["ada"]


@pytest.mark.parametrize("view", ["plain", "who"])
@pytest.mark.parametrize("is_impersonated", [True, False])
def test_hook__may_read_the_session_and_the_response_does_not_vary(
    signed_in: Client, hook: Any, view: str, is_impersonated: bool
) -> None:
    if is_impersonated:
        session = signed_in.session
        session["hijack_history"] = ["1"]
        session.save()
    hook(not_impersonated)
    response = signed_in.get(f"/{view}/")
    assert seen() == ([] if is_impersonated else ["ada"])
    assert ("Vary" in response.headers) == (view == "who")
    assert not response.cookies


def test_hook__may_read_an_expired_session_without_deleting_its_cookie(
    signed_in: Client, hook: Any
) -> None:
    Session.objects.update(expire_date=site(NOON))
    hook(not_impersonated)
    assert not signed_in.get("/plain/").cookies


class NamesUser:
    """Reads request.user on the way out, as middleware outside ours may do."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response["X-User"] = request.user.get_username()
        return response


def is_grace(request: HttpRequest, response: HttpResponse) -> bool:
    return bool(request.user.get_username() == "grace")


def test_hook__reading_the_user_does_not_hide_a_later_reading(
    signed_in: Client, hook: Any, settings: Any
) -> None:
    hook(is_grace)
    *before, ours = settings.MIDDLEWARE
    settings.MIDDLEWARE = [*before, f"{__name__}.NamesUser", ours]
    response = signed_in.get("/plain/")
    assert (response["X-User"], response["Vary"]) == ("ada", "Cookie")


@pytest.mark.parametrize("view", ["leave", "leave_api"])
def test_hook__sees_the_user_who_logs_out(signed_in: Client, hook: Any, view: str) -> None:
    hook(is_grace)
    signed_in.get(f"/{view}/")
    assert seen() == []


def test_hook__sees_the_session_of_the_user_who_logs_out(signed_in: Client, hook: Any) -> None:
    session = signed_in.session
    session["hijack_history"] = ["1"]
    session.save()
    hook(not_impersonated)
    signed_in.get("/leave/")
    assert seen() == []
    assert not Session.objects.exists()


def no_such_user(request: HttpRequest, response: HttpResponse) -> bool:
    raise User.DoesNotExist


def test_hook__raising_does_not_exist_is_logged(
    signed_in: Client, hook: Any, results: list[str]
) -> None:
    hook(no_such_user)
    signed_in.get("/who/")
    assert (seen(), results) == ([], ["failed"])


def test_hook__raising_leaves_the_response_alone(
    signed_in: Client, hook: Any, results: list[str]
) -> None:
    hook(explode)
    assert signed_in.get("/who/").content == b"ada"
    assert (seen(), results) == ([], ["failed"])


async def says_no_later(request: HttpRequest, response: HttpResponse) -> bool:
    return False


def test_hook__async_refuses_and_is_logged_once(
    signed_in: Client, hook: Any, results: list[str], caplog: Any
) -> None:
    hook(says_no_later)
    for _ in range(3):
        assert signed_in.get("/who/").content == b"ada"
    assert (seen(), results) == ([], ["failed"] * 3)
    (record,) = (record for record in caplog.records if record.name == "souvenirs")
    assert "SOUVENIRS_SHOULD_RECORD must not be async" in record.message


def test_hook__is_not_called_without_anything_to_record(client: Client, hook: Any) -> None:
    hook(explode)
    client.get("/who/")
    assert failures.breaker._unlogged == 0
    assert not failures.breaker._log_at


# Sync and async


def test_is_async__like_the_wrapped_view() -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    assert iscoroutinefunction(middleware.SouvenirsMiddleware(view))
    assert not iscoroutinefunction(middleware.SouvenirsMiddleware(plain))


@pytest.mark.parametrize("view", ["async_plain", "async_who", "plain", "who"])
def test_async__records_a_signed_in_user(user: User, view: str) -> None:
    client = AsyncClient()
    client.force_login(user)
    response = run(client.get(f"/{view}/"))
    assert response.status_code == 200
    assert seen() == ["ada"]


def test_async__a_limited_request_needs_no_thread(user: User, monkeypatch: Any) -> None:
    async def visit() -> None:
        request = HttpRequest()
        request.user = user

        async def view(request: HttpRequest) -> HttpResponse:
            return HttpResponse()

        await middleware.SouvenirsMiddleware(view)(request)  # type: ignore[misc]

    run(visit())
    assert seen() == ["ada"]
    monkeypatch.setattr(middleware, "sync_to_async", lambda _: pytest.fail("used a thread"))
    run(visit())
