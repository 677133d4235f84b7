"""The tests of a site that uses souvenirs: the queries of a request do not depend on the tests'
order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SETTINGS, SIGN_IN, site_environ

pytestmark = pytest.mark.own_site

URLS = """
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("", lambda request: HttpResponse(str(request.user)))]
"""
TESTS = """
from django.contrib.auth.models import User
from django.test import TestCase, override_settings
from souvenirs.control import souvenez
from souvenirs.models import Souvenir
from souvenirs.testing import forget


class Tests(TestCase):
    def visit(self):
        self.client.force_login(User.objects.create(pk=1, username="ada"))
        with self.assertNumQueries(2):  # the session and the user
            self.client.get("/")

    def test_one(self):
        self.visit()
        assert souvenez(1) == "skipped"

    def test_two(self):
        self.visit()

    @override_settings(SOUVENIRS_ENABLED=True)
    def test_with_a_record(self):
        forget()
        self.client.force_login(User.objects.create(pk=1, username="ada"))
        self.client.get("/")
        assert Souvenir.objects.count() == 1
"""
PYTEST = """
import pytest

@pytest.mark.django_db
@pytest.mark.parametrize("number", [1, 2])
def test_with_a_record_in_pytest(number, fresh_souvenirs, client):
    client.force_login(User.objects.create(pk=1, username="ada"))
    client.get("/")
    assert Souvenir.objects.count() == 1
"""


@pytest.fixture
def run_tests(tmp_path: Path) -> Callable[..., str]:
    def run(*command: str, settings: str = "", tests: str = TESTS) -> str:
        (tmp_path / "site_settings.py").write_text(SETTINGS + SIGN_IN + settings)
        (tmp_path / "site_urls.py").write_text(URLS)
        (tmp_path / "test_site.py").write_text(tests)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=site_environ(tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    return run


def test_pytest__records_nobody_by_default(run_tests: Callable[..., str]) -> None:
    assert "5 passed" in run_tests("pytest", tests=TESTS + PYTEST)


def test_pytest__respects_the_sites_setting(run_tests: Callable[..., str]) -> None:
    said = run_tests("pytest", "-p", "no:randomly", settings="SOUVENIRS_ENABLED = True\n")
    # the first test, because the other one's user seems to be recorded
    assert "1 failed, 2 passed" in said


def test_pytest__in_a_project_without_django(run_tests: Callable[..., str]) -> None:
    said = run_tests("pytest", "-p", "no:django", tests="def test_one():\n    assert True\n")
    assert "1 passed" in said


def test_pytest__records_nobody_in_any_process(run_tests: Callable[..., str]) -> None:
    assert "5 passed" in run_tests("pytest", "-n", "2", tests=TESTS + PYTEST)


def test_pytest__without_the_plugin_respects_the_setting(run_tests: Callable[..., str]) -> None:
    said = run_tests("pytest", "-p", "no:souvenirs", settings="SOUVENIRS_ENABLED = False\n")
    assert "3 passed" in said


WITHOUT = """
INSTALLED_APPS = [each for each in INSTALLED_APPS if not each.startswith("souvenirs")]
MIDDLEWARE = MIDDLEWARE[:2]
"""
UNTOUCHED = """
from django.conf import settings

def test_settings():
    assert not hasattr(settings, "SOUVENIRS_ENABLED")
"""


def test_pytest__in_a_site_without_the_app_changes_nothing(run_tests: Callable[..., str]) -> None:
    assert "1 passed" in run_tests("pytest", settings=WITHOUT, tests=UNTOUCHED)
    assert "1 failed" in run_tests("pytest", tests=UNTOUCHED)


def test_djangos_runner__with_the_setting(run_tests: Callable[..., str]) -> None:
    for order in ([], ["--reverse"], ["--shuffle"]):
        said = run_tests("django", "test", *order, settings="SOUVENIRS_ENABLED = False\n")
        assert "Ran 3 tests" in said
        assert "\nOK" in said
