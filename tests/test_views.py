from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from django.conf import settings
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import include, path
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from souvenirs.models import LastSeen, Souvenir
from tests import servers
from tests.people import User, column, with_databases

RunSite = Callable[..., str]
MissingTable = Callable[[type], AbstractContextManager[None]]

in_transaction = pytest.mark.django_db(databases=list(settings.DATABASES))


def is_atomic(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(transaction.get_connection().in_atomic_block))


def names_of(page: str) -> set[str]:
    """The names of the samples on a text page."""
    return set(re.findall(r"^(\w+)", page, re.MULTILINE))


urlpatterns = [path("", include("souvenirs_metrics.urls")), path("atomic", is_atomic)]


@in_transaction
def test_metrics__text_by_default(client: Client) -> None:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "\nsouvenirs_up 1.0\n" in response.text


@in_transaction
def test_metrics__openmetrics_if_accepted(client: Client) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    response = client.get("/metrics", headers={"Accept": accept})
    assert response["Content-Type"].startswith("application/openmetrics-text; version=1.0.0;")
    names = {family.name for family in parse_openmetrics(response.text)}
    assert {"souvenirs_up", "souvenirs_build", "souvenirs_records"} <= names


@in_transaction
@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=abc",
        "text/plain;version=1.x",
        "text/plain;q=",
        "é/ü;version=\u00b2.0.0",
        ";;;,,,===",
    ],
)
def test_metrics__malformed_accept_gets_text(accept: str, client: Client) -> None:
    response = client.get("/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    assert response["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


@in_transaction
def test_metrics__is_not_stored(client: Client) -> None:
    assert client.get("/metrics")["Cache-Control"] == "no-store"


@in_transaction
def test_metrics__head_has_the_headers_and_no_body(client: Client) -> None:
    response = client.head("/metrics")
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain")
    assert response.content == b""


@in_transaction
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_metrics__other_methods_are_not_allowed(method: str, client: Client) -> None:
    response = client.generic(method, "/metrics")
    assert response.status_code == 405
    assert response["Allow"] == "GET, HEAD"


@in_transaction
@pytest.mark.parametrize("accept", ["gzip", "deflate, gzip;q=0.5", "gzip, *;q=0"])
def test_metrics__gzip_if_accepted(accept: str, client: Client) -> None:
    plain = client.get("/metrics")
    assert "Content-Encoding" not in plain
    packed = client.get("/metrics", headers={"Accept-Encoding": accept})
    assert packed["Content-Encoding"] == "gzip"
    assert len(packed.content) < len(plain.content) / 2
    assert names_of(gzip.decompress(packed.content).decode()) == names_of(plain.text)


@in_transaction
@pytest.mark.parametrize(
    "accept", ["", "identity", "deflate, br", "gzip;q=0", "deflate, gzip ; q=0.000, br", "gzipped"]
)
def test_metrics__no_gzip_otherwise(accept: str, client: Client) -> None:
    response = client.get("/metrics", headers={"Accept-Encoding": accept})
    assert "Content-Encoding" not in response
    assert "\nsouvenirs_up 1.0\n" in response.text


@in_transaction
def test_metrics__gzip_middleware_compresses_nothing_twice(client: Client) -> None:
    middleware = ["django.middleware.gzip.GZipMiddleware", *settings.MIDDLEWARE]
    with override_settings(MIDDLEWARE=middleware):
        response = client.get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert "souvenirs_up 1.0" in gzip.decompress(response.content).decode()


@in_transaction
@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("name[]=souvenirs_up", {"souvenirs_up"}),
        (
            "name[]=souvenirs_up&name[]=souvenirs_active_users",
            {"souvenirs_up", "souvenirs_active_users"},
        ),
        ("name[]=souvenirs_records_total", {"souvenirs_records_total"}),
        ("name[]=souvenirs_build", {"souvenirs_build_info"}),
        ("name[]=python_info&name[]=souvenirs_up", {"python_info", "souvenirs_up"}),
        ("name[]=nothing", set()),
        ("name[]=%ff%00", set()),
    ],
)
def test_metrics__of_some_names(query: str, names: set[str], client: Client) -> None:
    page = client.get(f"/metrics?{query}")
    assert page.status_code == 200
    assert names_of(page.text) == names
    openmetrics = {"Accept": "application/openmetrics-text"}
    text = client.get(f"/metrics?{query}", headers=openmetrics).text
    assert {s.name for f in parse_openmetrics(text) for s in f.samples} == names


