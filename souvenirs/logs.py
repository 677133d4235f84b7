"""Log recurring failures once for each cause, not each time."""

from __future__ import annotations

import logging
import re
import time

REPEAT_SECONDS = 60.0
MAX_CAUSES = 100


def cause_of(error: Exception) -> str:
    """Return the error's type and the first line of its message: databases append the statement."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def words_of(error: Exception) -> str:
    """Return an error's message without its full stop, to end one of our sentences."""
    text = str(error).rstrip(" .\n")
    unknown = re.search(r"got an unexpected keyword argument '(.+)'", text)
    return f"{unknown[1]!r} is an unknown parameter" if unknown else text


class CauseLogger:
    """Log a failure only if its cause differs from that of the failure before it.

    After `success`, the same cause is logged again.
    """

    def __init__(self, logger: logging.Logger, message: str) -> None:
        self._logger = logger
        self._message = message
        self._cause = ""

    def is_new(self, error: Exception) -> bool:
        """Remember the cause of `error`. Return True if the last failure had a different cause."""
        known, self._cause = self._cause, cause_of(error)
        return self._cause != known

    def failure(self, error: Exception) -> None:
        """Log `error` with its traceback, unless its cause is known."""
        if self.is_new(error):
            self._logger.error("%s: %s", self._message, self._cause, exc_info=error)

    def success(self) -> None:
        self._cause = ""


class LogLimit:
    """Allow each cause to be logged once in a given time, however often it recurs."""

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}  # on the monotonic clock

    def allows(self, cause: str, seconds: float = REPEAT_SECONDS) -> bool:
        """Return True if `cause` was not logged in the last `seconds`. Then it counts as logged."""
        now = time.monotonic()
        if now - self._logged_at.get(cause, float("-inf")) < seconds:
            return False
        if len(self._logged_at) >= MAX_CAUSES:
            self._logged_at.clear()
        self._logged_at[cause] = now
        return True
