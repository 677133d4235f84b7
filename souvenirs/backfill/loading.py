"""Load entries as souvenirs."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django.db import IntegrityError, router, transaction

from souvenirs import timestamps
from souvenirs.backfill.candidates import Candidate, slot_of, unrecorded
from souvenirs.backfill.entries import UNKNOWN_USER, BackfillError, Entry, RejectedLine
from souvenirs.backfill.users import find_users, user_field
from souvenirs.models import Souvenir
from souvenirs.periods import Interval
from souvenirs.users import has_constraint, is_key

BATCH_SIZE = 50_000  # entries in memory at a time, and in a transaction
INSERT_SIZE = 5_000  # rows in a statement; fewer if the database has a lower limit

DELETED = "user deleted meanwhile"
AMBIGUOUS = "several users have this"
FUTURE = "in the future"
TOO_LATE = "after 5138 (milliseconds?)"
TOO_EARLY = "before 1973 (a date without dashes?)"

# Unix times of activity have nine digits or more, and eleven at most: 1973 to 5138
MIN_TIME, MAX_TIME = 100_000_000, 100_000_000_000


@dataclass
class Summary:
    """Counts of the entries by result: read = added + limited + anonymous + bad.total().

    `limited`: the user already has a row in the slot. `first` and `last` are the times of the added
    rows, in Unix seconds; None if there are none.
    """

    read: int = 0
    added: int = 0
    limited: int = 0
    anonymous: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    first: float | None = None
    last: float | None = None

    def count_added(self, candidates: Iterable[Candidate], missing: Collection[Any] = ()) -> None:
        """Count the candidates that are written: all except those of `missing` users."""
        for user_pk, t, _ in candidates:
            if user_pk in missing:
                self.bad[DELETED] += 1
                continue
            self.added += 1
            self.first = t if self.first is None else min(self.first, t)
            self.last = t if self.last is None else max(self.last, t)


def load(
    entries: Iterable[Entry | RejectedLine],
    *,
    strict: bool = False,
    dry_run: bool = False,
    on_bad: Callable[[RejectedLine], object] = lambda bad: None,
    batch_size: int = BATCH_SIZE,
) -> Summary:
    """Add souvenirs for these entries: one per user and rate-limit slot, unless there is one.

    A row has the time of the slot's first entry, in the order of the entries. Last-seen times are
    updated. The rate limit's memory and cache, which are for visits, are not changed, and the
    signal souvenir_recorded is not sent.

    There may be any number of entries, in any order: one batch at a time is in memory, and each is
    a transaction. So an interrupted load can be repeated, and so can a completed one. Loading is
    fast for entries sorted by time: each batch is compared with all rows in the time that it spans.

    Entries that cannot be loaded are skipped: RejectedLines among them, unknown users, keys that
    several users share, and times before 1973 or in the future. `on_bad` is called with each. Users
    deleted during the load are skipped too, and counted as bad.

    strict: raise BackfillError at the first entry that cannot be loaded, and then add nothing:
        everything is added in one transaction, after all entries have been read.
    dry_run: add nothing, but return what would be added.

    Also raises BackfillError if the user model lacks the field that users are identified by.
    """
    summary = Summary()
    entries = iter(entries)
    with closing(SpillTable()) as spilled:
        while batch := list(itertools.islice(entries, batch_size)):
            candidates, bad, anonymous = classify(batch)
            for each in sorted(bad, key=lambda bad: bad.line):
                on_bad(each)
                if strict:
                    raise BackfillError(str(each))
                summary.bad[each.reason] += 1
            new = unrecorded(candidates)
            if strict or dry_run:
                new = spilled.add(new)
            summary.read += len(batch)
            summary.limited += len(candidates) - len(new)
            summary.anonymous += anonymous
            if dry_run:
                summary.count_added(new)
            elif not strict:
                summary.count_added(new, write(partial(iter, [new])))
        if strict and not dry_run:
            missing = write(partial(spilled.batches, batch_size))
            for new in spilled.batches(batch_size):
                summary.count_added(new, missing)
    return summary


def classify(
    batch: Iterable[Entry | RejectedLine],
) -> tuple[list[Candidate], list[RejectedLine], int]:
    """Return the candidates, in the order of the entries; the rejected lines; and the number of
    entries without a user."""
    now = time.time()
    anonymous = 0
    bad: list[RejectedLine] = []
    in_range: list[Entry] = []
    names: dict[str, set[Any]] = defaultdict(set)
    for item in batch:
        if isinstance(item, RejectedLine):
            bad.append(item)
        elif item.user is None:
            anonymous += 1
        elif not is_key(item.user):  # True and 1.0 are equal to 1
            bad.append(RejectedLine(item.line, UNKNOWN_USER, str(item.user)))
        elif MIN_TIME <= item.when <= now:
            in_range.append(item)
            names[item.user_by].add(item.user)
        else:
            bad.append(out_of_range(item))
    users = {user_by: find_users(names[user_by], user_by) for user_by in names}
    candidates = []
    for item in in_range:
        found = users[item.user_by][item.user]
        if len(found) == 1:
            # The slot of the time that the database will store: rounded to microseconds, say
            slot = slot_of(timestamps.to_datetime(item.when))
            candidates.append(Candidate(found[0], item.when, slot))
        else:
            bad.append(
                RejectedLine(item.line, AMBIGUOUS if found else UNKNOWN_USER, str(item.user))
            )
    return candidates, bad, anonymous


def out_of_range(item: Entry) -> RejectedLine:
    if MIN_TIME <= item.when < MAX_TIME:
        return RejectedLine(
            item.line, FUTURE, f"{item.user} at {timestamps.to_datetime(item.when)}"
        )
    reason = TOO_EARLY if item.when < MIN_TIME else TOO_LATE
    return RejectedLine(item.line, reason, f"{item.user} at {item.when:.0f}")


def write(batches: Callable[[], Iterable[list[Candidate]]]) -> set[Any]:
    """Write all batches in one transaction, except for users deleted since they were looked up.
    Return the keys of the deleted users."""
    missing = set() if has_constraint() else find_missing(batches())
    while True:
        try:
            with transaction.atomic(using=router.db_for_write(Souvenir)):
                for batch in batches():
                    insert(candidate for candidate in batch if candidate.user_pk not in missing)
            return missing
        except IntegrityError:
            known = missing
            missing = known | find_missing(batches())
            if missing == known:
                raise


def find_missing(batches: Iterable[list[Candidate]]) -> set[Any]:
    """Return the keys of the candidates' users that do not exist."""
    keys = {candidate.user_pk for batch in batches for candidate in batch}
    return {user_pk for user_pk, found in find_users(keys, "pk").items() if not found}


