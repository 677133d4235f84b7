"""Run the fast tests at the turns of the calendar: `python -m tests.dates`, with pytest's
arguments.

It needs Debian's faketime, and Python 3.10: faketime breaks time.sleep() of later versions. As a
pytest plugin, this module starts each test at the same time, regardless of the order of the tests
and the speed of the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

PARIS = ZoneInfo("Europe/Paris")  # as in tests/settings.py
NOW = datetime.now(PARIS)
MOMENTS = {
    "now": NOW,
    "a Monday": datetime(2026, 11, 30, 12, tzinfo=PARIS),
    "a Sunday": datetime(2026, 12, 6, 12, tzinfo=PARIS),
    "a leap day": datetime(2028, 2, 29, 12, tzinfo=PARIS),
    "the end of a day": datetime(2026, 11, 17, 23, 59, 58, tzinfo=PARIS),
    "the start of a day": datetime(2026, 11, 18, 0, 0, 1, tzinfo=PARIS),
    "the end of a day in UTC": datetime(2026, 11, 18, 0, 59, 58, tzinfo=PARIS),
    "the start of a day in UTC": datetime(2026, 11, 18, 1, 0, 1, tzinfo=PARIS),
    "the end of a month": datetime(2027, 1, 31, 23, 59, 58, tzinfo=PARIS),
    "the start of a month": datetime(2027, 2, 1, 0, 0, 1, tzinfo=PARIS),
    "the end of a quarter": datetime(2026, 9, 30, 23, 59, 58, tzinfo=PARIS),
    "the start of a quarter": datetime(2026, 10, 1, 0, 0, 1, tzinfo=PARIS),
    "the end of a year": datetime(2026, 12, 31, 23, 59, 58, tzinfo=PARIS),
    "within the tests, a new year": datetime(2026, 12, 31, 23, 59, 59, 900_000, tzinfo=PARIS),
    "the start of a year": datetime(2027, 1, 1, 0, 0, 1, tzinfo=PARIS),
    "the end of winter time": datetime(2027, 3, 28, 1, 59, 58, tzinfo=PARIS),
    "the day of 23 hours": datetime(2027, 3, 28, 23, 30, tzinfo=PARIS),
    "the end of summer time": datetime(2027, 10, 31, 2, 59, 58, tzinfo=PARIS),
    "the repeated hour": datetime(2027, 10, 31, 2, 0, 1, fold=1, tzinfo=PARIS),
    "the day of 25 hours": datetime(2027, 10, 31, 23, 30, tzinfo=PARIS),
}

# It checks the age of a file, and files keep their true times
LEFT_OUT = "tests/test_middleware.py::test_session__of_any_engine[file]"

START = "SOUVENIRS_TESTS_START"  # the time to start at, as unix time
SHIFT = "FAKETIME"  # the seconds that faketime adds to the clock, also in child processes


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    now = time.time() - float(os.environ[SHIFT])
    os.environ[SHIFT] = f"{float(os.environ[START]) - now:+.3f}"


def passes(start: datetime, arguments: list[str]) -> bool:
    environ = {
        **os.environ,
        START: str(start.timestamp()),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",  # it reads SHIFT whenever it is asked for the time
        "NO_FAKE_STAT": "1",
    }
    shift = f"{start.timestamp() - time.time():+.3f}"
    pytest = [sys.executable, "-m", "pytest", "-p", "tests.dates", "--deselect", LEFT_OUT]
    command = ["faketime", "-f", shift, *pytest, *arguments]
    return subprocess.run(command, env=environ).returncode == 0


def main(arguments: list[str]) -> int:
    failed = 0
    for name, start in MOMENTS.items():
        ok = passes(start, arguments)
        failed += not ok
        print(f"{'passed' if ok else 'FAILED'}: {name}, {start:%A %Y-%m-%d %T %Z}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
