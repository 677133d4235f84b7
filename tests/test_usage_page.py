"""The Usage page of the admin: who may see it, and whether it agrees with the reports."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.db import connection
from django.test import Client, override_settings
from django.utils import translation

from souvenirs import reports
from souvenirs.control import count_active_users
from souvenirs.models import Rollup, Usage
from souvenirs.templatetags.souvenirs_usage import change, figure
from tests import admin_site as admin_site_module
from tests.admin_site import signed_in
from tests.history import Before, people, record

admin_site = admin_site_module.admin_site

pytestmark = [
    pytest.mark.django_db(databases=list(settings.DATABASES)),
    pytest.mark.own_site,
    pytest.mark.where(not settings.SHAPE),
]

URL, CSV = "/backstage/souvenirs/usage/", "/backstage/souvenirs/usage/csv/"
JSON = "/souvenirs/usage.json"
NOW = datetime(2024, 5, 15, 12, 34, 56, tzinfo=timezone.utc)
DAY = timedelta(days=1)


@pytest.fixture
def history() -> Iterator[None]:
    """A history of 20 users over 60 days; some of them come and go."""
    with time_machine.travel(NOW, tick=False):
        for n, user in enumerate(people(20)):
            user.date_joined = NOW - (61 - 2 * n) * DAY
            user.save()
            days = [d for d in range(60 - 2 * n) if (d + n) % (n % 13 + 1) == 0]
            record(user, *((NOW - d * DAY).timestamp() - 3_600 for d in days))
        yield


@pytest.fixture
def analyst(admin_site: None, history: None) -> Client:
    return signed_in("view_usage")


def rows_of(text: str, table: str) -> list[list[str]]:
    body = re.search(rf'<table class="{table}".*?</table>', text, re.DOTALL)
    assert body
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body[0], re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub("<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


# Permissions


@pytest.mark.parametrize("url", [URL, CSV])
def test_page__is_only_for_staff_with_the_permission(url: str, admin_site: None) -> None:
    assert signed_in("view_usage").get(url).status_code == 200
    assert signed_in().get(url).status_code == 403
    assert signed_in("view_lastseen", "view_rollup").get(url).status_code == 403
    assert signed_in("view_usage", is_staff=False).get(url).status_code == 302
    assert signed_in("view_usage", is_active=False).get(url).status_code == 302
    assert Client().get(url).status_code == 302
    assert signed_in("view_usage").post(url).status_code == 405


# Content


@pytest.mark.parametrize("period", ["day", "week", "month", "quarter", "year"])
def test_page__agrees_with_the_reports(analyst: Client, period: str) -> None:
    text = analyst.get(URL, {"period": period, "recent": "5"}).text
    rows = rows_of(text, "usage-table")[1:]
    usage = list(getattr(reports, f"calendar_{ADVERBS[period]}_usage")(recent=5))[::-1]
    growth = list(reports.growth(period, recent=5))[::-1]
    assert len(rows) == len(usage) > 0
    for row, of_usage, of_growth in zip(rows, usage, growth):
        counts = {**of_usage["usage"], **of_growth["growth"]}
        names = ("new", "resurrected", "retained", "churned", "registered", "activated")
        expected = [counts[f"{name}_users"] for name in ("active", *names)]
        assert [row[1], *row[3:]] == ["–" if n is None else str(n) for n in expected]  # noqa: RUF001
        assert ("(so far)" in row[0]) == (not of_usage["period"]["complete"])


ADVERBS = {
    "day": "daily",
    "week": "weekly",
    "month": "monthly",
    "quarter": "quarterly",
    "year": "yearly",
}


def test_page__has_the_retention_triangle(analyst: Client) -> None:
    text = analyst.get(URL, {"period": "week", "recent": "6"}).text
    rows = rows_of(text, "usage-retention")[1:]
    found = [each["retention"] for each in reports.retention("week", recent=6, ages=12)][::-1]
    known = [each for each in found if each["cohort_users"]]
    assert len(rows) == len(known) > 3
    for row, each in zip(rows, known):
        shares = [round(100 * n / each["cohort_users"]) for n in each["retained_users"]]
        assert row[1:] == [str(each["cohort_users"]), *(f"{share}%" for share in shares)]


def test_page__compares_windows_with_the_previous_ones(analyst: Client) -> None:
    current = count_active_users(NOW - 7 * DAY)  # before the analyst becomes one of them
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", analyst.get(URL).text))
    before = count_active_users(NOW - 14 * DAY, NOW - 7 * DAY)
    change = f"{100 * (current / before - 1):+.1f}".replace("-", "−").replace("+0.0", "0.0")  # noqa: RUF001
    assert f"Last 7 days {current} {change}% compared with {before} in the previous period" in text
    assert re.search(r"Last hour \d+ Last 24 hours", text)  # too short to be compared


def test_page__charts_have_a_bar_for_each_period(analyst: Client) -> None:
    text = analyst.get(URL, {"period": "day", "recent": "30"}).text
    plots = re.findall(r'<svg[^>]* class="plot".*?</svg>', text, re.DOTALL)
    assert [plot.count('class="column') for plot in plots] == [30, 30]
    assert plots[0].count('class="active"') == 30
    assert plots[0].count("partial") == 1


def test_page__has_no_inline_script_or_style(analyst: Client) -> None:
    text = analyst.get(URL).text
    content = text[text.index('id="content-main"') :]
    assert "<script" not in content.split("<footer")[0]
    assert not re.search(r"\s(style|on\w+)=", content)


def test_page__without_any_record_says_so(admin_site: None) -> None:
    response = signed_in("view_usage").get(URL)
    assert response.status_code == 200
    assert "No users have been recorded yet" in response.text
    assert "Not known yet" in response.text


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"period": "decade"}, "The period is 'decade'"),
        ({"start": "soon"}, "start is 'soon'"),
        ({"period": "day", "start": "1950-01-01"}, "There are more than 400 periods"),
        ({"start": "2030-01-01"}, "There are no periods"),
    ],
)
def test_page__says_what_is_wrong_with_its_url(
    analyst: Client, params: dict[str, str], message: str
) -> None:
    response = analyst.get(URL, params)
    assert response.status_code == 400
    assert message in html.unescape(response.text)
    assert 'class="errornote" role="alert"' in response.text
    of_csv = analyst.get(CSV, params)
    assert of_csv.status_code == 400
    assert of_csv["Content-Type"].startswith("text/plain")
    assert message in of_csv.text


@pytest.mark.parametrize("url", [URL, CSV, JSON])
def test_page__reads_everything_at_one_time(analyst: Client, url: str) -> None:
    params = {"period": "day", "growth": "day", "recent": "3"}
    expected = shown(analyst.get(url, params).text)
    with ExitStack() as stack:

        def wait() -> None:
            stack.enter_context(time_machine.travel(NOW + DAY, tick=False))

        before = Before("SELECT.*souvenirs_", wait)
        stack.enter_context(connection.execute_wrapper(before))
        assert shown(analyst.get(url, params).text) == expected
        assert before.is_done


@pytest.mark.parametrize("url", [URL, CSV, JSON])
def test_end__later_than_now_is_now(analyst: Client, url: str) -> None:
    params = {"period": "month", "recent": "3"}
    expected = shown(analyst.get(url, params).text)
    assert shown(analyst.get(url, {**params, "end": "2031-01-01"}).text) == expected


def shown(text: str) -> Any:
    """The rows of a page's table, or the whole text of other content."""
    return rows_of(text, "usage-table") if "<html" in text else text


