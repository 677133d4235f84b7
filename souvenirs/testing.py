"""For the tests of sites that use souvenirs."""

from __future__ import annotations

from souvenirs.recording import failures, sessions
from souvenirs.recording.throttle import throttle


def forget() -> None:
    """Forget whom this process has recorded, and all failures, as a restart does. Call it before a
    test in which a user is to be recorded: an earlier test's user may have had the same key."""
    throttle.clear()
    sessions.forget()
    failures.breaker.reset()
    failures.session_breaker.reset()
