"""What readers yield: somebody was active, or a line cannot be loaded."""

from __future__ import annotations

from typing import Any, NamedTuple

UNKNOWN_USER = "unknown user"
NO_USER = "no user"
NO_TIME = "no time"

# The columns or keys that may name a user, the one to be preferred first: `id` may well be the
# record's own.
USER_NAMES = {
    "pk": ("user_id", "user", "pk", "id"),
    "username": ("username", "user"),
    "email": ("email", "user"),
}

PAGE_SIZE = 20_000  # rows of a query: MySQL's client has all of them in memory


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


class BackfillError(ValueError):
    """Why nothing can be loaded. The text is for the user."""
