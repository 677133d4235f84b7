"""Parse times in files as Unix seconds."""

from __future__ import annotations

import math
import re
from typing import Any

from django.utils.dateparse import parse_datetime

from souvenirs import timestamps

UTC = re.compile(r"\s*(?:UTC|GMT)$", re.IGNORECASE)  # suffix used by PostgreSQL, Rails and others
LOG_TIME = re.compile(r"(\d\d)/(\w{3})/(\d{4}):(\d\d:\d\d:\d\d(?:\.\d+)?) ([+-]\d\d:?\d\d)")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def to_seconds(when: Any) -> float:
    """Convert a time to Unix seconds. It may be a number of them (also as text), a date and time in
    ISO 8601, or an access log's "31/Jan/2024:12:00:00 +0100".

    A date and time without an offset is in the site's time zone; it may end in "UTC". Raises
    ValueError or OverflowError for anything else.
    """
    if isinstance(when, str):
        try:
            seconds = float(when)
        except ValueError:
            moment = parse_datetime(_to_iso(when))
            if moment is None:
                raise
            return timestamps.to_seconds(moment)
    elif isinstance(when, (int, float)) and not isinstance(when, bool):
        seconds = float(when)
    else:
        raise ValueError(when)
    if not math.isfinite(seconds):
        raise ValueError(when)
    return seconds


def _to_iso(text: str) -> str:
    text = UTC.sub("+00:00", text.strip())
    found = LOG_TIME.fullmatch(text)
    if not found or found[2] not in MONTHS:
        return text
    day, month, year, wall_time, offset = found.groups()
    return f"{year}-{MONTHS.index(month) + 1:02}-{day}T{wall_time}{offset}"
