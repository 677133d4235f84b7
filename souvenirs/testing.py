"""For the tests of sites that use souvenirs."""

from __future__ import annotations

from souvenirs import middleware
from souvenirs.recording.throttle import throttle


def forget() -> None:
    """Forgets whom this process has recorded, as a restart does. Call it before a test in which a
    user shall be recorded: an earlier test's user may have had the same key."""
    throttle.clear()
    middleware.forget()
