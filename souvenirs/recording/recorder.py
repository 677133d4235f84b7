"""Record a visit at once: write the row and the last-seen time, and fill process memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from django.db import DataError, IntegrityError, connections, router, transaction

from souvenirs import scopes, timestamps
from souvenirs.conf import conf
from souvenirs.history.marks import mark_dirty, may_be_rolled_up
from souvenirs.lastseen import get_store, table
from souvenirs.lastseen.base import LastSeenUpdate
from souvenirs.models import LastSeen, Souvenir
from souvenirs.periods import BUCKET, bucket_containing, slot_containing
from souvenirs.recording import memory
from souvenirs.recording.memory import interned
from souvenirs.recording.results import ADDED, DUPLICATED, RATE_LIMITED, flush_hits, send_recorded
from souvenirs.recording.throttle import Claim, throttle
from souvenirs.users import clean_pk, has_constraint, key_of, require_user


def record(
    user: Any,
    when: datetime | None = None,
    ratelimit: bool | float = True,
    check_duplicate: bool = False,
) -> str:
    """Implement `control.souvenez` for a visit that process memory could not answer."""
    flush_hits()
    recording = Recording(user, when, ratelimit)
    result = recording.record(check_duplicate)
    send_recorded(result, recording.user_pk)
    return result


class Recording:
    """One visit: decide what has to be written, and write it."""

    def __init__(self, user: Any, when: datetime | None, ratelimit: bool | float) -> None:
        self.key = key_of(user)  # the key in process memory
        self.user_pk = clean_pk(user)
        # Whole microseconds, as databases keep: a row must not be rounded into the next slot
        self.now = time.time_ns() // 1_000 / 1_000_000
        self.live = when is None
        if when is None:
            self.t, self.when = self.now, timestamps.to_datetime(self.now)
        else:
            self.t, self.when = timestamps.to_seconds(when), timestamps.to_site(when)
            timestamps.require_year(self.when)
        self.default_limit = ratelimit is True
        self.limit = conf.ratelimit_seconds if ratelimit is True else _to_float(ratelimit)
        if not 0 <= self.limit < math.inf:
            raise ValueError(
                "ratelimit must be True, False or a non-negative number of seconds, not"
                f" {ratelimit!r}"
            )
        self.minute = slot_containing(self.t, conf.last_seen_seconds, conf.zone)
        self.slot = slot_containing(self.t, self.limit, conf.zone) if self.limit else None
        self.has_row = False
        self.bucket = bucket_containing(self.t)
        self.is_marked = False
        self.using = router.db_for_write(Souvenir)
        self.scope = scopes.current()
        scopes.note_database(self.using)
        connection = connections[self.using]
        self.is_nested = connection.in_atomic_block
        # With autocommit off, Django does not notice the commit, so nothing is remembered
        self.is_manual = not self.is_nested and not connection.get_autocommit()
        # As in the writer, a last-seen time in the slot serves as the claim
        self.is_claimed_in_table = (
            self.live
            and self.default_limit
            and self.slot is not None
            and not (self.is_nested or self.is_manual)
        )

    def record(self, check_duplicate: bool) -> str:
        """Write what has to be written. Raises the errors of souvenez."""
        try:
            return self.write_unless_limited(check_duplicate)
        except (IntegrityError, DataError):  # DataError: a key that is too large
            require_user(self.user_pk)
            raise

    def write_unless_limited(self, check_duplicate: bool) -> str:
        claim = self.claim()
        result = RATE_LIMITED
        if claim is None or claim.granted:
            result = self.write(claim, check_duplicate)
        is_written = result != RATE_LIMITED
        written_until = claim.until if claim else 0
        if not self.is_nested:
            self.after_commit(is_written, written_until)
        elif scopes.is_scoped():  # the commit may happen in another scope
            with transaction.atomic(using=self.using):
                self.move_last_seen(is_written)
            self.on_commit(partial(self.remember, written_until))
        else:
            # In the caller's transaction, write last-seen after the commit: the transaction may
            # last long, and must not keep the user's row locked.
            self.on_commit(partial(self.after_commit, is_written, written_until))
        return result

    def claim(self) -> Claim | None:
        """Claim the slot; return None if there is no limit."""
        if self.slot is None:
            return None
        if self.default_limit:
            known = memory.recent_users.get(self.user_pk)
            if known is not None and known.has_row(self.t):
                self.has_row = True  # the last-seen row was written with the slot's souvenir
                return Claim("", False, self.slot.end)
        if self.is_claimed_in_table:
            return Claim("", True, self.slot.end)
        claim = throttle.claim(self.user_pk, self.slot, self.limit)
        is_confirmed = not claim.granted and claim.until == self.slot.end
        if is_confirmed and not self.has_last_seen():
            # Every user with a souvenir has a LastSeen row. So the slot was written for a user who
            # was deleted since then, and this is a new user with the same key.
            return claim._replace(granted=True)
        return claim

    def write(self, claim: Claim | None, check_duplicate: bool) -> str:
        """Write the row, and the last-seen time in the same transaction unless it is the caller's.

        In the caller's, `after_commit` writes the last-seen time.
        """
        try:
            with transaction.atomic(using=self.using):
                if self.is_nested:
                    # Foreign keys are checked at the end of a transaction: in the caller's, the key
                    # of a missing user would make the caller's commit fail.
                    require_user(self.user_pk)
                else:
                    # Last-seen first: deleting a user locks the rows in the same order
                    self.require_user_unless_constrained()
                    moved = table.touch(self.update(), self.using)
                    if self.is_claimed_in_table and not moved and self.has_souvenir():
                        self.has_row = True
                        return RATE_LIMITED
                result = ADDED
                if check_duplicate and self.is_duplicate():
                    result = DUPLICATED
                else:
                    row = Souvenir(user_id=self.user_pk, when=self.when)
                    row.save(force_insert=True, using=self.using, announce=False)
                    # It is not known when the caller's transaction ends
                    if self.is_nested or self.is_manual or time.time() >= self.bucket + BUCKET:
                        mark_dirty([row], self.using)
                        self.is_marked = True
                if claim and claim.key and self.slot is not None and not self.is_manual:
                    self.on_commit(partial(throttle.confirm, claim, self.slot))
        except BaseException:
            if claim and claim.key:
                throttle.release(claim)
            raise
        if result == ADDED and not self.is_marked and may_be_rolled_up(self.bucket):
            mark_dirty([row], self.using)
        return result

    def on_commit(self, do: Callable[[], None]) -> None:
        def follow_up() -> None:  # not a partial: Django logs the function's name if it fails
            do()

        transaction.on_commit(follow_up, using=self.using, robust=True)

    def after_commit(self, is_written: bool, written_until: float) -> None:
        """Update last-seen and process memory after the transaction has committed."""
        self.move_last_seen(is_written)
        self.remember(written_until)

    def move_last_seen(self, is_written: bool) -> None:
        store, update = get_store(), self.update()
        if self.is_nested or not is_written:
            self.require_user_unless_constrained()
        if not is_written:
            if self.limit > conf.ratelimit_seconds > 0:  # the table has each slot of the setting
                slot = slot_containing(self.t, conf.ratelimit_seconds, conf.zone)
                table.touch(replace(update, slot_start=int(slot.start)))
            store.touch(update)
        else:
            if self.is_nested:
                table.touch(update)
            if update.seen is not None:
                store.on_table_updated({self.user_pk: update.seen}, update.latest)

    def update(self) -> LastSeenUpdate:
        latest = math.floor(self.now) + conf.last_seen_seconds
        seen = math.floor(self.t)
        start = self.minute.start
        if self.is_claimed_in_table and self.slot is not None and not self.has_row:
            start = self.slot.start
        return LastSeenUpdate(
            user_pk=self.user_pk,
            seen=seen if seen <= latest else None,
            slot_start=int(start),
            latest=latest if self.live else None,
            has_row=self.has_row,
        )

    def remember(self, written_until: float) -> None:
        """Fill process memory, for live visits only: it is about the present."""
        if self.is_manual or not (self.live and self.default_limit and self.slot is not None):
            return
        if scopes.current() != self.scope:
            return
        written = written_until >= self.slot.end
        entry = interned(
            max(self.minute.start, self.slot.start),
            min(self.minute.end, self.slot.end, written_until),
            self.slot.start,
            self.slot.end if written else self.slot.start,
        )
        for key in {self.user_pk, self.key}:
            memory.recent_users[key] = entry

    def is_duplicate(self) -> bool:
        rows = Souvenir.objects.using(self.using)
        found: bool = rows.filter(user_id=self.user_pk, when=self.when).exists()
        return found

    def has_souvenir(self) -> bool:
        """Return True if the slot has a souvenir: a last-seen time may have another origin."""
        assert self.slot is not None
        start, end = map(timestamps.to_datetime, self.slot)
        rows = Souvenir.objects.using(self.using).between(start, end)
        found: bool = rows.filter(user_id=self.user_pk).exists()
        return found

    def has_last_seen(self) -> bool:
        rows = LastSeen.objects.using(self.using)
        found: bool = rows.filter(user_id=self.user_pk).exists()
        return found

    def require_user_unless_constrained(self) -> None:
        if not has_constraint():
            require_user(self.user_pk)


def _to_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer larger than any float
        return math.inf
