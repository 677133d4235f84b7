"""Debian's Chromium, driven by playwright, and the demo's site to open in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from demo.population import ADMIN
from demo.serving import populate, serve
from tests.servers import program

PASSWORD = "of the tests"
USAGE = "/admin/souvenirs/usage/"


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's browser: playwright would download one. It has no sandbox, because tests may run
    as root and it only opens our pages."""
    executable = program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def demo(users: int, weeks: int) -> Iterator[str]:
    """Serve the demo's site with a past, but without visitors; yield its URL."""
    with tempfile.TemporaryDirectory(prefix="souvenirs-browser-") as path:
        directory = Path(path)
        populate(directory, users=users, weeks=weeks, admin_password=PASSWORD)
        with serve(directory) as url:
            yield url


def open_page(browser: Browser, url: str, path: str = USAGE, **options: Any) -> Page:
    """Open a page of the admin in a new session of the demo's admin."""
    page = browser.new_context(locale="en-US", **options).new_page()
    page.goto(f"{url}/admin/login/?next={path}")
    page.fill("#id_username", ADMIN)
    page.fill("#id_password", PASSWORD)
    page.click("input[type=submit]")
    page.wait_for_url(f"{url}{path}")
    return page
