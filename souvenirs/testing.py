"""Helpers for the tests of sites that use souvenirs."""

from __future__ import annotations

from souvenirs.recording import failures, sessions
from souvenirs.recording.throttle import throttle
from souvenirs.recording.writer import writer


def forget() -> None:
    """Forget recorded users and all failures, as a restart does. Call it before a test in which a
    user should be recorded: an earlier test's user may have had the same key."""
    writer.discard()
    throttle.clear()
    sessions.forget()
    failures.breaker.reset()
    failures.session_breaker.reset()


def flush() -> None:
    """Write the visits that are queued for the writer's thread, and close its connections. Call it
    in tests that commit, before you check what a request has recorded. Raises TimeoutError if they
    cannot be written within three seconds."""
    if not writer.stop():
        raise TimeoutError("Could not write all visits: their rows are locked, or see the log")
