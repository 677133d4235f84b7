"""Count the distinct users in ranges of the past, exactly: see plans."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.db import connections, router
from django.db.models import Q, QuerySet

from souvenirs import timestamps
from souvenirs.databases import as_in_list, from_result
from souvenirs.history import rows as raw
from souvenirs.history.plans import History, Users
from souvenirs.history.segments import By, UsersByValue
from souvenirs.isolation import repeatable_read
from souvenirs.models import LastSeen, Rollup, Souvenir, SouvenirQuerySet
from souvenirs.periods import EARLIEST, LATEST, Interval, bucket_containing
from souvenirs.users import key_of_row


class UserCounts(NamedTuple):
    """The number of distinct users, and of those with each value: see UsersByValue.count."""

    users: int
    by: Counter[Any]


def count_users(
    start: datetime | None = None,
    end: datetime | None = None,
    rows: SouvenirQuerySet | None = None,
) -> int:
    """Count the distinct users with start <= when < end, in the history or the queryset `rows`."""
    if rows is None:
        (count,) = count_users_of_ranges([_range(start, end)])
        return count
    return rows.between(*map(_to_site, (start, end))).count_users()


def count_users_by(
    start: datetime | None, end: datetime | None, rows: SouvenirQuerySet | None, path: str
) -> Counter[Any]:
    """Count the users of `count_users` by their value of a path from the user model."""
    if rows is None:
        (counts,) = count_users_of_ranges_by([_range(start, end)], path)
        return counts.by
    keys = rows.between(*map(_to_site, (start, end))).order_by().values_list("user", flat=True)
    users = Users(without_ordinal=set(keys.distinct()))
    return UsersByValue(path, rows.db).count(users)


def users_between(start: datetime | None = None, end: datetime | None = None) -> QuerySet[Any]:
    """Return the users that `count_users` counts, except deleted ones.

    Their keys are looked up now; the queryset reads their rows when it is evaluated.
    """
    using = router.db_for_read(LastSeen)
    with repeatable_read(using) as is_snapshot:
        history = History([_clamped(_range(start, end))], using, is_snapshot)
        ((_, users),) = history.iter_users([0], with_members=True)
    user: Any = LastSeen._meta.get_field("user")
    keys = [key_of_row(key) for key in users.without_ordinal]
    ordinals = as_in_list(users.members, using)
    condition = Q(souvenirs_last_seen__id__in=ordinals)
    if not user.db_constraint:  # users are in another database: select them by their keys
        rows = LastSeen.objects.using(using).filter(pk__in=ordinals)
        condition = Q(pk__in=list(rows.values_list("user_id", flat=True)))
    found: QuerySet[Any] = get_user_model()._base_manager.filter(condition | Q(pk__in=keys))
    return found


def count_users_of_ranges(ranges: Sequence[Interval], using: str | None = None) -> list[int]:
    """Count the distinct users of each range, in the order given. Ranges may overlap, and be in any
    order.

    All counts are from one snapshot. The number of queries depends neither on the number of ranges
    nor on the length of the history. The users of overlapping ranges are in memory at the same
    time.
    """
    counts = _count([_clamped(each) for each in ranges], using or router.db_for_read(Souvenir))
    return [counts[number] for number in range(len(ranges))]


def count_users_of_ranges_by(
    ranges: Sequence[Interval], by: By, using: str | None = None
) -> list[UserCounts]:
    """Count the distinct users of each range, also by their value of a path from the user model, or
    by a grouping of such values: see `count_users_of_ranges`. In addition, the values of all users
    are read once.

    Raises FieldError if there is no such path.
    """
    if not ranges:
        return []
    using = using or router.db_for_read(Souvenir)
    counts: dict[int, UserCounts] = {}
    by_value = UsersByValue(by, using)
    with repeatable_read(using) as is_snapshot:
        history = History([_clamped(each) for each in ranges], using, is_snapshot)
        for number, users in history.iter_users(range(len(ranges)), with_members=True):
            counts[number] = UserCounts(len(users), by_value.count(users))
    return [counts[number] for number in range(len(ranges))]


def count_users_of_periods(
    periods: Mapping[str, Interval], using: str, most_rows: int
) -> dict[str, int]:
    """Count the distinct users of each period, by its key: see `count_users_of_ranges`. Leave out
    periods for which the rows of more than `most_rows` buckets would have to be read."""
    counts = _count(list(periods.values()), using, most_rows)
    return {name: counts[number] for number, name in enumerate(periods) if number in counts}


def _count(ranges: Sequence[Interval], using: str, most_rows: float = math.inf) -> dict[int, int]:
    if not ranges:
        return {}
    counts: dict[int, int] = {}
    with repeatable_read(using) as is_snapshot:
        history = History(ranges, using, is_snapshot)
        numbers = [n for n in range(len(ranges)) if history.row_buckets(n) <= most_rows]
        in_rows = [number for number in numbers if history.is_rows_only(number)]
        counts.update(zip(in_rows, raw.count_users([history.ranges[n] for n in in_rows], using)))
        rest = [number for number in numbers if number not in counts]
        for number, users in history.iter_users(rest) if rest else ():
            counts[number] = len(users)
    return counts


def first_recorded(using: str | None = None) -> float | None:
    """Return the time of the first souvenir (Unix seconds), or None if there is none. If it has
    been pruned, or its user deleted, return the start of its bucket. One query."""
    using = using or router.db_for_read(Souvenir)
    when = connections[using].ops.quote_name("when")
    with connections[using].cursor() as cursor:
        cursor.execute(
            f"SELECT (SELECT MIN({when}) FROM souvenirs_souvenir),"  # noqa: S608
            f" (SELECT MIN(start) FROM souvenirs_rollup WHERE kind = {Rollup.BUCKET}),"
            " (SELECT MIN(bucket) FROM souvenirs_deletedmember)"
        )
        [(row, *buckets)] = cursor.fetchall()
    first = from_result(row, Souvenir._meta.get_field("when"), using)
    bucket: int | None = min((each for each in buckets if each is not None), default=None)
    if first is None or (bucket is not None and bucket < bucket_containing(first)):
        return bucket
    return first


def _to_site(bound: datetime | None) -> datetime | None:
    return None if bound is None else timestamps.to_site(bound)


def _range(start: datetime | None, end: datetime | None) -> Interval:
    return Interval(
        EARLIEST if start is None else timestamps.to_seconds(start),
        LATEST if end is None else timestamps.to_seconds(end),
    )


def _clamped(interval: Interval) -> Interval:
    """Cut an interval to the times that souvenirs may have: a bound may be datetime.max, say."""
    start, end = (min(max(bound, EARLIEST), LATEST) for bound in interval)
    return Interval(start, end) if start < end else Interval(0, 0)
