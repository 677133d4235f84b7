"""The connections of a thread, and what a fork makes of them."""

from __future__ import annotations

import logging
import os
from typing import Any

from django.db import connections

logger = logging.getLogger("souvenirs")


class ThreadConnections:
    """The drivers' connections that one thread has open. Call `note` and `close` in that thread."""

    def __init__(self) -> None:
        self._open: list[Any] = []
        self._of_parents: list[Any] = []

    def note(self) -> None:
        """Note which connections are open now."""
        self._open = [
            wrapper.connection
            for wrapper in connections.all(initialized_only=True)
            if wrapper.connection is not None
        ]

    def close(self) -> None:
        connections.close_all()
        self._open = []

    def after_fork(self) -> None:
        """In the child, which has no such thread, leave the connections to the parent.

        Once nobody refers to them, some drivers say good-bye to the server, which would end the
        parent's session: they are kept, and lead nowhere.
        """
        null = os.open(os.devnull, os.O_RDWR)
        for driver in self._open:
            try:
                os.dup2(null, driver.fileno())
            except Exception as error:  # closed by now, or a driver without `fileno`
                logger.debug("A connection of the parent is left open: %r", error)
        os.close(null)
        self._of_parents += self._open
        self._open = []
