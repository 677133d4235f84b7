"""docs/uninstalling.md, and installing again afterwards, on the database that the tests run on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from tests.conftest import ROOT, SETTINGS, site_environ

# A separate site with Django's users
pytestmark = [pytest.mark.slow, pytest.mark.where(not {"routed"} & settings.SHAPE)]

WITHOUT = "INSTALLED_APPS = INSTALLED_APPS[:2]\nROOT_URLCONF = None\n"
RECORD = """
from django.contrib.auth.models import User
from souvenirs.control import souvenez
from souvenirs.models import Souvenir
for name in ("ada", "bob", "eve"):
    souvenez(User.objects.create(username=name))
print(Souvenir.objects.count())
"""
DELETE = """
from django.contrib.auth.models import User
from django.db import DatabaseError
try:
    User.objects.order_by("username").first().delete()
except DatabaseError as error:
    print(type(error).__name__)
else:
    print("deleted")
"""
PERMISSIONS = """
from django.contrib.auth.models import Permission
print(Permission.objects.filter(content_type__app_label="souvenirs").count())
"""
Manage = Callable[..., str]


@pytest.fixture
def entry(db: None, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The DATABASES entry of an empty database."""
    name = f"souvenirs_site_{os.getpid()}"
    server = {
        key: connection.settings_dict[key] for key in ("ENGINE", "USER", "PASSWORD", "HOST", "PORT")
    }
    if connection.vendor == "sqlite":
        yield {**server, "NAME": str(tmp_path / name)}
        return
    with connection._nodb_cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    yield {**server, "NAME": name}
    with connection._nodb_cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name}")


@pytest.fixture
def manage(entry: dict[str, Any], tmp_path: Path) -> Manage:
    def run(*args: str, settings: str = "") -> str:
        text = f"{SETTINGS}\nDATABASES = {{'default': {entry!r}}}\n{settings}"
        (tmp_path / "site_settings.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "django", *args],
            cwd=tmp_path, env=site_environ(tmp_path), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_uninstalling__as_documented(manage: Manage) -> None:
    text = (ROOT / "docs" / "uninstalling.md").read_text()
    (unapply,) = re.findall(r"python manage\.py (migrate souvenirs .+)", text)
    manage("migrate", "-v0")
    assert manage("shell", "-v0", "-c", RECORD) == "3"
    # Without the documented command
    assert manage("shell", "-v0", "-c", DELETE, settings=WITHOUT) == "IntegrityError"
    # With it, and afterwards
    manage(*unapply.split())
    assert manage("shell", "-v0", "-c", DELETE, settings=WITHOUT) == "deleted"
    assert "souvenirs" not in manage("showmigrations", settings=WITHOUT)
    (clean_up,) = re.findall(r"python manage\.py (remove_stale_contenttypes.*)", text)
    assert manage("shell", "-v0", "-c", PERMISSIONS, settings=WITHOUT) != "0"
    manage(*clean_up.split(), "--no-input", settings=WITHOUT)
    assert manage("shell", "-v0", "-c", PERMISSIONS, settings=WITHOUT) == "0"
    # Installed again
    manage("migrate", "-v0")
    assert manage("shell", "-v0", "-c", RECORD.replace('"ada", "bob", "eve"', '"dan",')) == "1"
    assert manage("shell", "-v0", "-c", DELETE) == "deleted"
