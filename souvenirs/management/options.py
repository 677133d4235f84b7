"""What commands read, and how they show it."""

from __future__ import annotations

import warnings
from argparse import ArgumentTypeError
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from typing import Any

from dateutil import parser as dates
from django.core.management.base import CommandError

from souvenirs import timestamps
from souvenirs.conf import conf
from souvenirs.periods import parse_duration


def duration(value: Any) -> int:
    """Seconds of a Prometheus duration, or of a timedelta or a whole number of seconds, which
    call_command may give. Raises ArgumentTypeError for anything else."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if type(seconds) in (int, float):
        value = f"{seconds:.0f}s" if seconds == seconds // 1 else value
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def to_moment(option: str, value: Any) -> datetime | None:
    """An option's date (text, or a date or datetime), in the site's zone. Raises CommandError for
    anything else."""
    if value is None:
        return None
    # What a date leaves out is the first: "January 2010" begins on the 1st, and not on today's day
    first = datetime.now(conf.zone).replace(
        month=1, day=1, hour=0, minute=0, second=0, microsecond=0, tzinfo=None
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", dates.UnknownTimezoneWarning)
            if not isinstance(value, date):
                value = dates.parse(value, default=first)
            elif not isinstance(value, datetime):
                value = datetime.combine(value, clock_time())
            return timestamps.aware(value).astimezone(conf.zone)
    except (TypeError, ValueError, OverflowError, dates.UnknownTimezoneWarning):
        raise CommandError(
            f"--{option.replace('_', '-')} is {value!r}, which cannot be read as a date: write it"
            " like 2010-01-24, 1/24/2010 or 2010-01-24T22:00+01:00"
        ) from None


def show(t: float) -> str:
    """Unix time in the site's zone, for people."""
    return (
        timestamps.aware(timestamps.to_datetime(t)).astimezone(conf.zone).isoformat(" ", "seconds")
    )
