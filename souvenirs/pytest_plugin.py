"""For the tests of sites that use souvenirs; pytest finds it where the package is installed.

Nobody is recorded in tests: else a request's queries would depend on which tests came before it, as
the process remembers the users it has recorded. A site whose settings have SOUVENIRS_ENABLED
decides itself. Visits are written in the request, unless the settings have SOUVENIRS_FLUSH_SECONDS.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

DEFAULTS = {"SOUVENIRS_ENABLED": False, "SOUVENIRS_FLUSH_SECONDS": 0}


@contextmanager
def _using(settings: dict[str, Any]) -> Iterator[None]:
    from django.test import override_settings  # not before Django is set up

    with override_settings(**settings):
        yield


def _undecided() -> dict[str, Any]:
    """The settings that the site leaves to us, if these are the tests of one with souvenirs."""
    if "django" not in sys.modules:
        return {}
    from django.apps import apps
    from django.conf import settings

    if not (apps.ready and apps.is_installed("souvenirs")):
        return {}
    return {name: value for name, value in DEFAULTS.items() if not hasattr(settings, name)}


@pytest.fixture(scope="session", autouse=True)
def _souvenirs_are_off() -> Iterator[None]:
    undecided = _undecided()
    if not undecided:
        yield
        return
    with _using(undecided):
        yield


@pytest.fixture
def fresh_souvenirs() -> Iterator[None]:
    """Souvenirs records in this test, and has recorded nobody yet: see souvenirs.testing.forget."""
    from souvenirs.testing import forget

    with _using({"SOUVENIRS_ENABLED": True, "SOUVENIRS_FLUSH_SECONDS": 0}):
        forget()
        yield
