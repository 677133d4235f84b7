"""Who counts as a user: the principals of requests, keys that no user has, reused keys, and cookies
that are not sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
import time_machine
from django.conf import settings as django_settings
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.models import Session
from django.db import DatabaseError, connection, models, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext, isolate_apps
from django.urls import path
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.authentication import JWTStatelessUserAuthentication
from rest_framework_simplejwt.tokens import AccessToken

from souvenirs.control import asouvenez, last_seen, souvenez
from souvenirs.models import LastSeen, Souvenir
from souvenirs.recording import failures, memory, sessions, turnover
from souvenirs.recording.results import flush_hits
from souvenirs.recording.throttle import throttle
from tests import test_throttle
from tests.people import NOBODY, User, ours, run, with_databases

pytestmark = [with_databases, pytest.mark.urls(__name__)]

shared_cache = test_throttle.shared_cache

NOON = datetime(2024, 5, 14, 12, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)


# A site


class Device(models.Model):
    """A device signs in too. Its keys are its own, and it never has a table here."""

    id: Any = models.CharField(max_length=150, primary_key=True)
    is_authenticated = True

    class Meta:
        app_label = "tests"

    def __str__(self) -> str:
        return f"device {self.pk}"


class DeviceBackend:
    def get_user(self, key: Any) -> Device:
        return Device(pk=key)


principals: list[Any] = []  # the last one is what requests authenticate as


class Authentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[Any, None]:
        return principals[-1], None


class Api(APIView):
    authentication_classes = [Authentication]

    def get(self, request: Request) -> Response:
        assert request.user is principals[-1]
        return Response("api")


class TokenApi(APIView):
    """The service trusts the token: it does not load the user, who may be stored elsewhere."""

    authentication_classes = [JWTStatelessUserAuthentication]

    def get(self, request: Request) -> Response:
        assert request.user.is_authenticated
        return Response("api")


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


urlpatterns = [
    path("api/", Api.as_view()),
    path("token/", TokenApi.as_view()),
    path("plain/", plain),
]


class SessionStore(SessionBase):
    """A session engine that cannot handle any of these keys."""

    def load(self) -> dict[str, Any]:
        raise LookupError(self.session_key)


@pytest.fixture
def user() -> Any:
    return User.objects.create(username="ada")


@pytest.fixture
def traveller() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(NOON, tick=False) as traveller:
        yield traveller


def errors(caplog: Any) -> list[str]:
    return [record.message for record in caplog.records if record.name == "souvenirs"]


def recorded() -> list[Any]:
    return list(Souvenir.objects.values_list("user_id", flat=True))


@contextmanager
def no_queries() -> Iterator[None]:
    with CaptureQueriesContext(connection) as users, CaptureQueriesContext(ours()) as queries:
        yield
    assert [*users.captured_queries, *queries.captured_queries] == []


def visit_by_token(user_pk: Any) -> None:
    token = AccessToken()
    token["user_id"] = user_pk if isinstance(user_pk, int) else str(user_pk)
    response = Client(headers={"Authorization": f"Bearer {token}"}).get("/token/")
    assert response.status_code == 200


# What a request authenticates as


def visit_as(principal: Any) -> None:
    principals.append(principal)
    assert Client().get("/api/").status_code == 200


@pytest.mark.parametrize("is_known", [True, False])
def test_principal__of_another_model_is_not_recorded(
    user: Any, results: list[str], caplog: Any, is_known: bool
) -> None:
    if is_known:  # in this process, which must not take the device for another visit of the user
        visit_as(user)
    results.clear()
    visit_as(Device(pk=user.pk))
    flush_hits()
    assert results == errors(caplog) == []
    assert recorded() == [user.pk] * is_known


HUGE = [2**63] if isinstance(User._meta.pk, models.IntegerField) else []
NO_KEYS = [*HUGE, "\0", "\udc80", object()]


@pytest.mark.parametrize(
    "principal",
    [
        {"sub": "1", "pk": 1},
        SimpleNamespace(is_authenticated=True),
        *(
            SimpleNamespace(is_authenticated=True, pk=pk)
            for pk in [None, [1], {"id": 1}, {1}, *NO_KEYS]
        ),
    ],
)
def test_principal__without_a_users_key_is_not_recorded(
    results: list[str], caplog: Any, principal: Any
) -> None:
    visit_as(principal)
    assert results == errors(caplog) == []
    assert not LastSeen.objects.exists()


def test_principal__unsaved_user_is_not_recorded(results: list[str], caplog: Any) -> None:
    visit_as(User(username="new"))
    assert results == errors(caplog) == []


@pytest.mark.where("string" not in django_settings.SHAPE)
def test_principal__with_a_service_name_as_key_is_not_recorded(
    results: list[str], caplog: Any
) -> None:
    visit_by_token("billing-service")
    assert results == errors(caplog) == []


def test_principal__of_a_stateless_token_is_the_user(user: Any, results: list[str]) -> None:
    # so that tokens do not expire
    with time_machine.travel(datetime.now(timezone.utc), tick=False):
        visit_by_token(user.pk)
        with no_queries():
            visit_by_token(user.pk)
    flush_hits()
    assert recorded() == [user.pk]
    assert results == ["added", "rate-limited"]


def test_principal__of_another_model_in_a_session_is_not_recorded(
    user: Any, client: Client, settings: Any, results: list[str], caplog: Any
) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.DeviceBackend"]
    client.force_login(user, backend=f"{__name__}.DeviceBackend")
    client.get("/plain/")
    assert results == errors(caplog) == []
    with no_queries():
        client.get("/plain/")


def test_principal__of_a_model_that_inherits_from_the_user_model_is_that_user(user: Any) -> None:
    with isolate_apps("tests.users"):

        class Employee(User):  # type: ignore[misc]
            badge = models.CharField(max_length=9, primary_key=True)
            person = models.OneToOneField(User, models.CASCADE, parent_link=True)

            class Meta:
                app_label = "users"

        employee = Employee(badge="7", person=user, **{User._meta.pk.name: user.pk})
        visit_as(employee)
    assert recorded() == [user.pk]


@pytest.mark.parametrize("do", [souvenez, last_seen, lambda user: run(asouvenez(user))])
@pytest.mark.parametrize("is_known", [True, False])
def test_souvenez__of_another_model_is_an_error(
    user: Any, do: Callable[[Any], Any], is_known: bool
) -> None:
    if is_known:
        souvenez(user)
    with pytest.raises(TypeError, match=r"is an instance of tests\.Device, not of [a-z]+\.[A-Z]"):
        do(Device(pk=user.pk))
    assert recorded() == [user.pk] * is_known


@pytest.mark.parametrize("value", [{"pk": 1}, [1], SimpleNamespace(pk={}), b"ada", float("inf")])
def test_souvenez__of_an_invalid_key_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match="is neither a user nor a user's primary key"):
        souvenez(value)


@pytest.mark.parametrize("value", NO_KEYS)
def test_souvenez__of_a_value_that_no_key_has_is_an_error(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="is neither a user nor a user's primary key"):
        souvenez(value)


# Keys that no user has


def test_missing__is_looked_up_once_a_minute(results: list[str], caplog: Any) -> None:
    with time_machine.travel(datetime.now(timezone.utc), tick=False) as traveller:
        for _ in range(3):
            with CaptureQueriesContext(ours()) as queries:
                visit_by_token(NOBODY)
            statements = [query["sql"] for query in queries.captured_queries]
            assert statements
            assert not any(sql.startswith("INSERT") for sql in statements)
            with no_queries():
                for _ in range(3):
                    visit_by_token(NOBODY)
            traveller.shift(MINUTE)
    assert results == errors(caplog) == []


def test_missing__uses_up_no_ordinal(user: Any) -> None:
    souvenez(user)
    with time_machine.travel(datetime.now(timezone.utc), tick=False) as traveller:
        for _ in range(3):
            visit_by_token(NOBODY)
            with pytest.raises(User.DoesNotExist):
                souvenez(NOBODY)
            traveller.shift(MINUTE)
    other = User.objects.create(username="grace")
    souvenez(other)
    ids = dict(LastSeen.objects.values_list("user_id", "pk"))
    assert ids[other.pk] == ids[user.pk] + 1


def test_missing__is_forgotten_when_such_a_user_is_created(results: list[str]) -> None:
    visit_by_token(NOBODY)
    with transaction.atomic():
        User(pk=NOBODY, username=str(NOBODY)).save()
        # As if another thread, which does not see the new user yet, had looked up the key again
        memory.missing_users[NOBODY] = memory.missing_users[str(NOBODY)] = float("inf")
    visit_by_token(NOBODY)
    assert results == ["added"]
    assert recorded() == [NOBODY]


def test_missing__is_forgotten_within_a_minute_without_a_signal() -> None:
    with time_machine.travel(datetime.now(timezone.utc), tick=False) as traveller:
        visit_by_token(NOBODY)
        User.objects.bulk_create([User(pk=NOBODY, username=str(NOBODY))])  # sends no signal
        visit_by_token(NOBODY)
        assert recorded() == []
        traveller.shift(MINUTE)
        visit_by_token(NOBODY)
    assert recorded() == [NOBODY]


def test_missing__does_not_stop_souvenez_from_looking_again() -> None:
    visit_by_token(NOBODY)
    User.objects.bulk_create([User(pk=NOBODY, username=str(NOBODY))])
    assert souvenez(NOBODY) == "added"


def test_missing__of_a_session_is_looked_up_once_a_minute(
    user: Any, client: Client, monkeypatch: pytest.MonkeyPatch, results: list[str]
) -> None:
    """The authentication backend of a site with external users does not check that the user
    exists."""
    client.force_login(user)
    monkeypatch.setattr(sessions, "session_user", lambda session: User(pk=NOBODY))
    client.get("/plain/")
    with no_queries():
        client.get("/plain/")
    assert results == []


# Keys that another user gets


def make(key: Any) -> Any:
    user = User(pk=key, username="ada")
    user.save(force_insert=True)
    return user


def test_reused_key__of_a_deleted_user_is_recorded(user: Any) -> None:
    key = user.pk
    with time_machine.travel(datetime.now(timezone.utc), tick=False):
        visit_by_token(key)
        user.delete()
        assert recorded() == []
        make(key)
        visit_by_token(key)
        assert recorded() == [key]
        assert LastSeen.objects.get().user_id == key


@pytest.mark.parametrize(
    ("limit", "age"), [(True, timedelta(0)), (600, timedelta(0)), (True, timedelta(days=1))]
)
def test_reused_key__in_another_process_that_shares_the_cache(
    user: Any, shared_cache: Any, traveller: Any, limit: Any, age: timedelta
) -> None:
    key, when = user.pk, datetime.now(timezone.utc) - age
    assert souvenez(key, when, ratelimit=limit) == "added"
    user.delete()
    make(key)
    throttle.clear()  # as in another process
    assert souvenez(key, when, ratelimit=limit) == "added"
    throttle.clear()
    assert souvenez(key, when, ratelimit=limit) == "rate-limited"
    assert recorded() == [key]


def test_reused_key__without_a_signal(user: Any, shared_cache: Any, traveller: Any) -> None:
    key = user.pk
    souvenez(key)
    for model in (Souvenir, LastSeen, User):
        rows = model._base_manager.all()
        rows._raw_delete(rows.db)
    User.objects.bulk_create([User(pk=key, username="ada")])
    throttle.clear()
    assert souvenez(key) == "added"


@pytest.mark.parametrize("age", [timedelta(0), timedelta(days=1)])
def test_reused_key__keeps_a_claim_that_is_not_written_yet(
    user: Any, shared_cache: Any, traveller: Any, age: timedelta
) -> None:
    when = datetime.now(timezone.utc) - age
    with transaction.atomic(using=ours().alias):
        assert souvenez(user, when) == "added"
        throttle.clear()
        assert souvenez(user, when) == "rate-limited"
    assert recorded() == [user.pk]


def test_reused_key__of_proxies_and_of_models_that_inherit(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = []
    with isolate_apps("tests.users") as registry:

        class Person(User):  # type: ignore[misc]
            class Meta:
                proxy = True
                app_label = "users"

        class Employee(User):  # type: ignore[misc]
            class Meta:
                app_label = "users"

        monkeypatch.setattr(turnover, "apps", registry)
        for signal in (models.signals.post_save, models.signals.post_delete):
            monkeypatch.setattr(signal, "connect", lambda _, sender, **__: connected.append(sender))
        turnover.connect()
    assert set(connected) == {Person, Employee}


# Cookies

COOKIE = django_settings.SESSION_COOKIE_NAME
ODD = {
    "emoji": "😀" * 8,
    "latin1": "ÿ" * 32,
    "bytes": b"\xff\xfe\x80" * 8,
    "nul": '"\\000' + "a" * 31 + '"',  # quoted as in SimpleCookie
    "newline": '"\\012' + "a" * 31 + '"',
}


def visit_with(value: str | bytes) -> None:
    """Send the cookie as a server passes the header on, with bytes decoded as latin1."""
    raw = value if isinstance(value, bytes) else value.encode()
    response = Client().get("/plain/", HTTP_COOKIE=f"{COOKIE}={raw.decode('latin1')}")
    assert response.status_code == 200


IS_MYSQL = "mysql" in django_settings.DATABASES["default"]["ENGINE"]


@pytest.fixture(params=["utf8mb4", "utf8mb3", "latin1"] if IS_MYSQL else ["utf8"])
def session_table(request: Any) -> Iterator[str]:
    """The character set of the session table: MariaDB has several."""
    if IS_MYSQL:
        convert_sessions(request.param)
    yield request.param
    if IS_MYSQL:
        convert_sessions("utf8mb4")


def convert_sessions(charset: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE django_session CONVERT TO CHARACTER SET {charset}")


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_cookie__impossible_session_key_is_not_looked_up(
    user: Any, client: Client, session_table: str, results: list[str], caplog: Any, value: Any
) -> None:
    client.force_login(user)
    with no_queries():
        visit_with(value)
    assert results == errors(caplog) == []
    client.get("/plain/")
    assert recorded() == [user.pk]


def test_cookie__failed_look_up_does_not_stop_recording(
    user: Any, missing_table: Any, results: list[str], caplog: Any
) -> None:
    with missing_table(Session):
        visit_with("a" * 32)
        assert failures.breaker.allows()
        visit_by_token(user.pk)
    assert results == ["failed", "added"]
    assert len(errors(caplog)) == 1


def test_cookie__failed_look_up_is_repeated_once_a_minute(
    missing_table: Any, results: list[str], traveller: Any
) -> None:
    with missing_table(Session):
        visit_with("a" * 32)
        failures.session_breaker.reset()
        with no_queries():
            for _ in range(3):
                visit_with("a" * 32)
        traveller.shift(MINUTE)
        visit_with("a" * 32)
    assert results == ["failed"] * 2


def test_cookie__is_looked_up_now_and_then_while_the_database_is_down(
    missing_table: Any, results: list[str]
) -> None:
    with missing_table(Session):
        visit_with("a" * 32)
        with no_queries():
            visit_with("b" * 32)
    assert results == ["failed"] * 2


def test_cookie__a_flood_of_failing_look_ups_is_capped(
    settings: Any, results: list[str], traveller: Any, caplog: Any
) -> None:
    settings.SESSION_ENGINE = __name__
    for number in range(200):
        visit_with(f"{number:032d}")
    assert results == ["failed"] * sessions.LOOKUPS_PER_SECOND
    assert len(errors(caplog)) == 1


@pytest.mark.where(IS_MYSQL)
def test_failure__of_text_that_does_not_fit_the_column_does_not_open_the_breaker() -> None:
    convert_sessions("latin1")
    try:
        with pytest.raises(DatabaseError) as caught:
            Session.objects.filter(session_key=ODD["emoji"]).exists()
        assert not failures.is_server_failure(caught.value)
    finally:
        convert_sessions("utf8mb4")
