"""souvenirs/usage.json: who may read it, its content, and its deadline."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.db import OperationalError
from django.test import Client, override_settings
from prometheus_client.parser import text_string_to_metric_families

from souvenirs import reports, timestamps
from souvenirs.conf import conf
from souvenirs.selection import USAGE
from souvenirs_metrics.checks import check_segments
from souvenirs_metrics.server import PAGES
from tests import admin_site as admin_site_module
from tests.admin_site import signed_in
from tests.failing import frozen
from tests.history import people, record
from tests.people import User, ours, with_databases
from tests.segments.models import Club, ClubMember, Subscription

admin_site = admin_site_module.admin_site
pytestmark = pytest.mark.django_db(databases=list(settings.DATABASES))

URL = "/souvenirs/usage.json"
TOKEN = "the-token"
NOW = datetime(2024, 5, 15, 12, 34, 56, tzinfo=timezone.utc)
DAY = timedelta(days=1)


@pytest.fixture
def history() -> Iterator[list[Any]]:
    with time_machine.travel(NOW, tick=False):
        users = people(6)
        for n, user in enumerate(users):
            record(user, *((NOW - d * DAY).timestamp() for d in range(n, 80, 2 * n + 3)))
        yield users


def get(client: Client, **params: Any) -> Any:
    response = client.get(URL, params)
    assert response.status_code == 200, response.content
    assert response["Content-Type"] == "application/json"
    return response.json()


def as_json(report: Any) -> Any:
    """A report's dictionaries, with times as text in the site's zone."""

    def text(when: datetime) -> str:
        return timestamps.aware(when).astimezone(conf.zone).isoformat()

    return json.loads(json.dumps(list(report), default=text))


def test_usage__has_the_dictionaries_of_the_reports(history: Any, client: Client) -> None:
    usage = as_json(reports.calendar_monthly_usage(recent=2))
    assert get(client, period="month", recent=2) == {"usage": usage}
    assert usage[0]["period"] == {
        "start": "2024-04-01T00:00:00+02:00",
        "end": "2024-05-01T00:00:00+02:00",
        "complete": True,
    }
    assert get(client) == {"usage": as_json(reports.calendar_monthly_usage(recent=12))}
    growth, retention = (as_json(r("week", recent=5)) for r in (reports.growth, reports.retention))
    assert get(client, growth="week", recent=5) == {"growth": growth}
    assert get(client, retention="week", recent=5) == {"retention": retention}
    assert get(client, period="day", growth="week", retention="week", recent=5) == {
        "usage": as_json(reports.calendar_daily_usage(recent=5)),
        "growth": growth,
        "retention": retention,
    }


def test_usage__unknown_values_are_null(history: Any, client: Client) -> None:
    (first, *_) = get(client, growth="month", recent=400)["growth"]
    assert first["growth"]["new_users"] is None
    assert first["growth"]["active_users"] > 0


@override_settings(
    SOUVENIRS_METRICS_SEGMENTS={"plan": {"FIELD": "subscription__plan", "VALUES": ["pro"]}}
)
@pytest.mark.where("routed" not in settings.SHAPE)
def test_usage__by_a_declared_segment(history: list[Any], client: Client) -> None:
    for user, plan in zip(history, ["pro", "pro", "free", None]):
        Subscription.objects.create(user_id=user.pk, plan=plan)
    (month,) = get(client, period="month", recent=1, by="plan")["usage"]
    assert month["usage"]["active_users"] == 6
    assert month["usage"]["active_users_by"] == {"pro": 2, "none": 3, "other": 1, "deleted": 0}


@override_settings(
    SOUVENIRS_METRICS_SEGMENTS={"plan": {"FIELD": "subscription__plan", "VALUES": ["Free", "pro"]}}
)
@pytest.mark.where("routed" not in settings.SHAPE)
def test_usage__values_are_compared_like_those_of_the_gauges(
    history: list[Any], client: Client
) -> None:
    """With the column's collation: MariaDB's treats "Free" and "free" as equal."""
    for user, plan in zip(history, ["Free", "free", "pro", "PRO", "team", None]):
        Subscription.objects.create(user_id=user.pk, plan=plan)
        record(user, NOW.timestamp())
    (month,) = get(client, period="month", recent=1, by="plan")["usage"]
    gauges = text_string_to_metric_families(client.get("/metrics").text)
    (gauge,) = (each for each in gauges if each.name == "souvenirs_segment_active_users")
    found = {
        each.labels["value"]: each.value for each in gauge.samples if each.labels["window"] == "30d"
    }
    assert month["usage"]["active_users_by"] == {**found, "deleted": 0}
    assert found["Free"] == Subscription.objects.filter(plan="Free").count()


@override_settings(
    SOUVENIRS_METRICS_SEGMENTS={"club": {"FIELD": "clubs__name", "VALUES": ["chess"]}}
)
@pytest.mark.where("routed" not in settings.SHAPE)
def test_usage__by_a_segment_of_several_values_counts_a_user_once_in_each(
    history: list[Any], client: Client
) -> None:
    clubs = {name: Club.objects.create(name=name) for name in ("chess", "go", "bridge")}
    for user, names in zip(history, [["go", "bridge"], ["chess", "go", "bridge"], ["chess"]]):
        for name in names:
            ClubMember.objects.create(user_id=user.pk, club=clubs[name])
    (month,) = get(client, period="month", recent=1, by="club")["usage"]
    assert month["usage"]["active_users"] == 6
    assert month["usage"]["active_users_by"] == {"chess": 2, "none": 3, "other": 2, "deleted": 0}


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("subscription__colour", "has no field 'colour'"),
        ("subscription__features", "holds documents or lists"),
        ({"FIELD": "subscription__seats", "VALUES": ["many"]}, "VALUES contains 'many'"),
        ({"FIELD": "subscription__seats", "VALUES": [[1]]}, "VALUES contains [1]"),
        ({"FIELD": "subscription__organization__name"}, "has no field 'name'"),
        (7, "7 is neither a path nor a dictionary"),
    ],
)
@pytest.mark.where("routed" not in settings.SHAPE)
def test_usage__says_what_is_wrong_with_a_declared_segment(
    history: Any, client: Client, entry: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    with override_settings(SOUVENIRS_METRICS_SEGMENTS={"x": entry}):
        response = client.get(URL, {"by": "x"})
        (message,) = [each.msg for each in check_segments()]
    assert response.status_code == 500
    assert response.json() == {"error": message}
    assert problem in message
    assert message in caplog.text


@pytest.mark.parametrize(
    "params",
    [
        {"by": "username"},
        {"by": "pk"},
        {"period": "decade"},
        {"growth": "hour"},
        {"retention": "x"},
        {"recent": "401"},
        {"start": "soon"},
        {"period": "day", "start": "1950-01-01"},
    ],
)
def test_usage__wrong_parameters_are_an_error(
    history: Any, client: Client, params: dict[str, str]
) -> None:
    response = client.get(URL, params)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]


def test_usage__has_no_personal_data(history: list[Any], client: Client) -> None:
    text = json.dumps(get(client, period="day", growth="day", retention="day"))
    for user in history:
        assert user.username not in text


def test_usage__takes_a_fixed_number_of_queries(
    history: Any, client: Client, django_assert_max_num_queries: Any
) -> None:
    for params in ({"period": "day"}, {"growth": "day"}, {"retention": "day"}):
        with django_assert_max_num_queries(20, connection=ours()) as few:
            get(client, recent=3, **params)
        with django_assert_max_num_queries(len(few), connection=ours()):
            get(client, recent=70, **params)


# Who may read it


@override_settings(SOUVENIRS_METRICS_TOKEN=TOKEN)
def test_access__with_the_token_of_the_metrics(history: Any, client: Client) -> None:
    assert client.get(URL).status_code == 401
    assert client.get(URL, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get(URL, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@override_settings(SOUVENIRS_METRICS_AUTHORIZE="tests.test_usage_json.refuse")
def test_access__with_the_function_of_the_metrics(client: Client) -> None:
    assert client.get(URL).status_code == 403


def refuse(request: Any) -> bool:
    return False


@pytest.mark.own_site
@pytest.mark.where(not settings.SHAPE)
@override_settings(SOUVENIRS_METRICS_TOKEN=TOKEN)
def test_access__with_a_session_of_staff_with_the_permission(admin_site: None) -> None:
    assert signed_in("view_usage").get(URL).status_code == 200
    assert signed_in("view_lastseen").get(URL).status_code == 401
    assert signed_in("view_usage", is_staff=False).get(URL).status_code == 401
    assert signed_in("view_usage").get("/metrics").status_code == 401


@pytest.mark.own_site
@pytest.mark.where(not settings.SHAPE)
@override_settings(SOUVENIRS_METRICS_TOKEN=TOKEN)
def test_access__of_staff_is_decided_by_the_admin_site_with_the_page(
    admin_site: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = signed_in("view_usage")
    with monkeypatch.context() as patch:
        patch.setattr("tests.admin_urls.site.has_permission", lambda request: False)
        assert client.get(URL).status_code == 401
        for url in ("/backstage/souvenirs/usage/", "/backstage/souvenirs/usage/csv/"):
            assert client.get(url).status_code == 302
    with monkeypatch.context() as patch:
        model_admin = "tests.admin_urls.UsageAdmin.has_view_permission"
        patch.setattr(model_admin, lambda self, request, obj=None: False)
        assert client.get(URL).status_code == 401
    assert client.get(URL).status_code == 200
    assert client.get(URL, SCRIPT_NAME="/app").status_code == 200


@override_settings(SOUVENIRS_METRICS_TOKEN=TOKEN)
def test_access__signed_in_users_are_not_staff(client: Client) -> None:
    client.force_login(User.objects.create(username="ada"))
    assert client.get(URL).status_code == 401


def test_exporter__serves_it() -> None:
    assert URL in PAGES


def test_usage__is_read_only(client: Client) -> None:
    assert client.post(URL).status_code == 405
    assert client.get(URL)["Cache-Control"] == "no-store"


# The deadline


@with_databases
def test_deadline__aborts_a_report_that_takes_too_long(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def endless(*args: Any, **kwargs: Any) -> Any:
        statement = {
            "postgresql": "SELECT pg_sleep(1000)",
            "mysql": "SELECT SLEEP(1000)",
            "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
            " SELECT MAX(i) FROM n",
        }[ours().vendor]
        with ours().cursor() as cursor:
            cursor.execute(statement)
        yield from ()

    monkeypatch.setitem(USAGE, "month", endless)
    with caplog.at_level(logging.ERROR, "souvenirs_metrics"):
        response = client.get(URL, headers={"X-Prometheus-Scrape-Timeout-Seconds": "0.4"})
    assert response.status_code == 503
    assert response.json() == {"error": "The database did not answer within 0.3 s."}
    assert "The usage could not be read" in caplog.text
    # and later queries are not limited
    assert client.get(URL, {"period": "day"}).status_code == 200


@with_databases
@pytest.mark.where(ours().vendor != "sqlite")
@pytest.mark.parametrize("begins", ["before", "in a transaction"])
def test_deadline__ends_the_wait_for_a_silent_server_on_an_open_connection(
    client: Client, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    with ours().cursor() as cursor:  # so that the connection is open
        cursor.execute(
            {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT @@pid_file"}[ours().vendor]
        )
        (pid,) = cursor.fetchone()
    pid = pid if isinstance(pid, int) else int(Path(pid).read_text())
    month = USAGE["month"]
    with ExitStack() as stack:

        def freeze(*args: Any, **kwargs: Any) -> Any:
            stack.enter_context(frozen(pid))
            return month(*args, **kwargs)

        if begins == "before":
            stack.enter_context(frozen(pid))
        else:
            monkeypatch.setitem(USAGE, "month", freeze)
        response = client.get(URL, headers={"X-Prometheus-Scrape-Timeout-Seconds": "0.4"})
    assert response.status_code == 503
    assert client.get(URL, {"period": "day"}).status_code == 200


def test_failure__is_not_shown_to_the_client(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OperationalError("the password of the server is 1234")
        yield

    monkeypatch.setitem(USAGE, "month", fail)
    response = client.get(URL)
    assert response.status_code == 503
    assert "1234" not in response.text
