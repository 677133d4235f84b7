"""A pytest plugin for sites that use souvenirs; pytest loads it wherever the package is installed.

Users are not recorded in tests: otherwise the queries of a request would depend on earlier tests,
because the process remembers the users that it has recorded. If a site's settings define
SOUVENIRS_ENABLED, that applies instead. Visits are written in the request, unless the settings
define SOUVENIRS_FLUSH_SECONDS.
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
    """Return the DEFAULTS that the site's settings do not define; none if the site does not use
    souvenirs."""
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
    """Record users in this test, and start without recorded ones: see souvenirs.testing.forget."""
    from souvenirs.testing import forget

    with _using({"SOUVENIRS_ENABLED": True, "SOUVENIRS_FLUSH_SECONDS": 0}):
        forget()
        yield
