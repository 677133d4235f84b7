from __future__ import annotations

import logging

import pytest

from souvenirs.logs import CauseLogger


def test_cause_logger__logs_a_cause_once_until_it_changes_or_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = CauseLogger(logging.getLogger("souvenirs"), "Could not roll up")
    full, locked = OSError("disk full"), TimeoutError("locked")
    for error in full, full, locked, locked, full:
        log.failure(error)
    log.success()
    log.failure(full)
    assert caplog.messages == [
        "Could not roll up: OSError: disk full",
        "Could not roll up: TimeoutError: locked",
        "Could not roll up: OSError: disk full",
        "Could not roll up: OSError: disk full",
    ]
    assert all(record.exc_info is not None for record in caplog.records)
