"""Last-seen times in Redis, for sites that outgrow one machine: see docs/scaling.md."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

from django.db import DatabaseError, connections

from souvenirs.breaker import Breaker
from souvenirs.conf import conf
from souvenirs.lastseen import clients
from souvenirs.lastseen.base import Activity, LastSeenStore, Reading, Warned
from souvenirs.lastseen.database import DatabaseStore
from souvenirs.lastseen.filling import Sweep, exact_from, fill, member_of
from souvenirs.lastseen.shards import Counts, Move, Shards
from souvenirs.models import Sighting

logger = logging.getLogger("souvenirs")

BACKLOG = 50_000  # users whose times a process keeps while the server is away
AT_ONCE = 500  # of them that are written together with a visit, once it is back


class Backlog:
    """What could not be written, the latest of each user."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.moves: dict[bytes, Move] = {}
        self.is_lossy = False  # more came than it holds

    def add(self, moves: Mapping[bytes, Move]) -> None:
        with self._lock:
            for member, move in moves.items():
                known = self.moves.pop(member, None)
                if known and known.seen is not None and move.seen is not None:
                    move = Move(max(known.seen, move.seen), known.is_known and move.is_known)
                self.moves[member] = move
            if len(self.moves) > BACKLOG:
                self.moves.clear()
                self.is_lossy = True

    def take(self) -> dict[bytes, Move]:
        """Some, which are its no longer."""
        with self._lock:
            return {m: self.moves.pop(m) for m in list(islice(self.moves, AT_ONCE))}


