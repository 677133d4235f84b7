"""Past activity -> souvenirs, under the rate limit."""

from __future__ import annotations

import heapq
import itertools
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import router, transaction

from souvenirs import timestamps
from souvenirs.backfill.readers import PAGE, UNKNOWN_USER, USER_NAMES, BackfillError, Bad, Entry
from souvenirs.conf import conf
from souvenirs.models import Souvenir
from souvenirs.periods import Interval, slot_containing

__all__ = ["BackfillError", "Bad", "Entry", "Summary", "load"]

BATCH = 50_000  # entries: what is in memory at a time, and a transaction
INSERT = 5_000  # rows in a statement, or fewer where the database takes fewer
LOOK_UP = 500  # users in a query
SPANS = 20  # ranges of time that a batch is compared with

AMBIGUOUS = "several users have this"
FUTURE = "in the future"
TOO_LATE = "after 5138 (milliseconds?)"
TOO_EARLY = "before 1973 (a date without dashes?)"

# Unix times of activity have nine digits or more, and eleven at most: 1973 to 5138
EARLIEST, LATEST = 100_000_000, 100_000_000_000


@dataclass
class Summary:
    """What became of the entries: read = added + limited + nobody + bad.total().

    `limited` are those whose user has a row in the slot. `first` and `last` are the times of the
    rows added, in unix seconds; None if there is none.
    """

    read: int = 0
    added: int = 0
    limited: int = 0
    nobody: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    first: float | None = None
    last: float | None = None


class Activity(NamedTuple):
    user_pk: Any
    t: float
    slot: Interval


def load(
    entries: Iterable[Entry | Bad],
    *,
    strict: bool = False,
    dry_run: bool = False,
    on_bad: Callable[[Bad], object] = lambda bad: None,
    batch_size: int = BATCH,
) -> Summary:
    """Adds souvenirs of these entries: one per user and slot of the rate limit, if there is none.

    A row has the time of the slot's first entry, in their order. Last-seen times follow; what the
    process and the cache remember for the rate limit of visits is left alone, and no signal is
    sent.

    Entries may be in any order, of any number: a batch of them is in memory at a time, and is a
    transaction; so whatever is interrupted can be done again, as can what is done already. It is
    fast for entries that are sorted by time: a batch is compared with all rows of the time that
    it spans.

    What cannot be loaded is passed over: Bad among the entries, users who are unknown or not the
    only ones, times before 1973 or still to come. `on_bad` is called with each.

    strict: raise BackfillError at the first Bad, and then add nothing: all is one transaction,
        once all entries have been looked at.
    dry_run: add nothing, but say what would be added.

    Raises BackfillError also if the user model has not the field that users are named by.
    """
    summary = Summary()
    entries = iter(entries)
    with closing(Shelf()) as shelf:
        while batch := list(itertools.islice(entries, batch_size)):
            activities, bad, nobody = sort_out(batch)
            for each in sorted(bad, key=lambda bad: bad.line):
                if strict:
                    raise BackfillError(str(each))
                summary.bad[each.reason] += 1
                on_bad(each)
            new = unrecorded(activities)
            if strict or dry_run:
                new = shelf.put(new)
            else:
                write(new)
            summary.read += len(batch)
            summary.added += len(new)
            summary.limited += len(activities) - len(new)
            summary.nobody += nobody
            times = [t for t in (summary.first, summary.last) if t is not None]
            times += [activity.t for activity in new]
            summary.first, summary.last = min(times, default=None), max(times, default=None)
        if strict and not dry_run:
            shelf.write(batch_size)
    return summary


def sort_out(batch: Iterable[Entry | Bad]) -> tuple[list[Activity], list[Bad], int]:
    """What users did, in the order of the entries; what is bad; how many entries are nobody's."""
    now = time.time()
    nobody = 0
    bad: list[Bad] = []
    timely: list[Entry] = []
    names: dict[str, set[Any]] = defaultdict(set)
    for item in batch:
        if isinstance(item, Bad):
            bad.append(item)
        elif item.user is None:
            nobody += 1
        elif EARLIEST <= item.when <= now:
            timely.append(item)
            names[item.user_by].add(item.user)
        else:
            bad.append(untimely(item))
    users = {user_by: find_users(names[user_by], user_by) for user_by in names}
    activities = []
    for item in timely:
        found = users[item.user_by][item.user]
        if len(found) == 1:
            # Of the time that the database will have: rounded to microseconds, for one
            slot = slot_of(stored(timestamps.to_datetime(item.when)))
            activities.append(Activity(found[0], item.when, slot))
        else:
            bad.append(Bad(item.line, AMBIGUOUS if found else UNKNOWN_USER, str(item.user)))
    return activities, bad, nobody


def untimely(item: Entry) -> Bad:
    if EARLIEST <= item.when < LATEST:
        return Bad(item.line, FUTURE, f"{item.user} at {timestamps.to_datetime(item.when)}")
    reason = TOO_EARLY if item.when < EARLIEST else TOO_LATE
    return Bad(item.line, reason, f"{item.user} at {item.when:.0f}")


def find_users(names: Iterable[Any], user_by: str) -> dict[Any, list[Any]]:
    """For each of the names the primary keys of the users whose it is: none, one or several.

    They are compared exactly, also where the database takes upper case for lower.
    """
    model: Any = get_user_model()
    column = user_field(user_by)
    values = {name: clean(column, name) for name in names}
    wanted = list({value for value in values.values() if value is not None})
    found: dict[Any, list[Any]] = defaultdict(list)
    users = model._base_manager.using(router.db_for_write(model)).order_by()
    for at in range(0, len(wanted), LOOK_UP):
        some = users.filter(**{f"{column.name}__in": wanted[at : at + LOOK_UP]})
        for value, user_pk in some.values_list(column.name, "pk"):
            found[value].append(user_pk)
    return {name: found.get(value, []) for name, value in values.items()}


