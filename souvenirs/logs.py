"""How failures that recur are logged: once for each cause, not each time."""

from __future__ import annotations

import logging


def cause_of(error: Exception) -> str:
    """The error's type and the first line of its message: databases add the statement below."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


class CauseLogger:
    """Log a failure only if its cause differs from that of the failure before it.

    After `success`, the same cause is logged again.
    """

    def __init__(self, logger: logging.Logger, message: str) -> None:
        self._logger = logger
        self._message = message
        self._cause = ""

    def is_new(self, error: Exception) -> bool:
        """Remember the cause of `error`. Return True if the last failure had another one."""
        known, self._cause = self._cause, cause_of(error)
        return self._cause != known

    def failure(self, error: Exception) -> None:
        """Log `error` with its traceback, unless its cause is known."""
        if self.is_new(error):
            self._logger.error("%s: %s", self._message, self._cause, exc_info=error)

    def success(self) -> None:
        self._cause = ""
