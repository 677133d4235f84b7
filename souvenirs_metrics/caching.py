"""A cache for readings that are too expensive to repeat with every scrape."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from souvenirs.logs import cause_of

T = TypeVar("T")

MIN_SECONDS = 60
FACTOR = 20  # so that a database spends at most a twentieth of the time on a reading


class FailedRecently(Exception):
    pass


class CachedReading(Generic[T]):
    """A reading that is reused for MIN_SECONDS, or FACTOR times as long as it took if that is more.

    A failed reading is not repeated for FACTOR times as long as it took to fail.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._value: T | None = None
        self._until = 0.0  # on the monotonic clock
        self._retry_at = 0.0
        self._cause = ""

    def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """Return the cached result if it was read for the same key, or else call `read`.

        Raise what `read` raises, or FailedRecently if it failed too recently to try again.
        """
        began = time.monotonic()
        if self._value is not None and key == self._key and began < self._until:
            return self._value
        if began < self._retry_at:
            raise FailedRecently(f"not tried again yet, after a recent failure: {self._cause}")
        try:
            self._value, self._key = read(), key
        except Exception as error:
            ended = time.monotonic()
            self._cause, self._retry_at = cause_of(error), ended + FACTOR * (ended - began)
            raise
        ended = time.monotonic()
        self._until = ended + max(MIN_SECONDS, FACTOR * (ended - began))
        return self._value
