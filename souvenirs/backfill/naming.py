"""Find the columns of a CSV file, or keys of JSON lines, that contain the user and the time."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from souvenirs.backfill.entries import (
    MAX_VALUE,
    NO_TIME,
    UNKNOWN_USER,
    Entry,
    RejectedLine,
    rejected,
)
from souvenirs.backfill.times import to_seconds

# Recognised names, preferred ones first: `id` may well be the record's id
USER_FIELDS = {
    "pk": ("user_id", "user", "pk", "id"),
    "username": ("username", "user", "remote_user"),
    "email": ("email", "user"),
}
ANY_USER_FIELD = ("user_id", "user", "username", "email", "remote_user", "pk", "id")
TIME_FIELDS = ("when", "timestamp", "time", "ts", "@timestamp", "time_iso8601", "time_local")

RECOGNISED = (
    f"recognised names are {', '.join(ANY_USER_FIELD)} for the user, and"
    f" {', '.join(TIME_FIELDS)} for the time; specify others with --user-field and --time-field"
)


class Naming(NamedTuple):
    """How a file names users and times. None: determined by its header or its keys.

    user_by: "pk", "username" or "email".
    user_field, time_field: names of columns or keys; nested keys are joined by dots, such as
        "request.user.id".
    """

    user_by: str | None = None
    user_field: str | None = None
    time_field: str | None = None

    def find_user(self, names: Collection[str]) -> str | None:
        """Return the name among these that stands for the user, or None."""
        if self.user_field is not None:
            return _first(names, (self.user_field,))
        return _first(names, USER_FIELDS[self.user_by] if self.user_by else ANY_USER_FIELD)

    def find_time(self, names: Collection[str]) -> str | None:
        return _first(names, TIME_FIELDS if self.time_field is None else (self.time_field,))

    def user_by_of(self, field: str) -> str:
        """Return what users are identified by in the field."""
        if self.user_by is not None:
            return self.user_by
        name = field.rpartition(".")[2].lower()
        if name in ("username", "remote_user"):
            return "username"
        return "email" if name == "email" else "pk"


def _first(names: Collection[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)


def make_entry(line: int, user: str, when: Any, user_by: str) -> Entry | RejectedLine:
    """Return an entry for a user and a time as they are in the file. It has no user if that is
    empty or "-"."""
    if user in ("", "-"):
        return Entry(line, None, 0.0, user_by)
    if len(user) > MAX_VALUE:
        return rejected(line, UNKNOWN_USER, user)
    try:
        return Entry(line, user, to_seconds(when), user_by)
    except (ValueError, OverflowError):
        return rejected(line, NO_TIME, when)
