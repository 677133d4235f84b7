"""The Usage page of the demo's admin in a real browser."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.browser import USAGE, chromium, demo, open_page

pytestmark = [pytest.mark.own_site, pytest.mark.slow]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
DESKTOP: Any = {"width": 1280, "height": 900}
PHONE: Any = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with demo(users=60, weeks=30) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, site: str) -> Iterator[Page]:
    page = open_page(browser, site, viewport=DESKTOP)
    yield page
    page.context.close()


def numbers(page: Page) -> list[str]:
    """The active users in the table, oldest first."""
    cells = page.locator(".usage-table tbody td:nth-child(2)").all_inner_texts()
    return cells[::-1]


def usage_of(page: Page, site: str, **params: Any) -> list[dict[str, Any]]:
    response = page.request.get(f"{site}/souvenirs/usage.json", params=params)
    return json.loads(response.body())["usage"]  # type: ignore[no-any-return]


def test_page__is_linked_from_the_admin_index(page: Page, site: str) -> None:
    page.goto(f"{site}/admin/")
    page.get_by_role("link", name="Usage").first.click()
    page.wait_for_url(f"{site}{USAGE}")
    assert page.locator("h1").last.inner_text() == "Usage"


def test_page__range_is_changed_and_downloaded(page: Page, site: str, tmp_path: Path) -> None:
    page.select_option("#period", "week")
    page.fill("#recent", "5")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**period=week**")
    usage = usage_of(page, site, period="week", recent=5)
    active = [str(each["usage"]["active_users"]) for each in usage]
    assert numbers(page) == active
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").click()
    download.value.save_as(tmp_path / "usage.csv")
    assert download.value.suggested_filename == "usage-by-week.csv"
    with (tmp_path / "usage.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["active_users"] for row in rows] == active
    assert [row["period"] for row in rows] == [each["labels"]["calendar_week"] for each in usage]


def test_page__works_without_javascript(browser: Browser, site: str) -> None:
    page = open_page(browser, site, java_script_enabled=False, viewport=DESKTOP)
    page.select_option("#period", "day")
    page.get_by_role("button", name="Show").click()
    assert len(numbers(page)) == 30
    assert page.locator("svg.plot rect.active").count() > 20
    page.context.close()


def test_page__draws_under_a_strict_content_security_policy(browser: Browser, site: str) -> None:
    page = open_page(browser, site, viewport=DESKTOP)

    def forbid(route: Any) -> None:
        response = route.fetch()
        headers = {**response.headers, "content-security-policy": POLICY}
        route.fulfill(response=response, headers=headers)

    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.route(f"**{USAGE}*", forbid)
    page.goto(f"{site}{USAGE}")
    assert messages == []
    bar = page.locator("svg.plot rect.active").first
    fill = bar.evaluate("bar => getComputedStyle(bar).fill")
    assert fill not in ("rgb(0, 0, 0)", "none")  # from the style sheet; SVG's default is another
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page__axe_finds_nothing_serious(
    browser: Browser, site: str, scheme: Any, viewport: Any
) -> None:
    page = open_page(browser, site, viewport=viewport, color_scheme=scheme)
    found = Axe().run(page, context="#content").response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []
    page.context.close()


def test_page__is_no_wider_than_a_phone(browser: Browser, site: str) -> None:
    page = open_page(browser, site, viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    names = page.locator("svg.plot").first.locator("text")
    boxes = [names.nth(n).bounding_box() for n in range(names.count())]
    for left, right in pairwise(boxes):  # names on the axis do not overlap
        assert left is not None
        assert right is not None
        assert left["x"] + left["width"] < right["x"]
    page.context.close()


def test_theme__is_the_chosen_one(page: Page, site: str) -> None:
    fill = "getComputedStyle(document.querySelector('svg.plot rect.active')).fill"
    colours = set()
    for theme in ("light", "dark"):
        page.evaluate(f"localStorage.setItem('theme', '{theme}')")
        page.goto(f"{site}{USAGE}")
        colours.add(page.evaluate(fill))
    assert len(colours) == 2


def test_users__have_a_list_of_last_seen_times(page: Page, site: str) -> None:
    page.goto(f"{site}/admin/souvenirs/lastseen/")
    assert page.locator("#result_list tbody tr").count() > 20
    page.get_by_role("link", name="Not in the last 30 days").click()
    assert "seen=not-30d" in page.url
