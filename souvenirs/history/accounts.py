"""Count accounts, now and at the end of each day."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.db import router
from django.db.models import Case, Count, Model, Q, Value, When

from souvenirs import timestamps
from souvenirs.conf import conf
from souvenirs.isolation import repeatable_read
from souvenirs.models import AccountTotals
from souvenirs.periods import calendar_period, day_containing, previous_calendar_period
from souvenirs.users import column, has_date_joined


class Totals(NamedTuple):
    """Accounts, and those of them with is_active (all, if the user model has no such column)."""

    registered: int
    activated: int


def as_of(when: datetime) -> Totals | None:
    """Count the existing accounts that joined before `when`, with their current `is_active`.

    Return None, without a query, if the user model has no datetime column `date_joined`.
    """
    if not has_date_joined():
        return None
    counts = (
        get_user_model()
        ._base_manager.filter(date_joined__lt=timestamps.to_site(when))
        .aggregate(registered=Count("pk"), activated=Count("pk", filter=is_activated()))
    )
    return Totals(counts["registered"], counts["activated"])


def close_days(until: float) -> None:
    """Store the totals of days that ended by `until` (Unix seconds) and have none: of all days
    after the last one with totals, or only of the last day if there are no totals at all."""
    kept = AccountTotals.objects.using(router.db_for_write(AccountTotals))
    last = kept.order_by("-end").first()
    day = previous_calendar_period("day", until, conf.zone)
    if last is not None and last.end >= day.end:
        return
    if last is not None:
        day = calendar_period("day", last.end, conf.zone)
    while day.end <= until:
        totals = as_of(timestamps.to_datetime(day.end))
        if totals is None:
            return
        row = AccountTotals(
            date=day_containing(day.start, conf.zone),
            end=day.end,
            registered=totals.registered,
            activated=totals.activated,
        )
        kept.bulk_create([row], ignore_conflicts=True)  # another process may do the same
        day = calendar_period("day", day.end, conf.zone)


def as_of_all(
    ends: Sequence[float], database: Callable[[type[Model]], str] = router.db_for_read
) -> list[Totals] | list[tuple[None, None]]:
    """Count the accounts at each of `ends` (Unix seconds), in a constant number of queries.
    `database` returns the alias from which to read a model.

    Between the first and the last day with stored totals, the result is the totals of the day
    before, plus the existing accounts that joined since then. At other times it is that of `as_of`,
    with pairs of None instead of None.
    """
    if not has_date_joined():
        return [(None, None)] * len(ends)
    if not ends:
        return []
    rows = AccountTotals.objects.using(database(AccountTotals))
    kept = list(rows.filter(end__lte=max(ends)).order_by("end"))
    newest = rows.order_by("-end").first()
    bases = []
    for end in ends:
        at = bisect_right(kept, end, key=lambda row: row.end) - 1
        base = kept[at] if at >= 0 else None
        is_known = base is not None and newest is not None and end <= newest.end
        bases.append(base if is_known else None)
    cuts = {end for end, base in zip(ends, bases) if base is None or base.end < end}
    cuts |= {base.end for end, base in zip(ends, bases) if base is not None and base.end < end}
    joined = _joined_before(cuts, database(get_user_model()))
    totals = []
    for end, base in zip(ends, bases):
        if base is None:
            totals.append(joined[end])
        elif base.end == end:
            totals.append(Totals(base.registered, base.activated))
        else:
            since, until = joined[base.end], joined[end]
            totals.append(
                Totals(
                    base.registered + until.registered - since.registered,
                    base.activated + until.activated - since.activated,
                )
            )
    return totals


def _joined_before(cuts: Collection[float], using: str) -> dict[float, Totals]:
    """Compute `as_of` for each of the cuts, in one pass over the users: a count for each cut would
    read all users each time."""
    if not cuts:
        return {}
    times = sorted({timestamps.to_datetime(cut) for cut in cuts})
    rows = (
        get_user_model()
        ._base_manager.using(using)
        .filter(date_joined__lt=times[-1])
        .annotate(first=_first_after(times, 0, len(times) - 1))
        .order_by()
        .values("first")
        .annotate(registered=Count("pk"), activated=Count("pk", filter=is_activated()))
        .values_list("first", "registered", "activated")
    )
    registered, activated = [0] * len(times), [0] * len(times)
    with repeatable_read(using):
        for first, joined, active in rows:
            registered[first], activated[first] = joined, active
    totals = dict(zip(times, map(Totals, accumulate(registered), accumulate(activated))))
    return {cut: totals[timestamps.to_datetime(cut)] for cut in cuts}


def _first_after(times: Sequence[datetime], low: int, high: int) -> Any:
    """Return an expression for the index of the first of these times, from `low` to `high`, that is
    after date_joined: a bisection in SQL."""
    if low == high:
        return Value(low)
    middle = (low + high) // 2
    before = When(date_joined__lt=times[middle], then=_first_after(times, low, middle))
    return Case(before, default=_first_after(times, middle + 1, high))


def is_activated() -> Q:
    """Return the condition for accounts with is_active; for all accounts, if the user model has no
    such column."""
    return Q(is_active=True) if column("is_active") else Q()
