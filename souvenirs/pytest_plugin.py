"""The pytest fixture of souvenirs; pytest finds it by itself where the package is installed."""

from __future__ import annotations

import pytest


@pytest.fixture
def fresh_souvenirs() -> None:
    """Souvenirs has recorded nobody yet: see souvenirs.testing.forget."""
    from souvenirs.testing import forget  # not before Django is set up

    forget()
