"""For the tests of sites that use souvenirs; pytest finds it where the package is installed.

Nobody is recorded in tests: else a request's queries would depend on which tests came before it, as
the process remembers whom it has recorded. A site whose settings have SOUVENIRS_ENABLED decides
itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def _recording(enabled: bool) -> Iterator[None]:
    from django.test import override_settings  # not before Django is set up

    with override_settings(SOUVENIRS_ENABLED=enabled):
        yield


def _is_undecided() -> bool:
    """Whether these are the tests of a site with souvenirs, whose settings leave it to us."""
    if "django" not in sys.modules:
        return False
    from django.apps import apps
    from django.conf import settings

    return (
        apps.ready and apps.is_installed("souvenirs") and not hasattr(settings, "SOUVENIRS_ENABLED")
    )


@pytest.fixture(scope="session", autouse=True)
def _souvenirs_are_off() -> Iterator[None]:
    if not _is_undecided():
        yield
        return
    with _recording(False):
        yield


@pytest.fixture
def fresh_souvenirs() -> Iterator[None]:
    """Souvenirs records in this test, and has recorded nobody yet: see souvenirs.testing.forget."""
    from souvenirs.testing import forget

    with _recording(True):
        forget()
        yield
