"""Between? Exact numbers of distinct users in ranges of the past: see plans."""

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
    """Distinct users, and how many of them have each value of a path: see UsersByValue.count."""

    users: int
    by: Counter[Any]


def count_users(
    start: datetime | None = None,
    end: datetime | None = None,
    rows: SouvenirQuerySet | None = None,
) -> int:
    """Distinct users with start <= when < end, of the history or of the queryset `rows`."""
    if rows is None:
        (count,) = count_users_of_ranges([_range(start, end)])
        return count
    return rows.between(*map(_to_site, (start, end))).count_users()


def count_users_by(
    start: datetime | None, end: datetime | None, rows: SouvenirQuerySet | None, path: str
) -> Counter[Any]:
    """Count the users of `count_users` by the value that the path leads to."""
    if rows is None:
        (counts,) = count_users_of_ranges_by([_range(start, end)], path)
        return counts.by
    keys = rows.between(*map(_to_site, (start, end))).order_by().values_list("user", flat=True)
    users = Users(without_ordinal=set(keys.distinct()))
    return UsersByValue(path, rows.db).count(users)


def users_between(start: datetime | None = None, end: datetime | None = None) -> QuerySet[Any]:
    """The users that `count_users` counts, except deleted ones.

    Their keys are looked up now; the queryset reads their rows when it is used.
    """
    using = router.db_for_read(LastSeen)
    with repeatable_read(using) as is_snapshot:
        history = History([_clamped(_range(start, end))], using, is_snapshot)
        ((_, users),) = history.iter_users([0], with_members=True)
    user: Any = LastSeen._meta.get_field("user")
    keys = [key_of_row(key) for key in users.without_ordinal]
    ordinals = as_in_list(users.members, using)
    condition = Q(souvenirs_last_seen__id__in=ordinals)
    if not user.db_constraint:  # users are in another database: they go by their keys
        rows = LastSeen.objects.using(using).filter(pk__in=ordinals)
        condition = Q(pk__in=list(rows.values_list("user_id", flat=True)))
    found: QuerySet[Any] = get_user_model()._base_manager.filter(condition | Q(pk__in=keys))
    return found


def count_users_of_ranges(ranges: Sequence[Interval], using: str | None = None) -> list[int]:
    """Distinct users of each range, in the order given. Ranges may overlap, and be in any order.

    All are from one snapshot, in a number of queries that depends neither on that of the ranges nor
    on the history's length. The users of those ranges that overlap are in memory at a time.
    """
    counts = _count([_clamped(each) for each in ranges], using or router.db_for_read(Souvenir))
    return [counts[number] for number in range(len(ranges))]


def count_users_of_ranges_by(
    ranges: Sequence[Interval], by: By, using: str | None = None
) -> list[UserCounts]:
    """Distinct users of each range, also by the value that a path from the user model leads to, or
    by a grouping of such values: see `count_users_of_ranges`. In addition, all users' values are
    read once.

    Raise FieldError if there is no such path.
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
    """Distinct users of each period, by its key: see `count_users_of_ranges`. Without the periods
    of which rows of over `most_rows` buckets would have to be read."""
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
    """When the first souvenir is from (unix seconds), None if there is none. If that is pruned, or
    its user deleted, the start of its bucket. One query."""
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
    """The interval less what lies beyond the times of souvenirs, such as datetime.max."""
    start, end = (min(max(bound, EARLIEST), LATEST) for bound in interval)
    return Interval(start, end) if start < end else Interval(0, 0)
