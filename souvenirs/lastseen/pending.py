"""The updates that a process has yet to write to Redis: visits add them here without waiting."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

MAX_PENDING = 50_000  # users


class Move(NamedTuple):
    """An update of a user.

    seen: move the last-seen time forward to this. None: the user has been deleted.
    confirmed: the table has just confirmed it. Otherwise another process may have deleted the user
        meanwhile, or created a user with the same key.
    latest: as in LastSeenUpdate.
    key_reused: another user had this key before, and has been deleted.
    """

    seen: int | None
    confirmed: bool = True
    latest: int | None = None
    key_reused: bool = False

    def then(self, later: Move) -> Move:
        """Return a move with the effect of this one followed by `later`."""
        if later.seen is None or later.key_reused:
            return later
        if self.seen is None:
            return later._replace(key_reused=True)
        is_wrong = later.latest is not None and self.seen > later.latest
        return Move(
            later.seen if is_wrong else max(self.seen, later.seen),
            self.confirmed or later.confirmed,
            self.latest if later.latest is None else later.latest,
            self.key_reused,
        )


class PendingWrites:
    """At most one move for each user: several are merged. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moves: dict[bytes, Move] = {}
        self._overflowed = False

    def __len__(self) -> int:
        return len(self._moves)

    def __bool__(self) -> bool:
        """Return True if there is something to do."""
        return bool(self._moves) or self._overflowed

    def add(self, moves: Mapping[bytes, Move]) -> None:
        with self._lock:
            for member, move in moves.items():
                pending = self._moves.get(member)
                self._moves[member] = pending.then(move) if pending else move
            self._bound()

    def pop(self, users: int) -> dict[bytes, Move]:
        """Remove and return the moves of at most `users` users, those that waited longest first."""
        with self._lock:
            return {m: self._moves.pop(m) for m in list(islice(self._moves, users))}

    def restore(self, moves: Mapping[bytes, Move]) -> None:
        """Put back moves that could not be written, before those added meanwhile. They are no
        longer confirmed: other processes may have written."""
        with self._lock:
            old = {member: move._replace(confirmed=False) for member, move in moves.items()}
            newer = {m: old[m].then(move) for m, move in self._moves.items() if m in old}
            self._moves = {**old, **self._moves, **newer}
            self._bound()

    def _bound(self) -> None:
        if len(self._moves) > MAX_PENDING:
            self._moves.clear()
            self._overflowed = True

    def pop_overflow(self) -> bool:
        """Return True if moves were dropped since the last call."""
        with self._lock:
            overflowed, self._overflowed = self._overflowed, False
        return overflowed

    def restore_overflow(self) -> None:
        self._overflowed = True
