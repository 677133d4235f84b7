from __future__ import annotations

import logging

import pytest
import time_machine

from souvenirs.breaker import LOG_SECONDS, PROBE_SECONDS, Breaker

ERROR = ConnectionError("refused")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A monotonic clock that stands still until it is moved."""
    now = [1000.0]
    monkeypatch.setattr("souvenirs.breaker.time.monotonic", lambda: now[0])
    return now


def test_allows__until_a_failure(clock: list[float]) -> None:
    breaker = Breaker("The server")
    assert breaker.allows()
    assert breaker.allows()
    breaker.failure(ERROR)
    assert not breaker.allows()


def test_allows__one_probe_per_period(clock: list[float]) -> None:
    breaker = Breaker("The server")
    breaker.failure(ERROR)
    for _ in range(3):
        clock[0] += PROBE_SECONDS
        assert [breaker.allows() for _ in range(4)] == [True, False, False, False]


def test_allows__everybody_after_a_success(clock: list[float]) -> None:
    breaker = Breaker("The server")
    breaker.failure(ERROR)
    clock[0] += PROBE_SECONDS
    assert breaker.allows()
    breaker.success()
    assert [breaker.allows(), breaker.allows()] == [True, True]


def test_allows__a_step_of_the_wall_clock_does_not_matter() -> None:
    breaker = Breaker("The server")
    breaker.failure(ERROR)
    with time_machine.travel("2040-01-01", tick=False):
        assert not breaker.allows()


def test_failure__that_says_nothing_about_the_server_leaves_it_closed(clock: list[float]) -> None:
    breaker = Breaker("The server")
    breaker.failure(ERROR, opens=False)
    assert breaker.allows()


def test_failure__is_logged_once_a_minute_with_its_cause(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    breaker = Breaker("The server")
    for _ in range(5):
        breaker.failure(ERROR)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "The server" in record.message
    assert "refused" in record.message
    assert record.exc_info is not None
    clock[0] += LOG_SECONDS
    breaker.failure(ERROR)
    assert "last such message: 5)" in caplog.records[-1].message
