"""Readings that are too expensive for each scrape."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from souvenirs.logs import cause_of

T = TypeVar("T")

MIN_SECONDS = 60
FACTOR = 20  # so that a database spends at most a twentieth of the time on it


class FailedBefore(Exception):
    pass


class Kept(Generic[T]):
    """A reading, which is used again for at least MIN_SECONDS and FACTOR times as long as it took.

    One that fails is not tried again for FACTOR times as long as it took.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._value: T | None = None
        self._until = 0.0  # on the monotonic clock
        self._retry_at = 0.0
        self._cause = ""

    def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """What `read` returned a while ago, if it was for the same key, or else returns now.

        Raise what it raises; or FailedBefore, while it is not tried again.
        """
        began = time.monotonic()
        if self._value is not None and key == self._key and began < self._until:
            return self._value
        if began < self._retry_at:
            raise FailedBefore(f"it is not tried again yet, after it failed: {self._cause}")
        try:
            self._value, self._key = read(), key
        except Exception as error:
            ended = time.monotonic()
            self._cause, self._retry_at = cause_of(error), ended + FACTOR * (ended - began)
            raise
        ended = time.monotonic()
        self._until = ended + max(MIN_SECONDS, FACTOR * (ended - began))
        return self._value
