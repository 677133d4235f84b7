"""The recipes in docs/recording.md, run as they are written there, with the packages that they are
for."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as site_settings
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import clear_url_caches, include, path
from loginas import settings as loginas_settings
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from souvenirs.models import Souvenir
from tests.people import User, with_databases

DOCS = Path(__file__).parent.parent / "docs" / "recording.md"

pytestmark = [
    with_databases,
    pytest.mark.urls(__name__),
    # django-hijack and the recipe for staff need the fields of Django's default user model
    pytest.mark.where(not {"uuid", "string"} & site_settings.SHAPE),
]


class Token(BaseAuthentication):
    """Like rest_framework.authtoken, which has the token in the header; here it is the user's
    name."""

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        scheme, _, name = request.headers.get("Authorization", "").partition(" ")
        return (User.objects.get(username=name), None) if scheme == "Token" else None


class Api(APIView):
    authentication_classes = [Token, SessionAuthentication]
    permission_classes = [IsAuthenticated]

    def get(self, request: Request) -> Response:
        return Response({"user": request.user.username})


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("a page")


def whoami(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.user))


urlpatterns = [
    path("whoami/", whoami),
    path("page/", page),
    path("healthz/", page),
    path("api/", Api.as_view()),
    path("hijack/", include("hijack.urls")),
]


def recipes() -> dict[str, Callable[..., bool]]:
    """The functions in the docs, by the bold text before them ("" for the first)."""
    found = {}
    blocks = re.split(r"\n(?=\*\*)", DOCS.read_text().split("## Which requests count")[1])
    for block in blocks:
        code = "\n".join(line for line in block.splitlines() if line.startswith("    "))
        title = re.match(r"\*\*(.+?)\*\*", block)
        if "def should_record" in code:
            scope: dict[str, Any] = {}
            exec(textwrap.dedent(code), scope)
            found[title[1].rstrip(".") if title else ""] = scope["should_record"]
    return found


RECIPES = recipes()


@pytest.fixture
def use(settings: Any) -> Callable[[str], None]:
    def recipe(title: str) -> None:
        globals()["should_record"] = RECIPES[title]
        settings.SOUVENIRS_SHOULD_RECORD = f"{__name__}.should_record"

    return recipe


@pytest.fixture
def client() -> Client:
    client = Client()
    client.force_login(User.objects.create_user("ada", password="pw"))
    return client


def seen() -> list[str]:
    names = {user.pk: user.username for user in User.objects.all()}
    return sorted(names[row.user_id] for row in Souvenir.objects.all())


def test_recipes__are_all_tested() -> None:
    assert sorted(RECIPES) == [
        "", "API clients", "Bots and health checks", "Impersonation",
        "Impersonation by django-impersonate", "Staff",
    ]  # fmt: skip


def test_paths(use: Callable[[str], None], client: Client) -> None:
    use("")
    client.get("/healthz/")
    assert seen() == []
    client.get("/page/")
    assert seen() == ["ada"]


def test_staff(use: Callable[[str], None], client: Client) -> None:
    use("Staff")
    staff = Client()
    staff.force_login(User.objects.create(username="root", is_staff=True))
    response = staff.get("/page/")
    client.get("/page/")
    assert seen() == ["ada"]
    assert "Vary" not in response.headers


def test_bots(use: Callable[[str], None], client: Client) -> None:
    use("Bots and health checks")
    client.get("/page/", headers={"User-Agent": "Uptime-Monitor/1.0"})
    assert seen() == []
    client.get("/page/", headers={"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/142.0"})
    assert seen() == ["ada"]


def test_impersonation__by_django_hijack(use: Callable[[str], None], settings: Any) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "hijack"]
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "hijack.middleware.HijackUserMiddleware"]
    settings.LOGIN_REDIRECT_URL = "/page/"
    use("Impersonation")
    ada = User.objects.create_user("ada", password="pw")
    root = User.objects.create_superuser("root", password="pw")
    client, own = Client(), Client()
    client.force_login(root)
    client.post("/hijack/acquire/", {"user_pk": ada.pk})
    assert int(client.session["_auth_user_id"]) == ada.pk
    client.get("/page/")
    assert "ada" not in seen()
    own.force_login(ada)
    own.get("/page/")
    assert "ada" in seen()


@pytest.mark.parametrize("is_outside", [True, False])
@pytest.mark.parametrize("has_recipe", [True, False])
def test_impersonation__by_django_impersonate(
    use: Callable[[str], None],
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    has_recipe: bool,
    is_outside: bool,
) -> None:
    ours = settings.MIDDLEWARE.index("souvenirs.middleware.SouvenirsMiddleware")
    settings.MIDDLEWARE = [*settings.MIDDLEWARE]
    settings.MIDDLEWARE.insert(
        ours + (not is_outside), "impersonate.middleware.ImpersonateMiddleware"
    )
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "impersonate"]
    settings.IMPERSONATE = {"DISABLE_LOGGING": True}  # otherwise it needs a table
    # after it is installed
    more = [*urlpatterns, path("impersonate/", include("impersonate.urls"))]
    monkeypatch.setitem(globals(), "urlpatterns", more)
    clear_url_caches()
    if has_recipe:
        use("Impersonation by django-impersonate")
    ada = User.objects.create_user("ada", password="pw")
    root = User.objects.create_superuser("root", password="pw")
    client, own = Client(), Client()
    client.force_login(root)
    client.get(f"/impersonate/{ada.pk}/")
    assert client.get("/whoami/").content == b"ada"
    assert ("ada" in seen()) == (not has_recipe)
    own.force_login(ada)
    own.get("/page/")
    assert "ada" in seen()


def test_impersonation__by_django_loginas(use: Callable[[str], None], client: Client) -> None:
    use("Impersonation")
    session = client.session
    session[loginas_settings.USER_SESSION_FLAG] = "1"
    session.save()
    client.get("/page/")
    assert seen() == []


@pytest.mark.parametrize("is_session", [True, False])
def test_rest_framework__users_of_tokens_and_sessions_are_recorded(is_session: bool) -> None:
    user = User.objects.create_user("ada", password="pw")
    client = Client()
    if is_session:
        client.force_login(user)
        response = client.get("/api/")
    else:
        response = client.get("/api/", headers={"Authorization": "Token ada"})
    assert response.json() == {"user": "ada"}
    assert seen() == ["ada"]


def test_api_clients(use: Callable[[str], None]) -> None:
    User.objects.create_user("ada", password="pw")
    use("API clients")
    Client().get("/api/", headers={"Authorization": "Token ada"})
    assert seen() == []
