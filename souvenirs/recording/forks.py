"""A thread's database connections, and how to abandon them after a fork."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from django.db import connections

logger = logging.getLogger("souvenirs")


class ThreadConnections:
    """The driver connections that one thread has open: the last one that called `take_over`. Call
    `note` and `close` in such a thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._open: list[Any] = []
        self._of_parents: list[Any] = []

    def take_over(self) -> None:
        """Make the calling thread the one whose connections these are."""
        self._thread = threading.current_thread()

    def are_of_this_thread(self) -> bool:
        return self._thread is threading.current_thread()

    def note(self) -> None:
        """Remember which connections are open now."""
        self._open = [
            wrapper.connection
            for wrapper in connections.all(initialized_only=True)
            if wrapper.connection is not None
        ]

    def close(self) -> None:
        connections.close_all()
        if self.are_of_this_thread():  # not if another thread has taken over
            self._open = []

    def after_fork(self) -> None:
        """In the child, where this thread does not exist, leave the connections to the parent.

        When such a connection is garbage-collected, some drivers end the session with the server,
        which is the parent's. So they are kept, with their file descriptors on /dev/null.
        """
        null = os.open(os.devnull, os.O_RDWR)
        for driver in self._open:
            try:
                os.dup2(null, driver.fileno())
            except Exception as error:  # closed by now, or a driver without `fileno`
                logger.debug("A connection of the parent process was left open: %r", error)
        os.close(null)
        self._of_parents += self._open
        self._open = []
