"""Repair last-seen times and Rollups after rows were changed without save() or bulk_create()."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from django.db import IntegrityError, router
from django.db.models import Max

from souvenirs import bitmaps, timestamps
from souvenirs.conf import conf
from souvenirs.databases import as_in_list
from souvenirs.history import rollups
from souvenirs.history.counting import first_recorded
from souvenirs.history.maintenance import set_back_last_seen
from souvenirs.history.marks import pop_marks
from souvenirs.history.progress import rollup_lock, watermark
from souvenirs.lastseen import get_store, table
from souvenirs.models import LastSeen, Rollup, Souvenir
from souvenirs.periods import BUCKET, Interval, bucket_after, bucket_containing, calendar_period

if TYPE_CHECKING:
    from pyroaring import BitMap

BATCH_SIZE = 5_000  # users whose last-seen times are read at a time


def repair(on_step: Callable[[Interval], None] | None = None) -> None:
    """Make last-seen times and Rollups match the rows, after these were changed by raw SQL,
    QuerySet.update or loaddata; and rebuild days after the site's time zone was changed.

    What was rolled up from pruned souvenirs and for deleted users is kept. A user whose rows were
    moved out of a bucket is removed from it, unless its souvenirs are pruned. Each day is a
    transaction; other processes may record, roll up and prune meanwhile. `on_step` is called with
    each day.
    """
    using = router.db_for_write(Rollup)
    set_back_last_seen()
    catch_up_last_seen(using)
    get_store().reconcile()
    start = first_recorded(using)
    while start is not None and start < watermark(using).rolled_up:
        day = calendar_period("day", start, conf.zone)
        _repair_day(day, using)
        if on_step:
            on_step(day)
        start = day.end


def catch_up_last_seen(using: str) -> None:
    """Move all last-seen times forward to the users' rows, and create missing ones."""
    rows = Souvenir.objects.using(using).filter(when__lte=timestamps.to_datetime(time.time()))
    newest = rows.order_by("user_id").values("user_id").annotate(newest=Max("when"))
    batch = list(newest[:BATCH_SIZE])
    while batch:
        try:
            _catch_up(batch, using)
        except IntegrityError:  # a user was deleted meanwhile, and their rows with them
            _catch_up(newest.filter(user_id__in=[row["user_id"] for row in batch]), using)
        batch = list(newest.filter(user_id__gt=batch[-1]["user_id"])[:BATCH_SIZE])


def _catch_up(newest: Iterable[Mapping[str, Any]], using: str) -> None:
    table.catch_up((Souvenir(user_id=row["user_id"], when=row["newest"]) for row in newest), using)


def _repair_day(day: Interval, using: str) -> None:
    rows = Rollup.objects.using(using)
    with rollup_lock(using) as mark:
        start, end = bucket_containing(day.start), min(bucket_after(day.end), mark.rolled_up)
        _, deleted = pop_marks(Interval(start, end), using)
        facts = rollups.read_members(range(start, end, BUCKET), deleted, using)
        for rollup in rows.filter(kind=Rollup.BUCKET, start__gte=start, start__lt=end):
            kept = bitmaps.from_bytes(bytes(rollup.members))
            if rollup.start >= mark.pruned:
                kept -= _existing(kept - facts.get(rollup.start, bitmaps.bitmap()), using)
            rollups.set_members(rollup, kept)
            if kept:
                rollup.save(using=using)
            else:
                rollup.delete(using=using)
        rollups.merge_into_rollups(facts, using)
        for kind, name in rollups.PERIODS.items():
            period = calendar_period(name, day.start, conf.zone)
            if period.end == day.end:
                overlapping = rows.filter(kind=kind, start__lt=period.end, end__gt=period.start)
                overlapping.delete()
                rollups.build_period_rollup(kind, period, mark.rolled_up, using)


def _existing(ordinals: BitMap, using: str) -> BitMap:
    """Return those LastSeen ids that belong to existing users: for them, rows alone determine when
    they were active. (Call it after the rows are read: then a user who is deleted in between is
    kept.)"""
    if not ordinals:
        return bitmaps.bitmap()
    rows = LastSeen.objects.using(using).filter(pk__in=as_in_list(ordinals, using))
    return bitmaps.bitmap(rows.values_list("pk", flat=True))
