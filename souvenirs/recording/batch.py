"""Write entries of the queue as rows, in one transaction that never waits for a row lock.

If a user's rows are locked, that delays only this user, who is skipped and left for the next batch.
A batch that waited for one row while it locked others would delay all users, and could deadlock
with the site. Where locked rows cannot be skipped, each user has a separate transaction, which
fails at the first locked row.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from django.db import DatabaseError, InterfaceError, router, transaction

from souvenirs import timestamps
from souvenirs.conf import conf
from souvenirs.databases import (
    can_skip_locked,
    checks_keys_late,
    failing_at_locks,
    insert_times,
    set_isolation_level,
)
from souvenirs.history.deletion import delete_rows
from souvenirs.history.marks import mark_buckets, may_be_rolled_up
from souvenirs.lastseen import ordinals, table
from souvenirs.models import LastSeen, Souvenir
from souvenirs.periods import BUCKET, bucket_containing, slot_containing
from souvenirs.recording.queue import Entry
from souvenirs.users import existing_users, has_constraint, lock_users

Known = dict[Any, "tuple[int, int | None]"]  # user -> the LastSeen row's id and time


@dataclass
class Outcome:
    """The results of writing entries.

    added, limited: entries whose souvenir was written now, or before.
    skipped: entries of users with a locked row.
    missing: entries of users who do not exist, or no longer.
    moved: the last-seen times that the table has now.
    """

    added: list[Entry] = field(default_factory=list)
    limited: list[Entry] = field(default_factory=list)
    skipped: list[Entry] = field(default_factory=list)
    missing: list[Entry] = field(default_factory=list)
    moved: dict[Any, int] = field(default_factory=dict)


class KeysEquated(Exception):
    """The database treats the keys of several entries as equal, or as equal to another key: "Bob"
    and "bob" under most collations of MySQL. A batch of one user's entries never raises it."""


def split(entries: Sequence[Entry]) -> list[Sequence[Entry]]:
    """Split entries into batches: a single one or, where locked rows cannot be skipped, one for
    each user."""
    if len(entries) < 2 or can_skip_locked(router.db_for_write(Souvenir)):
        return [entries] if entries else []
    return by_user(entries)


def by_user(entries: Iterable[Entry]) -> list[Sequence[Entry]]:
    of_user: dict[Any, list[Entry]] = defaultdict(list)
    for entry in entries:
        of_user[entry.user_pk].append(entry)
    return list(of_user.values())


def write(entries: Sequence[Entry], each_minute: bool) -> Outcome:
    """Write the souvenirs that are due, and move last-seen times forward.

    each_minute: whether to move every last-seen time in the table, or only those with a souvenir.

    Raises the database's errors, and KeysEquated; then nothing is written.
    """
    using = router.db_for_write(Souvenir)
    batch = Batch(entries, using, each_minute)
    with transaction.atomic(using=using):
        set_isolation_level(using, "READ COMMITTED")
        with failing_at_locks(using):
            batch.write()
    batch.mark_late()
    batch.remove_deleted()
    return batch.outcome


