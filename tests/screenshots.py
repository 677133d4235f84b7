"""python -m tests.screenshots: take the pictures of docs/admin.md from the demo's site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.browser import chromium, demo, open_page

DIRECTORY = Path(__file__).parents[1] / "docs/images"
WIDE: Any = {"viewport": {"width": 1100, "height": 800}}
WIDER: Any = {"viewport": {"width": 1320, "height": 800}}
PHONE: Any = {"viewport": {"width": 390, "height": 844}}
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "usage-light": ("/admin/souvenirs/usage/", {**WIDE, "color_scheme": "light"}),
    "usage-dark": ("/admin/souvenirs/usage/", {**WIDE, "color_scheme": "dark"}),
    "usage-phone": ("/admin/souvenirs/usage/", {**PHONE, "color_scheme": "light"}),
    "people": ("/admin/auth/user/?o=-4", {**WIDER, "color_scheme": "light"}),
}


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    with demo(users=300, weeks=40) as url, chromium() as browser:
        for name, (path, options) in PICTURES.items():
            page = open_page(browser, url, path, **options)
            full = "usage" in name
            page.screenshot(path=DIRECTORY / f"{name}.png", full_page=full)
            page.context.close()


if __name__ == "__main__":
    main()
