"""Files of past activity -> entries."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db import router
from django.utils.dateparse import parse_datetime

from souvenirs import timestamps
from souvenirs.backfill.entries import (
    NO_TIME,
    NO_USER,
    PAGE_SIZE,
    UNKNOWN_USER,
    USER_NAMES,
    BackfillError,
    Bad,
    Entry,
)

ANY_USER_NAME = ("user_id", "user", "username", "email", "pk", "id")
TIME_NAMES = ("when", "timestamp", "time")


def read_csv(lines: Iterable[str], user_by: str | None = None) -> Iterator[Entry | Bad]:
    """Entries of comma-separated values: with a header that names a column of USER_NAMES and one of
    TIME_NAMES, else of the two columns user and time.

    Times are read as `to_seconds` does. An empty user is nobody. Without `user_by` the header says
    what users are named by: their keys, if there is none.
    """
    columns: tuple[int, int] | None = None
    width, by = 2, user_by or "pk"
    for line, row in csv_rows(lines):
        if columns is None:
            header = [name.strip().lower() for name in row]
            name, time_name = find(header, user_names(user_by)), find(header, TIME_NAMES)
            if name and time_name:
                columns, width = (header.index(name), header.index(time_name)), len(header)
                by = user_by or user_key_for(name)
                continue
            columns = 0, 1
        if len(row) != width:
            reason = f"{width} columns expected" if row else "no comma-separated values"
            yield Bad(line, reason, ",".join(row))
        else:
            yield entry(line, row[columns[0]].strip(), row[columns[1]].strip(), by)


def csv_rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows, each with the number of the line that it begins on; empty where there is none."""
    reader = csv.reader(lines)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
            if not row:
                continue  # an empty line
        except StopIteration:
            return
        except csv.Error:
            row = []
        yield line, row


def read_jsonl(lines: Iterable[str], user_by: str | None = None) -> Iterator[Entry | Bad]:
    """Entries of JSON lines: objects with a key of USER_NAMES and one of TIME_NAMES.

    Times are text or numbers, read as `to_seconds` does. A null user is nobody. Without `user_by`
    the key says what the user is named by.
    """
    names = user_names(user_by)
    for line, text in enumerate(lines, 1):
        if text.isspace():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            yield Bad(line, "no JSON object", text.strip())
            continue
        name, time_name = find(record, names), find(record, TIME_NAMES)
        if name is None or time_name is None:
            missing = NO_USER if name is None else NO_TIME
            yield Bad(line, f"{missing} among the keys", text.strip())
            continue
        user = record[name]
        if isinstance(user, (bool, list, dict)):
            yield Bad(line, UNKNOWN_USER, str(user))
        else:
            yield entry(
                line,
                "" if user is None else str(user),
                record[time_name],
                user_by or user_key_for(name),
            )


# The field of the user may hold spaces. Apache and nginx both write quotes within quotes as \" or
# \x22, and all but ASCII as \x and two digits a byte.
LOG_LINE = re.compile(
    r'\S+ \S+ (?P<user>.+?) \[(?P<time>[^\]]*)\] "(?:[^"\\]|\\.)*" (?P<status>\d{3}) '
)
LOG_TIME = re.compile(r"(\d\d)/(\w{3})/(\d{4}):(\d\d:\d\d:\d\d) ([+-]\d\d)(\d\d)")
LOG_ESCAPE = re.compile(r'(?P<bytes>(?:\\x[0-9A-Fa-f]{2})+)|\\(?P<same>["\\])')
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def read_access_log(lines: Iterable[str], user_by: str | None = None) -> Iterator[Entry | Bad]:
    """Entries of an access log in the combined (or common) format, as Apache and nginx write it.

    Its third field is a username, without `user_by`. Nobody's are requests without it, and those
    that were answered 401: there it is only what somebody claimed to be.
    """
    by = user_by or "username"
    for line, text in enumerate(lines, 1):
        if text.isspace():
            continue
        found = LOG_LINE.match(text)
        if not found:
            yield Bad(line, "not in the combined log format", text.strip())
        elif found["user"] in ("-", '""') or found["status"] == "401":
            yield Entry(line, None, 0.0, by)
        else:
            yield entry(line, LOG_ESCAPE.sub(unescape, found["user"]), log_time(found["time"]), by)


def unescape(found: re.Match[str]) -> str:
    if found["bytes"]:
        return bytes.fromhex(found["bytes"].replace("\\x", "")).decode(errors="replace")
    return found["same"]


def log_time(text: str) -> str:
    """A log's time in ISO 8601; what is none as it is."""
    found = LOG_TIME.fullmatch(text)
    if not found or found[2] not in MONTHS:
        return text
    day, month, year, wall_time, hours, minutes = found.groups()
    return f"{year}-{MONTHS.index(month) + 1:02}-{day}T{wall_time}{hours}:{minutes}"


def read_last_logins() -> Iterator[Entry]:
    """An entry for each user who has logged in, of the last time. Raises BackfillError if the user
    model has no last_login."""
    model: Any = get_user_model()
    try:
        model._meta.get_field("last_login")
    except FieldDoesNotExist:
        raise BackfillError(f"{model._meta.label} has no field last_login") from None
    users = model._base_manager.using(router.db_for_read(model)).order_by("pk")
    users = users.filter(last_login__isnull=False).values_list("pk", "last_login")
    line, page = 0, users[:PAGE_SIZE]
    while page:
        for user_pk, when in page:
            line += 1
            yield Entry(line, user_pk, timestamps.to_seconds(when))
        page = users.filter(pk__gt=user_pk)[:PAGE_SIZE]


READERS: dict[str, Callable[[Iterable[str], str | None], Iterator[Entry | Bad]]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "access-log": read_access_log,
}


def user_names(user_by: str | None) -> tuple[str, ...]:
    return USER_NAMES[user_by] if user_by else ANY_USER_NAME


def find(names: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)


def user_key_for(name: str) -> str:
    """What a user is named by in a column or key of this name."""
    return name if name in USER_NAMES else "pk"


def entry(line: int, user: str, when: Any, user_by: str) -> Entry | Bad:
    if not user:
        return Entry(line, None, 0.0, user_by)
    try:
        return Entry(line, user, to_seconds(when), user_by)
    except (ValueError, OverflowError):
        return Bad(line, NO_TIME, str(when))


def to_seconds(when: Any) -> float:
    """Unix seconds of a number of them, as such or as text, or of a date and time in ISO 8601;
    without an offset it is in the site's time zone. Raises ValueError or OverflowError."""
    if isinstance(when, str):
        try:
            seconds = float(when)
        except ValueError:
            moment = parse_datetime(when)
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