class Batch:
    def __init__(self, entries: Sequence[Entry], using: str, each_minute: bool) -> None:
        self.using = using
        self.each_minute = each_minute
        self.outcome = Outcome()
        self.of_user: dict[Any, list[Entry]] = defaultdict(list)
        for entry in entries:
            self.of_user[entry.user_pk].append(entry)
        self.skips = can_skip_locked(using)
        # As of now, not of when the visits were queued: later times of others are not in the future
        self.latest = table.latest()
        self.marked: set[int] = set()
        self.unguarded: set[Any] = set()  # users whose deletion no constraint prevents meanwhile

    def write(self) -> None:
        known = self.lock_last_seen()
        new = [user_pk for user_pk in self.of_user if user_pk not in known]
        due = self.due_entries(known)
        self.require_users(due, new)
        new = [user_pk for user_pk in new if user_pk in self.of_user]
        due = [entry for entry in due if entry.user_pk in self.of_user]
        if new:
            self.skip(set(new) - ordinals.without_concurrent_insert(new, self.using))
            new = [user_pk for user_pk in new if user_pk in self.of_user]
        if new:
            table.insert_all(sorted(new, key=str), self.using)
            made = self.lock_rows(new)
            self.skip(set(new) - set(made))
            # Another process has created the row since then, and perhaps written the slot
            self.skip({user for user, (_, seen) in made.items() if seen is not None})
            known |= made
        due = [entry for entry in due if entry.user_pk in self.of_user]
        self.move(known, {entry.user_pk for entry in due})
        self.insert(due)
        is_due = {id(entry) for entry in due}
        for entries in self.of_user.values():
            for entry in entries:
                added = id(entry) in is_due
                (self.outcome.added if added else self.outcome.limited).append(entry)
                entry.in_doubt |= added
        self.mark()

    def skip(self, user_pks: Iterable[Any]) -> None:
        for user_pk in user_pks:
            self.outcome.skipped += self.of_user.pop(user_pk)

    def lock_last_seen(self) -> Known:
        """Lock the LastSeen rows of these users; skip users whose row is locked already."""
        known = self.lock_rows(list(self.of_user))
        if rest := [user_pk for user_pk in self.of_user if user_pk not in known]:
            rows = LastSeen.objects.using(self.using).filter(user_id__in=rest)
            self.skip(self.requested_keys(rest, rows.values_list("user_id", flat=True)))
        return known

    def lock_rows(self, user_pks: Sequence[Any]) -> Known:
        rows = table.lock_rows(user_pks, self.using, skip_locked=self.skips)
        return dict(zip(self.requested_keys(user_pks, rows), rows.values()))

    def requested_keys(self, user_pks: Collection[Any], found: Iterable[Any]) -> list[Any]:
        """Return, for each key that the database found, the key it was queried for. They differ if
        the database treats different keys as equal."""
        found = list(found)
        if set(found) <= set(user_pks):
            return found
        if len(self.of_user) > 1:
            raise KeysEquated
        return [*self.of_user] * len(found)

    def existing(self, user_pks: set[Any], using: str | None = None) -> set[Any]:
        """Return those keys that belong to existing users."""
        found = set(self.requested_keys(user_pks, existing_users(user_pks, using)))
        if found and (rest := user_pks - found):  # perhaps it treats two keys as equal
            found |= set(self.requested_keys(rest, existing_users(rest, using)))
        return found

    def due_entries(self, known: Known) -> list[Entry]:
        """Return the entries whose souvenir has to be written: those with a last-seen time before
        the slot. A time in the slot or after it may have another origin: then look for the row."""
        due, unsure = [], []
        for user_pk, entries in self.of_user.items():
            _, seen = known.get(user_pk, (0, None))
            is_behind = seen is None or seen > self.latest
            for entry in entries:
                if user_pk not in known:  # also if there was such a user before, and a row
                    due.append(entry)
                elif entry.has_row:
                    continue
                elif is_behind or seen < math.floor(entry.slot.start):  # type: ignore[operator]
                    due.append(entry)
                else:
                    unsure.append(entry)
        written = self.written_slots(unsure)
        due += [entry for entry in unsure if (entry.user_pk, entry.slot.start) not in written]
        return due

    def written_slots(self, entries: Sequence[Entry]) -> set[tuple[Any, float]]:
        """Return the user and slot of those entries that have a souvenir. One query."""
        if not entries:
            return set()
        user_pks = {entry.user_pk for entry in entries}
        slots = {entry.slot for entry in entries}
        rows = Souvenir.objects.using(self.using).order_by()
        rows = rows.filter(
            user_id__in=user_pks,
            when__gte=timestamps.to_datetime(min(slot.start for slot in slots)),
            when__lt=timestamps.to_datetime(max(slot.end for slot in slots)),
        )
        found = set()
        pairs = list(rows.values_list("user_id", "when"))
        requested = self.requested_keys(user_pks, (user_pk for user_pk, _ in pairs))
        for user_pk, (_, when) in zip(requested, pairs):
            t = timestamps.to_seconds(when)
            found |= {(user_pk, slot.start) for slot in slots if slot.start <= t < slot.end}
        return found

    def require_users(self, due: Iterable[Entry], new: Iterable[Any]) -> None:
        """Prevent users of souvenirs from being deleted until the commit; if they are in another
        database, `remove_deleted` follows instead. Drop keys without a user, and skip users who are
        being deleted."""
        wanted = {*new, *(entry.user_pk for entry in due)}
        if not wanted:
            return
        if not has_constraint():
            self.unguarded = self.existing(wanted)
            self.drop(wanted - self.unguarded)
            return
        # A transaction that has inserted a new user's LastSeen row usually holds a shared lock on
        # the user, and our insert would wait for it. Trying an exclusive lock reveals it
        alone = set() if checks_keys_late(self.using) else set(new)
        locked = self.lock_users(wanted - alone, shared=True)
        locked |= self.lock_users(alone, shared=False)
        if missing := wanted - locked:
            existing = self.existing(missing, self.using)
            self.skip(missing & existing)
            self.drop(missing - existing)

    def lock_users(self, user_pks: set[Any], *, shared: bool) -> set[Any]:
        found = lock_users(user_pks, self.using, shared=shared)
        return set(self.requested_keys(user_pks, found))

    def drop(self, user_pks: set[Any]) -> None:
        for user_pk in user_pks:
            self.outcome.missing += self.of_user.pop(user_pk)

    def move(self, known: Known, due: set[Any]) -> None:
        times: dict[int, int] = {}
        minute_start = cache(_minute_start)  # most visits of a batch are in the same few seconds
        for user_pk, entries in self.of_user.items():
            pk, seen = known[user_pk]
            newest = max((math.floor(e.last) for e in entries if e.last <= self.latest), default=-1)
            if seen is None or seen > self.latest:
                seen = -1
            is_due = user_pk in due
            if newest <= seen or not (is_due or self.each_minute):
                continue
            if is_due or seen < minute_start(newest):
                times[pk] = self.outcome.moved[user_pk] = newest
        table.move_rows(times, self.using)

    def insert(self, due: Sequence[Entry]) -> None:
        rows = [(entry.user_pk, entry.first) for entry in due]
        insert_times(Souvenir, ("user", "when"), rows, self.using)

    def mark(self) -> None:
        """Mark the buckets of new souvenirs (and of those in doubt) that have ended by now. Read
        the clock again after the marks are written."""
        while True:
            now = time.time()
            buckets = {bucket for bucket in self.buckets() if bucket + BUCKET <= now}
            if not buckets - self.marked:
                return
            mark_buckets(buckets - self.marked, self.using)
            self.marked |= buckets

    def mark_late(self) -> None:
        """After the commit, mark buckets that the roller may have read before it."""
        if late := set(filter(may_be_rolled_up, self.buckets())) - self.marked:
            mark_buckets(late, self.using)

    def remove_deleted(self) -> None:
        """After the commit, delete the rows of users who have been deleted from another database
        since `require_users`; their history stays. A deletion that follows finds the rows."""
        if not self.unguarded:
            return
        with suppress(DatabaseError, InterfaceError):  # the batch is written
            if gone := self.unguarded - self.existing(self.unguarded):
                delete_rows(list(gone), self.using)

    def buckets(self) -> set[int]:
        limited = (entry for entry in self.outcome.limited if entry.in_doubt)
        return {bucket_containing(entry.first) for entry in (*self.outcome.added, *limited)}


def _minute_start(t: int) -> int:
    return int(slot_containing(t, conf.last_seen_seconds, conf.zone).start)
