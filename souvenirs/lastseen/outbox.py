"""What a process has still to write to Redis. A visit leaves it here, and waits for nobody."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from itertools import islice

from souvenirs.lastseen.shards import Move

MOST = 50_000  # users


class Outbox:
    """The moves of each user are one move. It may be used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moves: dict[bytes, Move] = {}
        self._is_lossy = False  # more came than it holds

    def __len__(self) -> int:
        return len(self._moves)

    def __bool__(self) -> bool:
        """Whether there is something to do."""
        return bool(self._moves) or self._is_lossy

    def add(self, moves: Mapping[bytes, Move]) -> None:
        with self._lock:
            for member, move in moves.items():
                waiting = self._moves.get(member)
                self._moves[member] = waiting.then(move) if waiting else move
            self._bound()

    def take(self, users: int) -> dict[bytes, Move]:
        """Moves of so many, those first that wait for longest. They are the caller's now."""
        with self._lock:
            return {m: self._moves.pop(m) for m in list(islice(self._moves, users))}

    def give_back(self, moves: Mapping[bytes, Move]) -> None:
        """Takes moves back that could not be written, before those that came meanwhile. They are
        not sure any more: others may have written."""
        with self._lock:
            old = {member: move._replace(is_sure=False) for member, move in moves.items()}
            newer = {m: old[m].then(move) for m, move in self._moves.items() if m in old}
            self._moves = {**old, **self._moves, **newer}
            self._bound()

    def _bound(self) -> None:
        if len(self._moves) > MOST:
            self._moves.clear()
            self._is_lossy = True

    def take_loss(self) -> bool:
        """Whether something was lost, since it was asked for the last time."""
        with self._lock:
            was_lossy, self._is_lossy = self._is_lossy, False
        return was_lossy

    def give_loss_back(self) -> None:
        self._is_lossy = True
