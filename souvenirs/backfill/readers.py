"""Read files of past activity as entries."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db import router

from souvenirs import timestamps
from souvenirs.backfill.access_logs import parse_request
from souvenirs.backfill.csv_rows import DELIMITERS, Line, iter_rows, split
from souvenirs.backfill.entries import (
    NO_TIME,
    NO_USER,
    PAGE_SIZE,
    UNKNOWN_USER,
    BackfillError,
    Entry,
    RejectedLine,
    rejected,
)
from souvenirs.backfill.lines import too_long
from souvenirs.backfill.naming import RECOGNISED, Naming, make_entry
from souvenirs.backfill.times import to_seconds

Entries = Iterator[Entry | RejectedLine]
AS_NAMED = Naming()
MISSING = object()


class Layout(NamedTuple):
    """Where the user and the time are in a file of delimited values."""

    delimiter: str
    width: int
    user: int
    time: int
    user_by: str
    has_header: bool

    def is_complete(self, values: list[str] | None) -> bool:
        return values is not None and len(values) == self.width and is_time(values[self.time])


def read_csv(lines: Iterable[str], naming: Naming = AS_NAMED) -> Entries:
    """Yield the entries of values delimited by commas, semicolons, tabs or bars: with a header that
    names a column for the user and one for the time, or with just the two columns user and time.

    Without a header, users are identified by their keys unless `naming` says otherwise. Raises
    BackfillError if the first line is neither a header nor a user and a time.
    """
    first, rest = peek(lines)
    if first is None:
        return
    layout = layout_of(*first, naming)
    rows = rest if layout.has_header else itertools.chain([first], rest)
    for number, text, values in iter_rows(rows, layout.delimiter, layout.is_complete):
        if bad := too_long(number, text):
            yield bad
        elif values is None:
            yield rejected(number, "a value is too long", text.strip())
        elif len(values) != layout.width:
            yield rejected(number, f"expected {layout.width} columns", text.strip())
        else:
            user, when = values[layout.user].strip(), values[layout.time].strip()
            yield make_entry(number, user, when, layout.user_by)


def peek(lines: Iterable[str]) -> tuple[Line | None, Iterator[Line]]:
    """Return the first line that is not blank, and an iterator over the rest, with numbers."""
    numbered = enumerate(lines, 1)
    return next(((number, text) for number, text in numbered if not text.isspace()), None), numbered


def layout_of(number: int, text: str, naming: Naming) -> Layout:
    """Determine the layout of a file from its first line."""
    rows = {delimiter: split(text, delimiter) or [] for delimiter in DELIMITERS}
    lower = Naming(naming.user_by, *(name and name.lower() for name in naming[1:]))
    for delimiter, row in rows.items():
        header = [name.strip().lower() for name in row]
        user, time = lower.find_user(header), lower.find_time(header)
        if user is not None and time is not None:
            columns = header.index(user), header.index(time)
            return Layout(delimiter, len(header), *columns, lower.user_by_of(user), True)
    for delimiter, row in rows.items():
        if len(row) == 2 and is_time(row[1]) and not (naming.user_field or naming.time_field):
            return Layout(delimiter, 2, 0, 1, naming.user_by or "pk", False)
    begun = repr(text.strip() if len(text) <= 100 else text[:99] + "…")
    if naming.user_field or naming.time_field:
        wanted = " and ".join(repr(name) for name in naming[1:] if name)
        raise BackfillError(f"line {number} is not a header with {wanted}: {begun}; {RECOGNISED}")
    raise BackfillError(
        f"line {number} is neither a header nor a user and a time: {begun}; {RECOGNISED}"
    )


def is_time(text: str) -> bool:
    try:
        to_seconds(text.strip())
    except (ValueError, OverflowError):
        return False
    return True


def read_jsonl(lines: Iterable[str], naming: Naming = AS_NAMED) -> Entries:
    """Yield the entries of JSON lines: objects with a key for the user and one for the time.

    Times are text or numbers. Entries have no user if the object's user is null, empty or "-", if
    its `status` is 401 (see `read_access_log`), or if `naming` gives the user's key and the object
    lacks it. Raises BackfillError if no object has that key.
    """
    return entries_of_json(enumerate(lines, 1), naming)


def entries_of_json(lines: Iterable[Line], naming: Naming) -> Entries:
    was_found = naming.user_field is None
    for line, text in lines:
        if text.isspace():
            continue
        if bad := too_long(line, text):
            yield bad
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            yield rejected(line, "not a JSON object", text.strip())
            continue
        name = naming.user_field or naming.find_user(record)
        user = MISSING if name is None else find_value(record, name)
        was_found = was_found or user is not MISSING
        if name is None:
            yield rejected(line, f"{NO_USER} among the keys", text.strip())
        elif user in (MISSING, None) or str(record.get("status")) == "401":
            yield Entry(line, None, 0.0, naming.user_by_of(name))
        elif isinstance(user, (bool, list, dict)):
            yield rejected(line, UNKNOWN_USER, user)
        else:
            time_name = naming.time_field or naming.find_time(record)
            when = MISSING if time_name is None else find_value(record, time_name)
            if when is MISSING:
                yield rejected(line, f"{NO_TIME} among the keys", text.strip())
            else:
                yield make_entry(line, str(user), when, naming.user_by_of(name))
    if not was_found:
        raise BackfillError(f"no line has the key {naming.user_field!r}; {RECOGNISED}")


def find_value(record: Any, path: str) -> Any:
    """Return the value of a key, which may contain dots, or of nested keys (and list indexes)
    joined by dots. Return None if one of them is null, and MISSING if one does not exist."""
    if isinstance(record, dict) and path in record:
        return record[path]
    for name in path.split("."):
        if record is None:
            return None
        if isinstance(record, list) and name.isdecimal() and int(name) < len(record):
            record = record[int(name)]
        elif isinstance(record, dict) and name in record:
            record = record[name]
        else:
            return MISSING
    return record


def read_access_log(lines: Iterable[str], naming: Naming = AS_NAMED) -> Entries:
    """Yield the entries of an access log in the combined (or common) format, as Apache and nginx
    write it, or of JSON lines.

    Users are identified by their usernames unless `naming` says otherwise. Entries have no user if
    the request had none, or was answered with 401: then the name is only what the client claimed.
    """
    first, rest = peek(lines)
    if first is None:
        return
    lines_again = itertools.chain([first], rest)
    if first[1].startswith("{"):
        yield from entries_of_json(lines_again, naming)
        return
    if naming.user_field or naming.time_field:
        raise BackfillError(
            "an access log in the combined format has no keys or columns: omit --user-field and"
            " --time-field"
        )
    by = naming.user_by or "username"
    for line, text in lines_again:
        if text.isspace():
            continue
        if bad := too_long(line, text):
            yield bad
            continue
        request = parse_request(text)
        if request is None:
            yield rejected(line, "not in the combined or common log format", text.strip())
        elif not request.user or request.status == "401":
            yield Entry(line, None, 0.0, by)
        else:
            yield make_entry(line, request.user, request.time, by)


def read_last_logins() -> Iterator[Entry]:
    """Yield an entry for each user's last log-in. Raises BackfillError if the user model has no
    last_login."""
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


READERS: dict[str, Callable[[Iterable[str], Naming], Entries]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "access-log": read_access_log,
}
