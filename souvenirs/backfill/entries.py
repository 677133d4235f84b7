"""What readers yield: an entry of activity, or a line that cannot be loaded."""

from __future__ import annotations

from typing import Any, NamedTuple

UNKNOWN_USER = "unknown user"
NO_USER = "no user"
NO_TIME = "no time"

USER_BY = ("pk", "username", "email")  # what users may be identified by

PAGE_SIZE = 20_000  # rows in a query: MySQL's client loads all of them into memory
MAX_VALUE = 1_000  # characters of a user's name, or of a rejected value: a batch is in memory


class Entry(NamedTuple):
    """A user was active at `when`, in Unix seconds.

    `user` is the value of the user's "pk", "username" (the model's USERNAME_FIELD) or "email",
    depending on `user_by`; None if no user was signed in. `line` is the line number in the input.
    """

    line: int
    user: Any
    when: float
    user_by: str = "pk"


class RejectedLine(NamedTuple):
    """A line that cannot be loaded. `reason` is one of a few, for counting; `value` is what was
    rejected."""

    line: int
    reason: str
    value: str

    def __str__(self) -> str:
        value = self.value if len(self.value) <= 100 else self.value[:99] + "…"
        return f"line {self.line}: {self.reason}: {value!r}"


def rejected(line: int, reason: str, value: object) -> RejectedLine:
    """Return a RejectedLine for a value of any length."""
    return RejectedLine(line, reason, str(value)[:MAX_VALUE])


class BackfillError(ValueError):
    """Nothing can be loaded. The message says why, for the user."""