class RedisStore(LastSeenStore):
    """Last-seen times in sorted sets: a rank takes O(log n), and all machines share them.

    But for `warning`, no method raises what the server does. While it is away a breaker keeps
    requests from waiting, the process keeps what is to be written, and the table answers: to the
    rate limit's slot. It also answers while shards are filled from it, which the server has lost.
    """

    name = "redis"

    def __init__(self, params: Mapping[str, Any]) -> None:
        """Raises ValueError for options that do not go together, TypeError for unknown ones."""
        self.shards, self.with_table = read(**params)
        self.table = DatabaseStore({})
        self.breaker = Breaker("The Redis of last-seen times")
        self.backlog = Backlog()
        self.is_to_be_filled = False
        self._round = Sweep(self.shards)
        self._thread: threading.Thread | None = None

    # Writing

    def touch(self, sighting: Sighting) -> None:
        if self.with_table:
            self.table.touch(sighting)
        if sighting.seen is not None:
            self._write({sighting.user_pk: Move(sighting.seen, True)}, sighting.latest)

    def follow(self, newest: Mapping[Any, int], latest: int | None = None) -> None:
        self._write({user_pk: Move(seen) for user_pk, seen in newest.items()}, latest)

    def remove(self, user_pk: Any) -> None:
        self._write({user_pk: Move(None)})

    def _write(self, moves: Mapping[Any, Move], latest: int | None = None) -> None:
        moves = {member_of(user_pk): move for user_pk, move in moves.items()}
        if not moves:
            return
        if not self.breaker.allows():
            self.backlog.add(moves)
            return
        try:
            if len(moves) == 1:
                ((member, move),) = moves.items()
                self.shards.write(member, move, latest)
            else:
                for at in range(0, len(moves), AT_ONCE):
                    self.shards.write_all(dict(islice(moves.items(), at, at + AT_ONCE)))
            self._work_off()
        except Exception as error:
            self.backlog.add(moves)
            self._note(error)
        else:
            self.breaker.success()

    def _work_off(self) -> None:
        """Writes some of what could not be written before."""
        if self.backlog.is_lossy:
            self.shards.unmark()
            self.backlog.is_lossy = False
        if self.backlog.moves:
            moves = self.backlog.take()
            try:
                self.shards.write_all(moves)
            except Exception:
                self.backlog.add(moves)
                raise

    def _note(self, error: Exception) -> None:
        self.breaker.failure(error)
        self.shards.reconnect()

    # Reading

    def get(self, user_pk: Any) -> int | None:
        """From the table, if Redis does not know."""
        seen = None
        if self.breaker.allows():
            try:
                seen = self.shards.get(member_of(user_pk))
            except Exception as error:
                self._note(error)
            else:
                self.breaker.success()
        return self.table.get(user_pk) if seen is None else seen

    def activity(
        self, cuts: Sequence[float], until: float, using: str, reading: Reading = nullcontext
    ) -> Activity:
        counts = self._count(cuts, until)
        exact_since = time.time() - conf.ratelimit_seconds
        cause = "Redis does not answer"
        if counts is not None:
            cause = f"Redis {'has been' if counts.is_whole else 'is'} filled anew"
            is_exact = counts.is_whole and counts.whole_since <= exact_since
            if is_exact or (counts.is_whole and not self.with_table):
                return Activity(
                    since=counts.since, newest=counts.newest, cause="" if is_exact else cause
                )
        table = self.table.activity(cuts, until, using, reading)
        if self.with_table or exact_from(table.newest, time.time()) <= exact_since:
            return table
        return replace(table, cause=cause)

    def _count(self, cuts: Sequence[float], until: float) -> Counts | None:
        """None if the server is away."""
        if not self.breaker.allows():
            return None
        try:
            while self.backlog.moves or self.backlog.is_lossy:
                self._work_off()
            counts = self.shards.count(cuts, until)
        except Exception as error:
            self._note(error)
            return None
        self.breaker.success()
        self.is_to_be_filled = not counts.is_whole
        return counts

    # Keeping it whole

    def keep_up(self) -> None:
        """Fills lost shards in a thread of its own, or has a look at some members."""
        if self.is_to_be_filled:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._fill_in_thread, name="souvenirs-filling", daemon=True
                )
                self._thread.start()
        elif self.breaker.allows():
            try:
                self._round.step()
            except DatabaseError:
                raise
            except Exception as error:
                self._note(error)
            else:
                self.breaker.success()

    def _fill_in_thread(self) -> None:
        try:
            self.fill()
        finally:
            connections.close_all()

    def fill(self) -> None:
        started = time.monotonic()
        try:
            filled = fill(self.shards)
        except Exception as error:  # the next scrape begins again
            logger.exception("Redis cannot be filled with last-seen times: %r", error)
            return
        if filled:
            took = time.monotonic() - started
            logger.warning("Filled %d lost shards of last-seen times in %.1f s", filled, took)

    def sweep(self) -> None:
        whole = Sweep(self.shards)
        try:
            while not whole.step():
                pass
        except Exception as error:
            logger.exception("Redis cannot be swept of users who are none: %r", error)

    def warning(self) -> Warned | None:
        policies = self.shards.evicting()
        if not policies:
            return None
        return Warned(
            f"The Redis of SOUVENIRS_LAST_SEEN_STORE may evict keys (maxmemory-policy"
            f" {', '.join(sorted(policies))}), a sixteenth of all last-seen times each.",
            "Set its maxmemory-policy to noeviction, or use a server of its own.",
        )


def after_fork() -> None:
    """A parent writes its backlog itself, and may hold the lock."""
    store = conf.__dict__.get("last_seen_store")
    if isinstance(store, RedisStore):
        store.backlog = Backlog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)


def read(
    *,
    LOCATION: Any = None,
    OPTIONS: Mapping[str, Any] | None = None,
    KEY_PREFIX: str = "souvenirs.",
    CLUSTER: bool = False,
    SENTINEL: str | None = None,
    WITH_TABLE: bool = False,
) -> tuple[Shards, bool]:
    """What the setting says."""
    if LOCATION is None:
        raise ValueError('LOCATION is missing, such as "redis://127.0.0.1:6379/1"')
    if not isinstance(KEY_PREFIX, str) or "{" in KEY_PREFIX:
        raise ValueError(f"KEY_PREFIX is {KEY_PREFIX!r}, which is no string without a hash tag")
    make_client = clients.maker(LOCATION, OPTIONS or {}, cluster=CLUSTER, sentinel=SENTINEL)
    return Shards(make_client, KEY_PREFIX), WITH_TABLE
