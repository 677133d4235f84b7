"""The blocks of code in the documents, and an app of a site that has some of them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent

# A block between fences, or indented by four columns, more than the list item that it is in
FENCED = re.compile(r"(?ms)^```(\w+)\n(.+?)^```$")
INDENTED = re.compile(r"(?m)(?<=\n\n)(?:^ {4,}.+\n(?:(?:\s*\n)+(?= {4}))?)+")


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text()
    fenced = [block for _, block in FENCED.findall(text)]
    return [*fenced, *map(textwrap.dedent, INDENTED.findall(FENCED.sub("", text)))]


def block_with(page: str, text: str) -> str:
    """Return the only block of the page that contains this text."""
    (found,) = [block for block in blocks(page) if text in block]
    return found


def write_people_app(directory: Path, admin: str, urls: str = "") -> str:
    """Write an app `people` with this admin.py, and with URLs: the admin's, and those that the code
    `urls` adds. Return the settings for it."""
    app = directory / "people"
    app.mkdir(parents=True)
    (app / "__init__.py").touch()
    (app / "admin.py").write_text(admin)
    (app / "urls.py").write_text(
        "from django.contrib import admin\nfrom django.urls import path\n"
        f'urlpatterns = [path("admin/", admin.site.urls)]\n{urls}'
    )
    return 'INSTALLED_APPS += ["people"]\nROOT_URLCONF = "people.urls"\n'
