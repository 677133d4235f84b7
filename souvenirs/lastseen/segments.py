"""Since when, by something that users have: their plan, or the organization that they belong to.

These counts come from the LastSeen table, whatever the store, as they join it to the users.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from django.db.models import Case, Count, F, Max, Q, QuerySet, SmallIntegerField, Value, When

from souvenirs.databases import shown_from, shown_until, to_column
from souvenirs.models import LastSeen
from souvenirs.paths import UserPath

NONE, OTHER = -1, -2  # numbers of what is not declared

Since = dict[float, int]  # cut point -> how many were seen at or after it


def count_users_by(
    path: UserPath, values: Sequence[Any], cuts: Iterable[float], until: float, using: str
) -> dict[int, Since]:
    """Count the users seen from each of `cuts` to `until`, both inclusive, by the value that `path`
    leads to. One query, which counts all cuts in one pass.

    The result has an entry for each of `values`, by its position, and for NONE (null, or nothing
    there) and OTHER (all other values). A user with several values counts once in each entry.
    """
    starts, end = _edges(cuts, until, using)
    edges = sorted(set(starts.values()))
    value = Case(
        *(When(raw=each, then=Value(number)) for number, each in enumerate(values)),
        When(raw__isnull=True, then=Value(NONE)),
        default=Value(OTHER),
        output_field=SmallIntegerField(),
    )
    found: dict[int, dict[str, int]] = {}
    if edges:
        rows = _seen(edges[0], end, using).annotate(raw=F(f"user__{path.name}"))
        counts = (
            rows.annotate(number=value)
            .values("number")
            .annotate(**_since(edges, using, "id", "seen", distinct=path.is_multivalued))
        )
        found = {row["number"]: row for row in counts}
    return {
        number: {
            cut: found[number][f"since_{edges.index(start)}"] if number in found else 0
            for cut, start in starts.items()
        }
        for number in (*range(len(values)), NONE, OTHER)
    }


def count_accounts(path: UserPath, cuts: Iterable[float], until: float, using: str) -> Since:
    """Count the distinct values of `path`, except null, of the users seen from each of `cuts` to
    `until`, both inclusive. One query."""
    starts, end = _edges(cuts, until, using)
    edges = sorted(set(starts.values()))
    if not edges:
        return {}
    accounts = (
        _seen(edges[0], end, using)
        .filter(**{f"user__{path.name}__isnull": False})
        .values(f"user__{path.name}")
        .annotate(last=Max("seen"))
    )
    counts = accounts.aggregate(**_since(edges, using, "last", "last"))
    return {cut: counts[f"since_{edges.index(start)}"] for cut, start in starts.items()}


def _since(
    edges: Sequence[float], using: str, counted: str, seen: str, distinct: bool = False
) -> dict[str, Count]:
    """Aggregates since_0, since_1, ...: how many were `seen` at or after each of the edges.

    (To group by the slices between them would make PostgreSQL sort the users, since it expects as
    many groups as there are times.)
    """
    return {
        f"since_{number}": Count(
            counted, distinct=distinct, filter=Q(**{f"{seen}__gte": to_column(edge, using)})
        )
        for number, edge in enumerate(edges)
    }


def _edges(cuts: Iterable[float], until: float, using: str) -> tuple[dict[float, float], float]:
    """The cuts and the end, as columns show them."""
    starts = {cut: shown_from(math.ceil(cut), using) for cut in cuts}
    return starts, shown_until(math.floor(until) + 1, using)


def _seen(start: float, end: float, using: str) -> QuerySet[Any]:
    bounds = {"seen__gte": to_column(start, using), "seen__lt": to_column(end, using)}
    rows: QuerySet[Any] = LastSeen.objects.using(using).filter(**bounds)
    return rows