def test_page__takes_a_fixed_number_of_queries(
    analyst: Client, django_assert_max_num_queries: Any
) -> None:
    with django_assert_max_num_queries(32) as few:
        analyst.get(URL, {"period": "day", "recent": "2"})
    with django_assert_max_num_queries(len(few)):
        analyst.get(URL, {"period": "day", "recent": "90"})


def test_page__is_in_the_readers_language(analyst: Client) -> None:
    headers = {"Accept-Language": "de"}
    locale = "django.middleware.locale.LocaleMiddleware"
    middleware = [*settings.MIDDLEWARE, locale]
    # The language that the middleware activates stays active in the thread
    with override_settings(MIDDLEWARE=middleware), translation.override("en-us"):
        text = analyst.get(URL, {"period": "month"}, headers=headers).text
    assert "Mai 2024" in text
    assert re.search(r"[+−]\d+,\d%", text)  # noqa: RUF001


def test_numbers__are_grouped_as_usual_in_the_language() -> None:
    with translation.override("de"):
        assert figure(1234567) == "1.234.567"
        assert change(0.1234) == "+12,3%"
    with translation.override("en"):
        assert figure(1234567) == "1,234,567"
        assert (change(-12.5), change(0.0), change(None)) == ("−1,250.0%", "0.0%", "–")  # noqa: RUF001


# CSV


def test_csv__has_the_numbers_of_the_table(analyst: Client) -> None:
    response = analyst.get(CSV, {"period": "week", "recent": "5"})
    assert response["Content-Type"] == "text/csv; charset=utf-8"
    assert response["Content-Disposition"] == 'attachment; filename="usage-by-week.csv"'
    rows = list(csv.DictReader(io.StringIO(response.text)))
    usage = list(reports.calendar_weekly_usage(recent=5))
    growth = list(reports.growth("week", recent=5))
    for row, of_usage, of_growth in zip(rows, usage, growth, strict=True):
        counts = {**of_usage["usage"], **of_growth["growth"]}
        for name, value in counts.items():
            assert row[name] == ("" if value is None else str(value))
        assert row["period"] == of_usage["labels"]["calendar_week"]
        assert row["complete"] == str(of_usage["period"]["complete"]).lower()


def test_page__links_to_the_csv_of_the_same_periods(analyst: Client) -> None:
    text = analyst.get(URL, {"period": "week", "start": "2024-03-01", "recent": "3"}).text
    link = re.search(r'href="([^"]+)" class="usage-csv"', text)
    assert link
    rows = list(csv.DictReader(io.StringIO(analyst.get(html.unescape(link[1])).text)))
    assert [row["period"] for row in rows] == ["2024-W18", "2024-W19", "2024-W20"]


def test_model__has_no_table() -> None:
    assert Usage._meta.db_table == Rollup._meta.db_table
