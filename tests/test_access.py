from __future__ import annotations

import logging
from typing import Any

import pytest
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.test import Client, override_settings

from tests.people import User

pytestmark = pytest.mark.django_db(databases=list(settings.DATABASES))

TOKENS = ["the-old-one", "the-new-one"]


def scrape(client: Client, authorization: str | None = None, **extra: Any) -> Any:
    headers = {} if authorization is None else {"Authorization": authorization}
    return client.get("/metrics", headers=headers, **extra)


@pytest.mark.parametrize("setting", [TOKENS, tuple(TOKENS), TOKENS[0]])
def test_token__opens_the_page(setting: Any, client: Client) -> None:
    with override_settings(SOUVENIRS_METRICS_TOKEN=setting):
        for token in TOKENS if setting != TOKENS[0] else TOKENS[:1]:
            for scheme in ("Bearer", "bearer", "BEARER"):
                response = scrape(client, f"{scheme} {token}")
                assert response.status_code == 200
                assert "souvenirs_up 1.0" in response.text


@pytest.mark.parametrize(
    "authorization",
    [
        None, "", "Bearer", "Bearer ", "Bearer the-old-on", "Bearer the-old-one2", "the-old-one",
        "Basic the-old-one", "Bearer the-old-one, Bearer the-new-one", "Bearer the-old-one x",
        "Bearer b'the-old-one'", "Bearer \u00fc", "Bearer \udcff", "Bearer THE-OLD-ONE",
    ],
)  # fmt: skip
@override_settings(SOUVENIRS_METRICS_TOKEN=TOKENS)
def test_token__malformed_or_wrong_is_refused(authorization: str | None, client: Client) -> None:
    extra = {} if authorization is None else {"HTTP_AUTHORIZATION": authorization}
    response = client.get("/metrics", **extra)  # type: ignore[arg-type]
    assert response.status_code == 401
    assert response["WWW-Authenticate"] == 'Bearer realm="metrics"'
    assert response.content == b"Unauthorized\n"


@override_settings(SOUVENIRS_METRICS_TOKEN=TOKENS)
def test_token__is_required_from_signed_in_users_too(client: Client) -> None:
    client.force_login(User.objects.create(username="ada"))
    assert scrape(client).status_code == 401


@override_settings(SOUVENIRS_METRICS_TOKEN=TOKENS)
def test_token__is_compared_with_all_of_them(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return given == known

    monkeypatch.setattr("souvenirs_metrics.access.compare_digest", compare)
    assert scrape(client, f"Bearer {TOKENS[0]}").status_code == 200
    given = TOKENS[0].encode()
    assert compared == [(given, token.encode()) for token in TOKENS]


@pytest.mark.parametrize("setting", ["", [], [""]])
@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer "])
def test_token__empty_is_refused(setting: Any, authorization: str | None, client: Client) -> None:
    with override_settings(SOUVENIRS_METRICS_TOKEN=setting):
        assert scrape(client, authorization).status_code == 401


def test_token__unset_leaves_the_page_open(client: Client) -> None:
    assert scrape(client).status_code == 200


def from_inside(request: HttpRequest) -> bool:
    return str(request.META["REMOTE_ADDR"]).startswith("10.")


def broken(request: HttpRequest) -> bool:
    raise ZeroDivisionError("a secret of the site")


async def deny_later(request: HttpRequest) -> bool:
    return False


class DenierLater:
    async def __call__(self, request: HttpRequest) -> bool:
        return False


DENIES_LATER = DenierLater()


def deny_with_a_response(request: HttpRequest) -> HttpResponse:
    return HttpResponseForbidden()


def allow_with_a_number(request: HttpRequest) -> int:
    return 1


def return_nothing(request: HttpRequest) -> None:
    pass


@override_settings(SOUVENIRS_METRICS_AUTHORIZE=f"{__name__}.from_inside")
def test_authorize__decides(client: Client) -> None:
    assert scrape(client, REMOTE_ADDR="10.0.0.7").status_code == 200
    response = scrape(client, REMOTE_ADDR="192.0.2.7")
    assert (response.status_code, response.content) == (403, b"Forbidden\n")


@override_settings(SOUVENIRS_METRICS_AUTHORIZE=f"{__name__}.broken")
def test_authorize__refuses_and_logs_when_it_raises(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    response = scrape(client)
    assert (response.status_code, response.content) == (403, b"Forbidden\n")
    [line] = [record for record in caplog.records if record.name == "souvenirs_metrics"]
    assert line.levelno == logging.ERROR
    assert "ZeroDivisionError" in line.getMessage()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("deny_later", "coroutine"),
        ("DENIES_LATER", "coroutine"),
        ("deny_with_a_response", "HttpResponseForbidden"),
        ("allow_with_a_number", "int"),
        ("return_nothing", "NoneType"),
    ],
)
def test_authorize__allows_only_if_it_returns_true(
    name: str, kind: str, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with override_settings(SOUVENIRS_METRICS_AUTHORIZE=f"{__name__}.{name}"):
        response = scrape(client)
    assert (response.status_code, response.content) == (403, b"Forbidden\n")
    [line] = [record for record in caplog.records if record.name == "souvenirs_metrics"]
    assert f"not an object of type {kind}:" in line.getMessage()


def test_refusal__takes_no_query(client: Client, monkeypatch: Any) -> None:
    def collect(*args: Any) -> Any:
        raise AssertionError("collected")

    monkeypatch.setattr("souvenirs_metrics.exposition.render", collect)
    with override_settings(SOUVENIRS_METRICS_TOKEN=TOKENS):
        assert scrape(client).status_code == 401
