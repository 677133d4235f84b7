"""Last-seen times in Redis, for sites that outgrow one machine: see docs/scaling.md."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from django.core.checks import CheckMessage, Warning
from django.db import DatabaseError, connections, router
from django.utils.version import get_version_tuple

from souvenirs.breaker import PROBE_SECONDS, Breaker
from souvenirs.conf import conf
from souvenirs.lastseen import clients, outbox
from souvenirs.lastseen.base import LastSeenCounts, LastSeenStore, LastSeenUpdate, ReadContext
from souvenirs.lastseen.database import DatabaseStore
from souvenirs.lastseen.filling import (
    Round,
    exact_from,
    existing_of,
    fill,
    latest,
    member_of,
    slot_start,
)
from souvenirs.lastseen.outbox import Outbox
from souvenirs.lastseen.shards import Counts, Move, Shards
from souvenirs.models import LastSeen

logger = logging.getLogger("souvenirs")

DELAY = 0.05  # seconds that moves wait for others, to be written with them
AT_ONCE = 500  # users that are written together
OLDEST = (6, 2)  # version of Redis: ZADD GT, ZMSCORE

T = TypeVar("T")


class RedisStore(LastSeenStore):
    """Last-seen times in sorted sets: a rank takes O(log n), and all machines share them.

    Visits do not wait for Redis: a thread writes what is pending, DELAY later. No method raises
    what redis-py does. While Redis is down, a breaker keeps readers from waiting, the process keeps
    what is pending, and counts come from the table, at the rate limit's resolution. So they do
    while shards that the server has lost are filled from the table.
    """

    name = "redis"

    def __init__(self, params: Mapping[str, Any]) -> None:
        """Raises ValueError for options that do not go together, TypeError for unknown ones."""
        self.shards, self.with_table = read(**params)
        self.table = DatabaseStore({})
        self.breaker = Breaker("The Redis of last-seen times")
        self.is_to_be_filled = False
        self._exact_from = 0.0  # as in LastSeenCounts, when Redis was asked for the last time
        self._filling = Breaker("Filling Redis with last-seen times")
        self._round = Round(self.shards)
        self._filler: threading.Thread | None = None
        self.begin_outbox()

    def begin_outbox(self) -> None:
        """Leaves what is to be written to whoever else has it, such as the parent of a fork."""
        self.outbox = Outbox()
        self.unsure = Outbox()
        self._is_waited_for = threading.Event()  # something is to be written
        self._starting = threading.Lock()
        self._sending = threading.Lock()
        self._sender: threading.Thread | None = None

    # Writing

    def touch(self, update: LastSeenUpdate) -> None:
        if self.with_table:
            self.table.touch(update)
        if update.seen is not None:
            move = Move(update.seen, is_sure=False, latest=update.latest)
            self._put({update.user_pk: move})

    def on_table_updated(self, newest: Mapping[Any, int], latest: int | None = None) -> None:
        self._put({user_pk: Move(seen, latest=latest) for user_pk, seen in newest.items()})

    def remove(self, user_pk: Any) -> None:
        self._put({user_pk: Move(None)})

    def _put(self, moves: Mapping[Any, Move]) -> None:
        waiting = iter(moves.items())
        while some := {member_of(user_pk): move for user_pk, move in islice(waiting, AT_ONCE)}:
            self.outbox.add(some)
            if len(moves) > 1 and len(self.outbox) > outbox.MOST // 2:
                self.flush()
        if not (self._is_waited_for.is_set() and self._sender and self._sender.is_alive()):
            self._call_sender()

    def _call_sender(self) -> None:
        with self._starting:
            if self._sender is None or not self._sender.is_alive():
                self._sender = self._start_thread("souvenirs-outbox", self._send_in_thread)
            if self._sender is not None:
                self._is_waited_for.set()

    def _start_thread(self, name: str, do: Callable[[], None]) -> threading.Thread | None:
        """None if the system has no more."""
        thread = threading.Thread(target=do, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self.breaker.failure(error, opens=False)
            return None
        return thread

    def _send_in_thread(self) -> None:
        while True:
            self._is_waited_for.wait()
            time.sleep(DELAY)
            self._is_waited_for.clear()
            while not self.flush():
                time.sleep(PROBE_SECONDS)
            if self.unsure:
                try:
                    self.settle()
                finally:
                    connections.close_all()
                if self.outbox:
                    self._is_waited_for.set()

    def settle(self, read_context: ReadContext = nullcontext) -> None:
        """Asks the table about moves that are not sure: of users who exist, times are written;
        others are removed. Not in somebody's transaction, which need not see who exists now."""
        using = router.db_for_write(LastSeen)
        if connections[using].in_atomic_block:
            return
        while moves := self.unsure.take(AT_ONCE):
            try:
                with read_context(using):
                    existing = existing_of(moves)
            except Exception:  # whoever else asks that database tells that it fails
                self.unsure.give_back(moves)
                return
            for member, move in moves.items():
                if member not in existing:
                    self.outbox.add({member: Move(None)})
                elif move.seen is not None:
                    self.outbox.add({member: move._replace(is_sure=True)})
            self.flush()

    def flush(self) -> bool:
        """Writes what is to be written. False if that has to wait, for Redis is away."""
        with self._sending:
            if not self.outbox:
                return True
            if not self.breaker.allows():
                return False
            try:
                self._send()
            except Exception as error:
                self._note(error)
                return False
        self.breaker.success()
        return True

    def _send(self) -> None:
        if self.outbox.take_loss():
            try:
                self.shards.unmark()
            except BaseException:
                self.outbox.give_loss_back()
                raise
        while moves := self.outbox.take(AT_ONCE):
            try:
                self.unsure.add(self.shards.write(moves, latest()))
            except BaseException:
                self.outbox.give_back(moves)
                raise

    def _note(self, error: Exception) -> None:
        self.breaker.failure(error)
        self.shards.reconnect()

    # Reading

    def _ask(self, question: Callable[[], T]) -> T | None:
        """What Redis answers, after all that is to be written. None if it is away."""
        if not self.flush() or not self.breaker.allows():
            return None
        try:
            answer = question()
        except Exception as error:
            self._note(error)
            return None
        self.breaker.success()
        return answer

    def get(self, user_pk: Any) -> int | None:
        """From the table, if Redis does not know."""
        seen = self._ask(lambda: self.shards.get(member_of(user_pk)))
        return self.table.get(user_pk) if seen is None else seen

    def count(
        self,
        cuts: Sequence[float],
        until: float,
        using: str,
        read_context: ReadContext = nullcontext,
    ) -> LastSeenCounts:
        if self.flush() and self.unsure:
            self.settle(read_context)
        counts = self._ask(lambda: self._count(cuts, until))
        now = time.time()
        if counts is not None and counts.is_whole:
            is_old = counts.whole_since <= now - conf.ratelimit_seconds
            if is_old or not self.with_table:
                return LastSeenCounts(
                    since=counts.since,
                    newest=counts.newest,
                    exact_from=counts.whole_since,
                    cause="Redis has been filled anew",
                )
        if self.with_table:
            return self.table.count(cuts, until, using, read_context)
        starts = {cut: slot_start(cut) for cut in cuts}
        table = self.table.count(list(starts.values()), until, using, read_context)
        return LastSeenCounts(
            since={cut: table.since[start] for cut, start in starts.items()},
            newest=table.newest,
            exact_from=exact_from(table.newest, now),
            cause="Redis does not answer" if counts is None else "Redis is filled anew",
        )

    def _count(self, cuts: Sequence[float], until: float) -> Counts:
        """What the shards have. From before they were whole, they know to the slot."""
        while True:
            exact = self._exact_from
            starts = {cut: cut if cut >= exact else slot_start(cut) for cut in cuts}
            counts = self.shards.count(list(starts.values()), until)
            self.is_to_be_filled = not counts.is_whole
            if not counts.is_whole or counts.whole_since == exact:
                since = {cut: counts.since[start] for cut, start in starts.items()}
                return replace(counts, since=since)
            self._exact_from = counts.whole_since

    # Keeping it whole

    def run_maintenance(self) -> None:
        """Begins to fill lost shards, in a thread of its own."""
        is_filling = self._filler is not None and self._filler.is_alive()
        if self.is_to_be_filled and not is_filling and self._filling.allows():
            self._filler = self._start_thread("souvenirs-filling", self._fill_in_thread)

    def _fill_in_thread(self) -> None:
        try:
            self.resync()
        finally:
            connections.close_all()

    def resync(self) -> None:
        started = time.monotonic()
        try:
            filled = fill(self.shards, all_of_them=self.with_table)
        except Exception as error:  # a later scrape begins again
            self._filling.failure(error)
            return
        self._filling.success()
        if filled:
            took = time.monotonic() - started
            logger.warning("Filled %d lost shards of last-seen times in %.1f s", filled, took)

    def reconcile(self, users: int | None = None) -> None:
        if users is None:
            self._reconcile_all()
        elif not self.is_to_be_filled and self.breaker.allows():
            try:
                self._round.step(users)
            except DatabaseError:
                self.breaker.untried()
                raise
            except Exception as error:
                self._note(error)
            else:
                self.breaker.success()

    def _reconcile_all(self) -> None:
        self.flush()
        whole = Round(self.shards)
        try:
            while not whole.step(AT_ONCE):
                pass
        except Exception as error:
            logger.exception("Redis cannot be swept of users who are none: %r", error)

    def check(self) -> list[CheckMessage]:
        """souvenirs.W002 if the server is not fit for this, W003 if it cannot be asked."""
        try:
            facts = self.shards.servers()
        except Exception as error:
            return [
                Warning(
                    "The server of SOUVENIRS_LAST_SEEN_STORE cannot be asked:"
                    f" {type(error).__name__}: {error}.",
                    hint="Start it, correct LOCATION and OPTIONS, or allow its user the command.",
                    id="souvenirs.W003",
                )
            ]
        versions = {str(each["redis_version"]) for each in facts}  # redis-py has "7.0" as a number
        if old := {each for each in versions if get_version_tuple(each) < OLDEST}:
            return [
                Warning(
                    f"The Redis of SOUVENIRS_LAST_SEEN_STORE is {', '.join(sorted(old))}, and has"
                    f" to be {'.'.join(map(str, OLDEST))} at least.",
                    hint="Upgrade it, or set SOUVENIRS_LAST_SEEN_STORE to another one.",
                    id="souvenirs.W002",
                )
            ]
        policies = {each["maxmemory_policy"] for each in facts if each["maxmemory"]}
        # The others drop keys that expire only, and ours do not
        if evicting := {policy for policy in policies if policy.startswith("allkeys")}:
            return [
                Warning(
                    "The Redis of SOUVENIRS_LAST_SEEN_STORE may evict keys (maxmemory-policy"
                    f" {', '.join(sorted(evicting))}), a sixteenth of all last-seen times each.",
                    hint="Set its maxmemory-policy to noeviction, or use a server of its own.",
                    id="souvenirs.W002",
                )
            ]
        return []

    def close(self) -> None:
        """Write what is left, if the server lets it."""
        self.breaker.untried()
        self.flush()

    def after_fork(self) -> None:
        self.begin_outbox()
        self.shards.after_fork()


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
    for name, value in {"CLUSTER": CLUSTER, "WITH_TABLE": WITH_TABLE}.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}, which is neither True nor False")
    make_client = clients.maker(LOCATION, OPTIONS or {}, cluster=CLUSTER, sentinel=SENTINEL)
    return Shards(make_client, KEY_PREFIX), WITH_TABLE
