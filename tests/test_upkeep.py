"""The exporter's background roll-up, with a real lock in PostgreSQL."""

from __future__ import annotations

import logging
import threading
import time
from datetime import datetime, timedelta, timezone

import pytest
from django.contrib.auth.models import User
from django.db import connections

from souvenirs.control import souvenez
from souvenirs.history import maintenance, progress
from souvenirs_metrics import upkeep
from tests import failing, servers
from tests.failing import Entry, in_postgresql, new_database
from tests.test_scrape_failures import Keep

use_counter, keep_history_in = failing.use_counter, failing.keep_history_in

pytestmark = [pytest.mark.own_site, pytest.mark.django_db(transaction=True)]


def test_roll_up_forever__aborts_a_waiting_step_and_retries(
    postgresql: Entry,
    keep_history_in: Keep,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(upkeep, "STEP_SECONDS", 1)
    monkeypatch.setattr(upkeep, "ROLL_UP_SECONDS", 0.01)
    entry = new_database(postgresql)
    keep_history_in(entry)
    souvenez(User.objects.create(username="ada"), when=datetime.now(timezone.utc) - timedelta(7))
    attempts = []
    roll_up = maintenance.roll_up

    def counted(**options: object) -> None:
        attempts.append(1)
        roll_up(**options)  # type: ignore[arg-type]

    monkeypatch.setattr(maintenance, "roll_up", counted)
    stop = threading.Event()
    thread = threading.Thread(target=upkeep.roll_up_forever, args=[stop])
    with in_postgresql(entry) as other, in_postgresql(entry) as observer:
        other.autocommit = False
        other.execute("LOCK TABLE souvenirs_watermark")
        thread.start()
        try:
            servers.wait_until(lambda: len(attempts) >= 3, seconds=60)
            waiting = observer.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchone()
            assert waiting in [(0,), (1,)]  # aborted steps no longer wait
            assert thread.is_alive()
            other.rollback()
            servers.wait_until(lambda: progress.lag(time.time(), "history") == 0, seconds=60)
        finally:
            stop.set()
            thread.join()
            connections["history"].close()
    [line] = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert line == ("Rolled up nothing: TimeoutError: a step took more than 1 s and was aborted")


def test_roll_up_forever__restarts_the_deadline_with_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many steps together may take longer than the limit for one."""
    seconds: list[float] = []

    def roll_up(on_step: object) -> None:
        for _ in range(3):
            deadline._started -= 100  # the duration of the step
            deadline._at -= 100
            seconds.append(deadline.remaining())
            on_step(None)  # type: ignore[operator]
        stop.set()

    stop = threading.Event()
    deadline = upkeep.Deadline(150)
    monkeypatch.setattr(upkeep, "Deadline", lambda seconds: deadline)
    monkeypatch.setattr(maintenance, "roll_up", roll_up)
    thread = threading.Thread(target=upkeep.roll_up_forever, args=[stop])
    thread.start()
    thread.join()
    assert len(seconds) == 3
    assert all(0 < left <= 50 for left in seconds)
