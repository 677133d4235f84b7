"""Parse and format the values of commands' options."""

from __future__ import annotations

import warnings
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from typing import Any

from dateutil import parser as dates
from django.core.management.base import CommandError

from souvenirs import timestamps
from souvenirs.conf import conf
from souvenirs.periods import EARLIEST, parse_duration

DAY = 86_400


def duration(value: Any) -> int:
    """Return the seconds of a Prometheus duration or, from call_command, of a timedelta or a whole
    number of seconds. Raises ArgumentTypeError for anything else."""
    text: Any = value.total_seconds() if isinstance(value, timedelta) else value
    if type(text) in (int, float) and text == text // 1:
        text = f"{text:.0f}s"
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error).replace(repr(text), repr(value), 1)) from None


def add_older_than(parser: ArgumentParser, help: str) -> None:
    """Add --older-than, which `age_of` reads."""
    parser.add_argument("--older-than", type=duration, metavar="DURATION", help=help)


def age_of(options: Mapping[str, Any]) -> int:
    """Return the seconds of --older-than. Raises CommandError if it is missing. (argparse cannot
    require it: call_command would then pass the str() of a timedelta.)"""
    age: int | None = options["older_than"]
    if age is None:
        raise CommandError("Error: --older-than is required, such as 90d", returncode=2)
    return age


def to_moment(option: str, value: Any) -> datetime | None:
    """Convert an option's date (text, "now", or a date or datetime) to the site's zone.

    Raises CommandError for anything else.
    """
    if value is None:
        return None
    now = datetime.now(conf.zone)
    if value == "now":
        return now
    # Missing parts are the first ones: "January 2010" is its 1st, not today's day of the month
    first = now.replace(month=1, day=1, hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", dates.UnknownTimezoneWarning)
            when = value if isinstance(value, date) else dates.parse(value, default=first)
            if not isinstance(when, datetime):
                when = datetime.combine(when, clock_time())
            return timestamps.aware(when).astimezone(conf.zone)
    except (TypeError, ValueError, OverflowError, dates.UnknownTimezoneWarning):
        raise CommandError(
            f"--{option.replace('_', '-')} is {value!r}, which cannot be read as a date: write it"
            " like 2010-01-24, 1/24/2010 or 2010-01-24T22:00+01:00, or now"
        ) from None


def show(t: float) -> str:
    """Format a Unix time in the site's zone, for people."""
    when = timestamps.to_datetime(max(t, EARLIEST + DAY))  # earlier ones have no date in some zones
    return timestamps.aware(when).astimezone(conf.zone).isoformat(" ", "seconds")