@in_transaction
@pytest.mark.parametrize(
    "name",
    [
        "python_info",
        "souvenirs_records_total",
        "souvenirs_queued_visits_total",
        "souvenirs_write_errors_total",
    ],
)
def test_metrics__of_names_that_are_not_collected_queries_nothing(
    name: str, client: Client
) -> None:
    with CaptureQueriesContext(connections["default"]) as queries:
        page = client.get(f"/metrics?name[]={name}")
    assert names_of(page.text) <= {name}
    assert [query for query in queries if "souvenirs_" in query["sql"]] == []


@in_transaction
def test_metrics__is_exempt_from_a_site_wide_login(client: Client) -> None:
    middleware = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    with override_settings(MIDDLEWARE=middleware, ROOT_URLCONF="tests.test_views"):
        assert client.get("/atomic").status_code == 302
        assert client.get("/metrics").status_code == 200


@in_transaction
def test_metrics__does_not_touch_the_session(client: Client) -> None:
    client.force_login(User.objects.create(username="ada"))
    cookies = dict(client.cookies)
    middleware = [name for name in settings.MIDDLEWARE if not name.startswith("souvenirs.")]
    with (
        override_settings(MIDDLEWARE=middleware, SESSION_SAVE_EVERY_REQUEST=False),
        CaptureQueriesContext(connections["default"]) as queries,
    ):
        response = client.get("/metrics")
    assert response.wsgi_request.session.accessed is False
    assert [query for query in queries if "django_session" in query["sql"]] == []
    assert response["Vary"] == "Accept, Accept-Encoding"
    assert not response.cookies
    assert dict(client.cookies) == cookies


# Parts that cannot be read


@with_databases
@pytest.mark.parametrize("model", [LastSeen, Souvenir, User])
@pytest.mark.parametrize("atomic_requests", [False, True])
def test_metrics__serves_the_parts_that_can_be_read(
    atomic_requests: bool,
    model: type,
    missing_table: MissingTable,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for entry in connections.settings.values():
        monkeypatch.setitem(entry, "ATOMIC_REQUESTS", atomic_requests)
    lost = {
        LastSeen: "souvenirs_active_users",
        Souvenir: "souvenirs_previous_calendar_active_users",
        User: "souvenirs_registered_users",
    }
    with override_settings(ROOT_URLCONF="tests.test_views"), missing_table(model):
        assert client.get("/atomic").text == str(atomic_requests)
        response = client.get("/metrics")
    assert response.status_code == 200
    assert "\nsouvenirs_up 0.0\n" in response.text
    assert "NaN" not in response.text
    kept = set(lost.values()) - {lost[model]}
    assert {name for name in lost.values() if f"# TYPE {name} " in response.text} == kept


def test_metrics__is_in_no_transaction_of_any_database(run_site: RunSite) -> None:
    code = """
from django.db import connections
from django.test.utils import CaptureQueriesContext
with CaptureQueriesContext(connections["replica"]) as queries:
    page = Client().get("/metrics").text
print(len(queries), "souvenirs_up 1.0" in page)
"""
    replica = """
DATABASES["replica"] = dict(DATABASES["default"], ATOMIC_REQUESTS=True)
SOUVENIRS_METRICS_DATABASE = "replica"
"""
    # The collection queries on separate connections
    assert run_site(code, replica) == "0 True\n"


# Prometheus's own check


@in_transaction
def test_metrics__is_accepted_by_promtool(client: Client) -> None:
    LastSeen.objects.create(
        user_id=User.objects.create(username="ada").pk, seen=column(1_715_700_000)
    )
    page = client.get("/metrics").content
    promtool = servers.program("promtool", "prometheus")

    def check(body: bytes) -> str:
        done = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True)
        output = (done.stdout + done.stderr).decode()
        assert done.returncode in (0, 3), output  # 3: it is parsed, with complaints
        return output

    badly_named = re.sub(rb"\bsouvenirs_records_total\b", b"souvenirs_records", page)
    assert "souvenirs_records " in check(badly_named)
    assert not re.search(r"\bsouvenirs_", check(page))