def user_field(user_by: str) -> Any:
    """The user model's field that "pk", "username" or "email" means. Raises BackfillError if there
    is none."""
    model: Any = get_user_model()
    if user_by == "pk":
        return model._meta.pk
    if user_by not in USER_NAMES:
        raise BackfillError(f"users are named by {', '.join(USER_NAMES)}, not by {user_by!r}")
    name = model.USERNAME_FIELD if user_by == "username" else model.get_email_field_name()
    try:
        return model._meta.get_field(name)
    except FieldDoesNotExist:
        raise BackfillError(
            f"users cannot be found by {user_by}: {model._meta.label} has no field {name}"
        ) from None


def clean(column: Any, name: Any) -> Any:
    """A name as the field has it; None for what no database could be asked for."""
    try:
        value = column.to_python(name)
        if isinstance(value, str):
            value.encode()
    except (ValidationError, UnicodeEncodeError):
        return None
    is_odd = "\0" in value if isinstance(value, str) else False
    is_huge = isinstance(value, int) and not -(2**63) <= value < 2**63
    return None if is_odd or is_huge else value


def stored(when: datetime) -> float:
    """The unix time of a row's `when`, as the database has it: where USE_TZ is False, it does not
    know which one of two equal times on the clocks was meant."""
    return timestamps.to_seconds(when.replace(fold=0) if when.fold else when)


def slot_of(t: float) -> Interval:
    """The rate limit's slot; without a limit, the microsecond."""
    if not conf.ratelimit_seconds:
        return Interval(t, t + 0.000_001)
    return slot_containing(t, conf.ratelimit_seconds, conf.zone)


def unrecorded(activities: Iterable[Activity]) -> list[Activity]:
    """The first of each user and slot that has no row yet."""
    first: dict[tuple[Any, float], Activity] = {}
    for activity in activities:
        first.setdefault((activity.user_pk, activity.slot.start), activity)
    users = {activity.user_pk for activity in first.values()}
    for span in spans({activity.slot for activity in first.values()}):
        slot = Interval(0, 0)
        for user_pk, when in recorded(span):
            if user_pk in users:
                t = stored(when)
                if not slot.start <= t < slot.end:  # they are sorted: it mostly is
                    slot = slot_of(t)
                first.pop((user_pk, slot.start), None)
    return list(first.values())


def spans(slots: Iterable[Interval]) -> list[Interval]:
    """SPANS intervals at most that hold all slots: what follows each other is one, and the shortest
    gaps are bridged until they are so few."""
    ordered = sorted(slots)
    if not ordered:
        return []
    gaps = ((ordered[i].start - ordered[i - 1].end, i) for i in range(1, len(ordered)))
    widest = heapq.nlargest(SPANS - 1, (gap for gap in gaps if gap[0] > 0))
    edges = [0, *sorted(i for _, i in widest), len(ordered)]
    return [
        Interval(ordered[begin].start, ordered[end - 1].end)
        for begin, end in itertools.pairwise(edges)
    ]


def recorded(span: Interval) -> Iterator[tuple[Any, datetime]]:
    """(user's key, when) of the souvenirs in it, and maybe of some after it."""
    rows: Any = Souvenir.objects.using(router.db_for_write(Souvenir))
    rows = rows.order_by("when", "user_id").values_list("user_id", "when")
    start, end = (timestamps.to_datetime(t) for t in span)
    if end.fold:
        # Naive: rows of the time before the clocks went back look as if they were later than this
        here = end.replace(tzinfo=conf.zone)
        end += here.replace(fold=0).utcoffset() - here.utcoffset()  # type: ignore[operator]
    page = list(rows.between(start, end)[:PAGE])
    while page:
        yield from page
        if len(page) < PAGE:
            return
        user_pk, start = page[-1]
        page = list(rows.between(start, end).exclude(when=start, user_id__lte=user_pk)[:PAGE])


def write(activities: Iterable[Activity]) -> None:
    Souvenir.objects.using(router.db_for_write(Souvenir)).bulk_create(
        [Souvenir(user_id=a.user_pk, when=timestamps.to_datetime(a.t)) for a in activities],
        batch_size=INSERT,
    )


class Shelf:
    """Activities that are not written yet, or never: on disk, where there are many."""

    def __init__(self) -> None:
        self.db = sqlite3.connect("")  # a temporary file, which no other connection sees
        self.db.execute("CREATE TABLE activity (user, slot, t, PRIMARY KEY (user, slot))")

    def close(self) -> None:
        self.db.close()

    def put(self, activities: Iterable[Activity]) -> list[Activity]:
        """Keeps the first of each user and slot, and returns those that it kept."""
        insert = "INSERT OR IGNORE INTO activity VALUES (?, ?, ?)"
        return [
            activity
            for activity in activities
            if self.db.execute(
                insert, (str(activity.user_pk), activity.slot.start, activity.t)
            ).rowcount
        ]

    def write(self, batch_size: int) -> None:
        """Writes all of them, in one transaction."""
        to_key = user_field("pk").to_python
        kept = self.db.execute("SELECT user, t, slot FROM activity ORDER BY rowid")
        with transaction.atomic(using=router.db_for_write(Souvenir)):
            while batch := kept.fetchmany(batch_size):
                write(Activity(to_key(user), t, Interval(slot, slot)) for user, t, slot in batch)
