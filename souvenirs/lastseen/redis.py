"""Last-seen times in Redis, for sites that outgrow one machine: see docs/scaling.md."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeVar

from django.core.checks import CheckMessage, Warning
from django.db import DatabaseError, connections
from django.utils.version import get_version_tuple

from souvenirs.breaker import Breaker
from souvenirs.conf import conf
from souvenirs.lastseen import table
from souvenirs.lastseen.base import LastSeenCounts, LastSeenStore, LastSeenUpdate, ReadContext
from souvenirs.lastseen.clients import parse_params
from souvenirs.lastseen.database import DatabaseStore
from souvenirs.lastseen.members import member_of
from souvenirs.lastseen.pending import Move
from souvenirs.lastseen.resync import Reconciler, resync, set_back
from souvenirs.lastseen.shards import Counts, Shards
from souvenirs.lastseen.writer import BATCH_SIZE, Writer, start_thread
from souvenirs.logs import words_of

logger = logging.getLogger("souvenirs")

MIN_VERSION = (6, 2)  # version of Redis: ZADD GT, ZMSCORE

T = TypeVar("T")


class RedisStore(LastSeenStore):
    """Last-seen times in sorted sets: a rank takes O(log n), and all machines share them.

    Visits do not wait for Redis: a thread writes pending updates. No method raises redis-py's
    errors. While Redis is down, a breaker keeps readers from waiting, the process keeps pending
    updates, and counts come from the table, at the resolution of the rate-limit slot. The same
    applies while shards that the server has lost are refilled from the table.
    """

    name = "redis"

    def __init__(self, params: Mapping[str, Any]) -> None:
        """Raise ValueError for options that do not go together, and TypeError for unknown ones."""
        make_client, prefix, self.in_table = parse_params(**params)
        self.shards = Shards(make_client, prefix)
        self.table = DatabaseStore({})
        self.breaker = Breaker("The Redis of last-seen times")
        self.writer = Writer(self.shards, self.breaker)
        self.needs_resync = False
        self._exact_from = 0.0  # as in LastSeenCounts, at the last query of Redis
        self._resync_breaker = Breaker("Refilling Redis with last-seen times")
        self._reconciler = Reconciler(self.shards)
        self._resync_thread: threading.Thread | None = None

    # Writing

    def touch(self, update: LastSeenUpdate) -> None:
        if self.in_table:
            self.table.touch(update)
        if update.seen is not None:
            move = Move(update.seen, confirmed=False, latest=update.latest)
            self.writer.put({update.user_pk: move})

    def touch_all(self, updates: Sequence[LastSeenUpdate]) -> None:
        moves: dict[Any, Move] = {}
        for update in updates:
            if update.seen is not None:
                move = Move(update.seen, confirmed=update.has_row, latest=update.latest)
                known = moves.get(update.user_pk)
                moves[update.user_pk] = move if known is None else known.then(move)
        self.writer.put_and_flush(moves)

    def on_table_updated(self, newest: Mapping[Any, int], latest: int | None = None) -> None:
        self.writer.put({user_pk: Move(seen, latest=latest) for user_pk, seen in newest.items()})

    def remove(self, user_pks: Collection[Any]) -> None:
        self.writer.put(dict.fromkeys(user_pks, Move(None)))

    def flush(self) -> bool:
        return self.writer.flush()

    def close(self) -> None:
        """Write what is left, if the server is up."""
        self.breaker.untried()
        self.flush()

    def after_fork(self) -> None:
        self.writer.reset()
        self.shards.after_fork()

    # Reading

    def _ask(self, question: Callable[[], T]) -> T | None:
        """Query Redis after writing all pending updates. Return None if it is down."""
        if not self.flush() or not self.breaker.allows():
            return None
        try:
            answer = question()
        except Exception as error:
            self.writer.note_failure(error)
            return None
        self.breaker.success()
        return answer

    def get(self, user_pk: Any) -> int | None:
        """Read from Redis, or from the table if Redis is down or does not have the user."""
        seen = self._ask(lambda: self.shards.get(member_of(user_pk)))
        return self.table.get(user_pk) if seen is None else seen

    def get_many(self, user_pks: Collection[Any]) -> dict[Any, int]:
        """Read from Redis, and from the table for users that Redis does not have: see `get`."""
        members = {user_pk: member_of(user_pk) for user_pk in user_pks}
        known = self._ask(lambda: self.shards.get_many(members.values())) or {}
        times = {pk: known[member] for pk, member in members.items() if member in known}
        return {**self.table.get_many([pk for pk in members if pk not in times]), **times}

    def count(
        self,
        cuts: Sequence[float],
        until: float,
        using: str,
        read_context: ReadContext = nullcontext,
    ) -> LastSeenCounts:
        if self.flush() and self.writer.unconfirmed:
            self.writer.confirm_pending(read_context)
        counts = self._ask(lambda: self._count(cuts, until))
        now = time.time()
        if counts is not None and counts.is_whole:
            is_old = counts.whole_since <= now - conf.ratelimit_seconds
            if is_old or not self.in_table:
                return LastSeenCounts(
                    since=counts.since,
                    newest=counts.newest,
                    exact_from=counts.whole_since,
                    cause="Redis has been refilled",
                )
        if self.in_table:
            return self.table.count(cuts, until, using, read_context)
        starts = {cut: table.slot_start(cut) for cut in cuts}
        from_table = self.table.count(list(starts.values()), until, using, read_context)
        return LastSeenCounts(
            since={cut: from_table.since[start] for cut, start in starts.items()},
            newest=from_table.newest,
            exact_from=table.exact_from(from_table.newest, now),
            cause="Redis does not answer" if counts is None else "Redis is being refilled",
        )

    def _count(self, cuts: Sequence[float], until: float) -> Counts:
        """Count from the shards. Times before they were whole have the resolution of the slot."""
        while True:
            exact = self._exact_from
            starts = {cut: cut if cut >= exact else table.slot_start(cut) for cut in cuts}
            counts = self.shards.count(list(starts.values()), until)
            self.needs_resync = not counts.is_whole
            if not counts.is_whole or counts.whole_since == exact:
                since = {cut: counts.since[start] for cut, start in starts.items()}
                return replace(counts, since=since)
            self._exact_from = counts.whole_since

    # Maintenance

    def run_maintenance(self) -> None:
        """Start refilling lost shards, in a thread."""
        is_running = self._resync_thread is not None and self._resync_thread.is_alive()
        if self.needs_resync and not is_running and self._resync_breaker.allows():
            self._resync_thread = start_thread(
                "souvenirs-resync", self._resync_in_thread, self.breaker
            )

    def _resync_in_thread(self) -> None:
        try:
            self.resync()
        finally:
            connections.close_all()

    def resync(self) -> None:
        started = time.monotonic()
        try:
            filled = resync(self.shards, whole_too=self.in_table)
        except Exception as error:  # a later scrape starts over
            self._resync_breaker.failure(error)
            return
        self._resync_breaker.success()
        if filled:
            took = time.monotonic() - started
            logger.warning("Refilled %d lost shards of last-seen times in %.1f s", filled, took)

    def reconcile(self, users: int | None = None) -> None:
        if users is None:
            self._reconcile_all()
        elif not self.needs_resync:
            self._try(lambda: self._reconciler.step(users))

    def set_back(self, users: int | None = None) -> None:
        def do() -> None:
            while set_back(self.shards, users or BATCH_SIZE) and users is None:
                pass

        if self.flush():
            self._try(do)

    def _try(self, do: Callable[[], object]) -> None:
        """Call `do`, unless Redis is down. Raises the database's errors."""
        if not self.breaker.allows():
            return
        try:
            do()
        except DatabaseError:
            self.breaker.untried()
            raise
        except Exception as error:
            self.writer.note_failure(error)
        else:
            self.breaker.success()

    def _reconcile_all(self) -> None:
        self.flush()
        reconciler = Reconciler(self.shards)
        try:
            while not reconciler.step(BATCH_SIZE):
                pass
        except Exception as error:
            logger.exception("Could not remove deleted users from Redis: %r", error)

    def check(self) -> list[CheckMessage]:
        """Return souvenirs.W002 if the server is not suitable, W003 if it cannot be queried."""
        try:
            facts = self.shards.servers()
            self.shards.try_lock_commands()
        except Exception as error:
            return [
                Warning(
                    "The server of SOUVENIRS_LAST_SEEN_STORE cannot be queried:"
                    f" {type(error).__name__}: {words_of(error)}.",
                    hint="Start it, correct LOCATION and OPTIONS, or allow its user to run the"
                    " command.",
                    id="souvenirs.W003",
                )
            ]
        versions = {str(each["redis_version"]) for each in facts}  # redis-py has "7.0" as a number
        if old := {each for each in versions if get_version_tuple(each) < MIN_VERSION}:
            return [
                Warning(
                    "The Redis of SOUVENIRS_LAST_SEEN_STORE must be version"
                    f" {'.'.join(map(str, MIN_VERSION))} or later, not {', '.join(sorted(old))}.",
                    hint="Upgrade it, or set SOUVENIRS_LAST_SEEN_STORE to another server.",
                    id="souvenirs.W002",
                )
            ]
        policies = {each["maxmemory_policy"] for each in facts if each["maxmemory"]}
        # Other policies evict only keys with a time to live, which ours do not have
        if evicting := {policy for policy in policies if policy.startswith("allkeys")}:
            return [
                Warning(
                    "The Redis of SOUVENIRS_LAST_SEEN_STORE may evict keys (maxmemory-policy"
                    f" {', '.join(sorted(evicting))}), each with 1/16 of all last-seen times.",
                    hint="Set its maxmemory-policy to noeviction, or use a separate server.",
                    id="souvenirs.W002",
                )
            ]
        return []
