"""The queue of visits for the writer: one entry per user and rate-limit slot."""

from __future__ import annotations

import threading
import time
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from souvenirs.periods import Interval

MAX_ENTRIES = 50_000  # 16 MiB with integer keys, see benchmarks/memory.py


@dataclass(slots=True)
class Entry:
    """A user's visits in a slot that are not written yet. Times in Unix seconds.

    first, last: of these visits. The first is the souvenir's time, the last the last-seen time.
    visits: the number of visits.
    has_row: True if this process knows that the slot's souvenir is written.
    in_store: True if `last` has been written to a store that does not keep its times in the table.
    in_doubt: True if a transaction wrote the souvenir, but it (or its late mark) may have failed.
    """

    user_pk: Any
    slot: Interval
    first: float
    last: float
    visits: int = 1
    has_row: bool = False
    in_store: bool = False
    in_doubt: bool = False

    def merged(self, later: Entry) -> Entry:
        return replace(
            later,
            first=min(self.first, later.first),
            last=max(self.last, later.last),
            visits=self.visits + later.visits,
            has_row=self.has_row or later.has_row,
            in_doubt=self.in_doubt or later.in_doubt,
        )


class VisitQueue:
    """A thread-safe queue. The oldest entries come first, and are the first to be dropped if there
    are too many."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.queued = 0  # visits, in total
        self.waiting_since: float | None = None  # on the monotonic clock, for the next `take`
        self._entries: dict[tuple[Any, float], Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, user_pk: Any, slot: Interval, t: float, has_row: bool) -> int:
        """Add a visit. Return how many visits were dropped to make room."""
        key = user_pk, slot.start
        with self.lock:
            self.queued += 1
            entry = self._entries.get(key)
            if entry is not None:
                entry.first, entry.last = min(entry.first, t), max(entry.last, t)
                entry.visits += 1
                entry.in_store = False
                return 0
            self._entries[key] = Entry(user_pk, slot, t, t, has_row=has_row)
            if self.waiting_since is None:
                self.waiting_since = time.monotonic()
            return self._drop() if len(self._entries) > MAX_ENTRIES else 0

    def take(self, count: int) -> list[Entry]:
        """Remove and return the oldest entries, at most `count`."""
        with self.lock:
            taken = [self._entries.pop(key) for key in list(islice(self._entries, count))]
            self.waiting_since = time.monotonic() if self._entries else None
        return taken

    def take_new_for_store(self) -> list[Entry]:
        """Remove and return the entries that are not in the store."""
        with self.lock:
            keys = [key for key, entry in self._entries.items() if not entry.in_store]
            return [self._entries.pop(key) for key in keys]

    def of_users(self, user_pks: Container[Any]) -> list[Entry]:
        """Return the entries of these users, without removing them."""
        if not self._entries:
            return []
        with self.lock:
            return [entry for entry in self._entries.values() if entry.user_pk in user_pks]

    def restore(self, entries: Iterable[Entry]) -> int:
        """Put entries back, before those that were added meanwhile. Return how many visits were
        dropped to make room."""
        with self.lock:
            restored = {(entry.user_pk, entry.slot.start): entry for entry in entries}
            if not restored:
                return 0
            for key, later in self._entries.items():
                earlier = restored.get(key)
                restored[key] = later if earlier is None else earlier.merged(later)
            self._entries = restored
            self.waiting_since = time.monotonic()
            return self._drop()

    def clear(self) -> None:
        with self.lock:
            self._entries = {}
            self.waiting_since = None

    def _drop(self) -> int:
        excess = list(islice(self._entries, max(0, len(self._entries) - MAX_ENTRIES)))
        return sum(self._entries.pop(key).visits for key in excess)
