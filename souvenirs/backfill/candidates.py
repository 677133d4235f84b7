"""Candidates for souvenirs, and those of them whose user has no row in the rate-limit slot yet."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from django.db import router

from souvenirs import timestamps
from souvenirs.backfill.entries import PAGE_SIZE
from souvenirs.conf import conf
from souvenirs.models import Souvenir
from souvenirs.periods import Interval, slot_containing

MAX_SPANS = 20  # time ranges of existing rows that a batch is compared with


class Candidate(NamedTuple):
    user_pk: Any
    t: float
    slot: Interval


def slot_of(when: datetime) -> Interval:
    """Return the rate-limit slot of a row with this `when`; without a limit, its microsecond."""
    t = _stored(when)
    if not conf.ratelimit_seconds:
        return Interval(t, t + 0.000_001)
    return slot_containing(t, conf.ratelimit_seconds, conf.zone)


def _stored(when: datetime) -> float:
    """Return the Unix time of a row's `when` as the database stores it: if USE_TZ is False, it does
    not distinguish the two occurrences of a repeated wall time."""
    return timestamps.to_seconds(when.replace(fold=0) if when.fold else when)


def unrecorded(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the first candidate for each user and slot without a row."""
    first: dict[tuple[Any, float], Candidate] = {}
    for candidate in candidates:
        first.setdefault((candidate.user_pk, candidate.slot.start), candidate)
    users = {candidate.user_pk for candidate in first.values()}
    for span in spans({candidate.slot for candidate in first.values()}):
        slot = Interval(0, 0)
        for user_pk, when in recorded(span):
            if user_pk in users:
                t = _stored(when)
                if not slot.start <= t < slot.end:  # rows are sorted, so mostly it is the same slot
                    slot = slot_of(when)
                first.pop((user_pk, slot.start), None)
    return list(first.values())


def spans(slots: Iterable[Interval]) -> list[Interval]:
    """Return at most MAX_SPANS intervals that cover all slots: adjacent slots are merged, and the
    shortest gaps are bridged until there are few enough intervals."""
    ordered = sorted(slots)
    if not ordered:
        return []
    gaps = ((ordered[i].start - ordered[i - 1].end, i) for i in range(1, len(ordered)))
    widest = heapq.nlargest(MAX_SPANS - 1, (gap for gap in gaps if gap[0] > 0))
    edges = [0, *sorted(i for _, i in widest), len(ordered)]
    return [
        Interval(ordered[begin].start, ordered[end - 1].end)
        for begin, end in itertools.pairwise(edges)
    ]


def recorded(span: Interval) -> Iterator[tuple[Any, datetime]]:
    """Yield (user's key, when) of the souvenirs in `span`, and possibly of some after it."""
    rows: Any = Souvenir.objects.using(router.db_for_write(Souvenir))
    rows = rows.order_by("when", "user_id").values_list("user_id", "when")
    start, end = (timestamps.to_datetime(t) for t in span)
    if end.fold:
        # Naive: rows from before the clocks went back look later than this
        here = end.replace(tzinfo=conf.zone)
        end += here.replace(fold=0).utcoffset() - here.utcoffset()  # type: ignore[operator]
    page = list(rows.between(start, end)[:PAGE_SIZE])
    while page:
        yield from page
        if len(page) < PAGE_SIZE:
            return
        user_pk, start = page[-1]
        page = list(rows.between(start, end).exclude(when=start, user_id__lte=user_pk)[:PAGE_SIZE])
