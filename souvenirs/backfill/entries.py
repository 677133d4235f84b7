"""What readers yield: somebody was active, or a line cannot be loaded."""

from __future__ import annotations

from typing import Any, NamedTuple

UNKNOWN_USER = "unknown user"
NO_USER = "no user"
NO_TIME = "no time"

USER_BY = ("pk", "username", "email")  # what may name a user

PAGE_SIZE = 20_000  # rows of a query: MySQL's client has all of them in memory
MAX_VALUE = 1_000  # characters of a user's name; of what is wrong, in memory by the batch


class Entry(NamedTuple):
    """Somebody was active at `when`, in unix seconds.

    `user` is the value of the user's "pk", "username" (the model's USERNAME_FIELD) or "email",
    whichever `user_by` says; None: nobody was signed in. `line` says where it is from.
    """

    line: int
    user: Any
    when: float
    user_by: str = "pk"


class Bad(NamedTuple):
    """A line that cannot be loaded. Reasons are few: they are counted. `value` is what is wrong."""

    line: int
    reason: str
    value: str

    def __str__(self) -> str:
        value = self.value if len(self.value) <= 100 else self.value[:99] + "…"
        return f"line {self.line}: {self.reason}: {value!r}"


def rejected(line: int, reason: str, value: object) -> Bad:
    """A Bad of a value of any length."""
    return Bad(line, reason, str(value)[:MAX_VALUE])


class BackfillError(ValueError):
    """Why nothing can be loaded. The text is for the user."""
