from collections.abc import Iterator

import pytest
from django.core.cache import caches

from souvenirs import middleware
from souvenirs.throttle import throttle


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """Nothing that a process remembers passes from one test to another."""
    forget()
    yield
    forget()


def forget() -> None:
    throttle.clear()
    middleware.forget()
    for cache in caches.all():
        cache.clear()
