"""Between? Exact numbers of distinct users in ranges of the past."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from django.db.models import Count, Q

from souvenirs import clock
from souvenirs.models import Souvenir, SouvenirQuerySet
from souvenirs.periods import Interval


def count_users(
    start: datetime | None = None,
    end: datetime | None = None,
    rows: SouvenirQuerySet | None = None,
) -> int:
    """Distinct users with start <= when < end, of all souvenirs or of the queryset `rows`."""
    if rows is None:
        rows = Souvenir.objects.all()
    return rows.between(
        None if start is None else clock.to_site(start), None if end is None else clock.to_site(end)
    ).count_users()


def count_users_of_periods(periods: Mapping[str, Interval], using: str) -> dict[str, int]:
    """Distinct users of each period, by its key, in one query and so from one snapshot."""
    if not periods:
        return {}
    ranges = {
        name: Q(when__gte=clock.to_datetime(period.start), when__lt=clock.to_datetime(period.end))
        for name, period in periods.items()
    }
    earliest = min(period.start for period in periods.values())
    latest = max(period.end for period in periods.values())
    counts: dict[str, int] = (
        Souvenir.objects.using(using)
        .between(clock.to_datetime(earliest), clock.to_datetime(latest))
        .order_by()
        .aggregate(
            **{name: Count("user", distinct=True, filter=when) for name, when in ranges.items()}
        )
    )
    return counts


def first_recorded(using: str) -> float | None:
    """When the first souvenir is from (unix seconds), None if there is none."""
    when = Souvenir.objects.using(using).order_by("when").values_list("when", flat=True).first()
    return None if when is None else clock.to_seconds(when)
