"""What commands read, and how they show it."""

from __future__ import annotations

import warnings
from argparse import ArgumentTypeError
from datetime import datetime
from typing import Any

from dateutil import parser as dates
from django.core.management.base import CommandError

from souvenirs import timestamps
from souvenirs.conf import conf
from souvenirs.periods import parse_duration


def duration(text: str) -> int:
    """Seconds of a Prometheus duration. Raises ArgumentTypeError for what is none."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def to_moment(option: str, value: Any) -> datetime | None:
    """An option's date or "now", in the site's zone. Raises CommandError for what is none."""
    if value is None or isinstance(value, datetime):
        return None if value is None else timestamps.aware(value).astimezone(conf.zone)
    now = datetime.now(conf.zone)
    if value == "now":
        return now
    # What a date leaves out is the first: "January 2010" begins on the 1st, and not on today's day
    first = now.replace(month=1, day=1, hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", dates.UnknownTimezoneWarning)
            return timestamps.aware(dates.parse(value, default=first)).astimezone(conf.zone)
    except (ValueError, OverflowError, dates.UnknownTimezoneWarning):
        raise CommandError(
            f"--{option.replace('_', '-')} is {value!r}, which cannot be read as a date: write it"
            " like 2010-01-24, 1/24/2010 or 2010-01-24T22:00+01:00, or now"
        ) from None


def show(t: float) -> str:
    """Unix time in the site's zone, for people."""
    return (
        timestamps.aware(timestamps.to_datetime(t)).astimezone(conf.zone).isoformat(" ", "seconds")
    )
