"""SOUVENIRS_GET_USER: who makes a request for which request.user has no user, with the real
libraries."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

from souvenirs.models import Souvenir
from tests.conftest import SIGN_IN
from tests.people import User, run, with_databases

DOCS = Path(__file__).parent.parent / "docs" / "recording.md"

answers: list[Any] = []


def get_user(request: HttpRequest, response: HttpResponse) -> Any:
    answer = answers[-1]
    return answer() if callable(answer) else answer


async def get_user_later() -> Any:
    return None


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("the same for everybody")


urlpatterns = [path("", page)]


def recipe(library: str) -> str:
    """The hook that the docs recommend for a library."""
    (block,) = re.findall(rf"(?ms)^\*\*{library}\*\*.+?(?=^\*\*|^## |^A login)", DOCS.read_text())
    return textwrap.dedent("\n".join(re.findall(r"(?m)^    (?!SOUV|#).*$", block)))


@pytest.fixture
def user() -> Any:
    return User.objects.create(username="ada")


def seen() -> list[str]:
    rows = Souvenir.objects.order_by("pk").values_list("user_id", flat=True)
    names = dict(get_user_model().objects.values_list("pk", "username"))
    return [names[key] for key in rows]


@with_databases
@pytest.mark.urls(__name__)
class TestHook:
    @pytest.fixture(autouse=True)
    def hook(self, settings: Any) -> None:
        settings.SOUVENIRS_GET_USER = "tests.test_get_user.get_user"

    @pytest.mark.parametrize("is_async", [False, True])
    @pytest.mark.parametrize("by", [lambda user: user, lambda user: user.pk])
    def test_names_the_user(self, user: Any, by: Callable[[Any], Any], is_async: bool) -> None:
        answers.append(by(user))
        response = run(AsyncClient().get("/")) if is_async else Client().get("/")
        assert response.status_code == 200
        assert "Vary" not in response.headers
        assert seen() == ["ada"]

    def test_may_query_under_asgi(self, user: Any) -> None:
        answers.append(lambda: User.objects.get(username="ada"))
        run(AsyncClient().get("/"))
        assert seen() == ["ada"]

    @pytest.mark.parametrize("nobody", [None, False, 1.5, {}, object(), Souvenir(pk=1)])
    def test_leaves_it_to_the_middleware(self, user: Any, nobody: Any) -> None:
        answers.append(nobody)
        Client().get("/")
        assert seen() == []
        client = Client()
        client.force_login(user)
        client.get("/")
        assert seen() == ["ada"]

    @pytest.mark.parametrize("wrong", [lambda: 1 / 0, get_user_later])
    def test_failure_does_no_harm(self, wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
        answers.append(wrong)
        for _ in range(3):
            assert Client().get("/").status_code == 200
        assert seen() == []
        assert [record.name for record in caplog.records] == ["souvenirs"]


# With the real libraries

SITE = """
import warnings
warnings.simplefilter("ignore")  # theirs
SOUVENIRS_GET_USER = "site_hook.get_user"
"""
START = """
import json, sys, types
from datetime import timedelta
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import include, path
from django.utils import timezone
from souvenirs.models import Souvenir
urls = sys.modules["site_urls"] = types.ModuleType("site_urls")
ada = User.objects.create_user("ada", "ada@example.org", "a password of Ada's")
def seen():
    print(*Souvenir.objects.values_list("user__username", flat=True))
"""
NINJA = """
from ninja import NinjaAPI
from ninja.security import APIKeyHeader, HttpBearer

class Bearer(HttpBearer):
    def authenticate(self, request, token):
        return User.objects.filter(username=token).first()

class Key(APIKeyHeader):
    def authenticate(self, request, key):
        return key

api = NinjaAPI()

@api.get("/who", auth=[Bearer(), Key()])
def who(request):
    return {"who": str(request.auth), "user": str(request.user)}

urls.urlpatterns = [path("api/", api.urls)]
assert Client().get("/api/who").status_code == 401
assert Client(headers={"key": "1"}).get("/api/who").status_code == 200
seen()
answer = Client(headers={"Authorization": "Bearer ada"}).get("/api/who").json()
assert answer == {"who": "ada", "user": "AnonymousUser"}
seen()
"""
OAUTH = """
from oauth2_provider.models import AccessToken
from oauth2_provider.views.generic import ProtectedResourceView

class Who(ProtectedResourceView):
    def get(self, request):
        return HttpResponse(f"{request.resource_owner} {request.user}")

urls.urlpatterns = [path("who/", Who.as_view())]
AccessToken.objects.create(
    user=ada, token="a-token", expires=timezone.now() + timedelta(hours=1), scope="read"
)
assert Client().get("/who/").status_code == 403
seen()
answer = Client(headers={"Authorization": "Bearer a-token"}).get("/who/")
assert answer.text == "ada AnonymousUser", answer
seen()
"""
ALLAUTH = """
urls.urlpatterns = [path("_allauth/", include("allauth.headless.urls"))]
def log_in(password):
    return Client().post(
        "/_allauth/app/v1/auth/login",
        json.dumps({"username": "ada", "password": password}),
        content_type="application/json",
    ).status_code
assert log_in("wrong") == 400
seen()
assert log_in("a password of Ada's") == 200
seen()
"""


@pytest.mark.own_site
@pytest.mark.parametrize(
    ("library", "code", "settings"),
    [
        ("django-ninja", NINJA, ""),
        (
            "django-oauth-toolkit",
            OAUTH,
            'INSTALLED_APPS += ["oauth2_provider"]\n'
            'OAUTH2_PROVIDER = {"SCOPES": {"read": "read"}}\n',
        ),
        (
            "",
            ALLAUTH,
            'INSTALLED_APPS += ["allauth", "allauth.account", "allauth.headless"]\n'
            'MIDDLEWARE.insert(2, "allauth.account.middleware.AccountMiddleware")\n'
            "SOUVENIRS_GET_USER = None\n"
            'ACCOUNT_EMAIL_VERIFICATION = "none"\n'
            "HEADLESS_ONLY = True\n"
            'AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]\n',
        ),
    ],
    ids=["ninja", "oauth_toolkit", "allauth_headless"],
)
def test_library__is_recorded_by_its_recipe(
    run_site: Callable[..., str], tmp_path: Path, library: str, code: str, settings: str
) -> None:
    (tmp_path / "site_hook.py").write_text(recipe(library) if library else "")
    assert run_site(START + code, settings=SIGN_IN + SITE + settings) == "\nada\n"
