"""Count users seen since a time by an attribute: their plan, or the organisation they belong to.

These counts come from the LastSeen table, whatever the store, because they join it to the users.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connections
from django.db.models import (
    Count,
    F,
    ManyToOneRel,
    Max,
    Q,
    QuerySet,
)

from souvenirs.databases import count_where, shown_from, shown_until, to_column, to_parameter
from souvenirs.models import LastSeen
from souvenirs.paths import NONE, OTHER, UserPath, number_of

Since = dict[float, int]  # cut point -> number of users seen at or after it


def count_users_by(
    path: UserPath, values: Sequence[Any], cuts: Iterable[float], until: float, using: str
) -> dict[int, Since]:
    """Count the users seen from each of `cuts` to `until`, both inclusive, by the value of `path`.
    One query, which counts all cuts in one pass.

    The result has an entry for each of `values`, by its position, and for NONE (null, or no related
    object) and OTHER (all other values). A user with several values counts once in each entry.
    """
    starts, end = _edges(cuts, until, using)
    edges = sorted(set(starts.values()))
    found: dict[int, list[int]] = {}
    if edges:
        numbers, params = _numbers(path, values, using)
        quote = connections[using].ops.quote_name
        seen = f"l.{quote('seen')}"
        count = count_where(f"{seen} >= %s", "l.id", using, distinct=path.is_multivalued)
        query = (
            f"SELECT COALESCE(v.souvenirs_number, {NONE}), {', '.join([count] * len(edges))}"  # noqa: S608
            f" FROM {quote(LastSeen._meta.db_table)} l LEFT JOIN ({numbers}) v"
            f" ON v.souvenirs_key = l.user_id WHERE {seen} >= %s AND {seen} < %s GROUP BY 1"
        )
        times = [to_parameter(edge, using) for edge in (*edges, edges[0], end)]
        with connections[using].cursor() as cursor:
            cursor.execute(query, [*times[:-2], *params, *times[-2:]])
            found = {number: numbers for number, *numbers in cursor.fetchall()}
    none = [0] * len(edges)
    return {
        number: {cut: found.get(number, none)[edges.index(start)] for cut, start in starts.items()}
        for number in (*range(len(values)), NONE, OTHER)
    }


def _numbers(path: UserPath, values: Sequence[Any], using: str) -> tuple[str, Sequence[Any]]:
    """Return a query for pairs of a user (souvenirs_key) and the number of their value
    (souvenirs_number), and its parameters.

    It starts at the first table on the path that has the users' keys: the ORM would join it through
    the table of users, which is large.
    """
    model: Any = get_user_model()
    key, rest = "pk", path.name
    first = path.relations[0] if path.relations else None
    # OneToOneRel is a subclass
    if isinstance(first, ManyToOneRel) and first.field.target_field.primary_key:
        model, key = first.related_model, first.field.attname
        rest = path.name.partition("__")[2]
    # Under names that no model has as a field
    rows = model._base_manager.using(using).annotate(souvenirs_key=F(key), souvenirs_raw=F(rest))
    pairs = rows.order_by().annotate(souvenirs_number=number_of("souvenirs_raw", values))
    pairs = pairs.values_list("souvenirs_key", "souvenirs_number")
    sql, params = pairs.query.get_compiler(using).as_sql()
    return sql, params


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
    counts = accounts.aggregate(
        **{
            f"since_{n}": Count("last", filter=Q(last__gte=to_column(edge, using)))
            for n, edge in enumerate(edges)
        }
    )
    return {cut: counts[f"since_{edges.index(start)}"] for cut, start in starts.items()}


def _edges(cuts: Iterable[float], until: float, using: str) -> tuple[dict[float, float], float]:
    """Return the cuts and the end as columns show them."""
    starts = {cut: shown_from(math.ceil(cut), using) for cut in cuts}
    return starts, shown_until(math.floor(until) + 1, using)


def _seen(start: float, end: float, using: str) -> QuerySet[Any]:
    bounds = {"seen__gte": to_column(start, using), "seen__lt": to_column(end, using)}
    rows: QuerySet[Any] = LastSeen.objects.using(using).filter(**bounds)
    return rows