def insert(candidates: Iterable[Candidate]) -> None:
    Souvenir.objects.using(router.db_for_write(Souvenir)).bulk_create(
        [Souvenir(user_id=c.user_pk, when=timestamps.to_datetime(c.t)) for c in candidates],
        batch_size=INSERT_SIZE,
    )


class SpillTable:
    """Candidates that are written later, or not at all; kept on disk if there are many.

    A single transaction in the site's database would be less code. But it would lock LastSeen rows
    (with SQLite, the database) while the whole input is read, even in a dry run, and visits of
    these users would have to wait.
    """

    def __init__(self) -> None:
        self.db = sqlite3.connect("")  # a private temporary file
        self.db.execute("CREATE TABLE candidate (user, slot, t, PRIMARY KEY (user, slot))")

    def close(self) -> None:
        self.db.close()

    def add(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Keep the first candidate for each user and slot. Return those that are kept."""
        insert = "INSERT OR IGNORE INTO candidate VALUES (?, ?, ?)"
        return [
            candidate
            for candidate in candidates
            if self.db.execute(
                insert, (str(candidate.user_pk), candidate.slot.start, candidate.t)
            ).rowcount
        ]

    def batches(self, batch_size: int) -> Iterator[list[Candidate]]:
        """Yield all candidates in batches, in the order in which they were added."""
        to_key = user_field("pk").to_python
        kept = self.db.execute("SELECT user, t, slot FROM candidate ORDER BY rowid")
        while batch := kept.fetchmany(batch_size):
            yield [Candidate(to_key(user), t, Interval(slot, slot)) for user, t, slot in batch]
