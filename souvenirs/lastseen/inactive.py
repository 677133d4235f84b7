"""Find users who have not been seen recently: conditions on the table, for lists of users and of
their times."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.db import router
from django.db.models import Q, QuerySet

from souvenirs import databases, timestamps
from souvenirs.lastseen import table
from souvenirs.models import LastSeen
from souvenirs.users import has_constraint, has_date_joined

SEEN = "souvenirs_last_seen__seen"  # path from the user model


def first_time_of(t: float) -> datetime:
    """Return the earliest time that the column may have for a user seen at or after `t` (Unix
    seconds)."""
    start = table.earliest(table.resolution_start(t))
    using = router.db_for_read(LastSeen)
    return databases.to_column(databases.shown_from(math.floor(start), using), using)


def seen_since(t: float, column: str = SEEN) -> Q:
    """Return the condition for users seen at or after `t` (Unix seconds). With last-seen times in
    Redis, the table has them only at the resolution of the rate-limit slot: the condition may hold
    for users seen earlier in the slot, but none are missing."""
    return Q(**{f"{column}__gte": first_time_of(t)})


def not_seen_since(t: float, column: str = SEEN) -> Q:
    """Return the condition for users who were seen, but not since `t`: the rest of `seen_since`."""
    return Q(**{f"{column}__lt": first_time_of(t)})


def never_seen(column: str = SEEN) -> Q:
    """Return the condition for users without a last-seen time."""
    return Q(**{f"{column}__isnull": True})


def inactive_users(since: float, joined_before: float) -> Any:
    """Implement control.inactive_users. Times are in Unix seconds."""
    users = get_user_model()._base_manager.all()
    if not has_constraint():
        return users.filter(pk__in=_inactive_keys(users, since, joined_before))
    inactive = not_seen_since(since)
    if (joined := _joined_before(joined_before)) is not None:
        inactive |= never_seen() & joined
    return users.filter(inactive)


def _joined_before(t: float) -> Q | None:
    return Q(date_joined__lt=timestamps.to_datetime(t)) if has_date_joined() else None


def _inactive_keys(users: QuerySet[Any], since: float, joined_before: float) -> list[Any]:
    """Return the keys of inactive users, if users are in a different database from the table."""
    rows = LastSeen.objects.all()
    inactive = rows.filter(not_seen_since(since, "seen")).values_list("user_id", flat=True)
    keys = set(inactive.iterator())
    if (joined := _joined_before(joined_before)) is not None:
        never = set(users.filter(joined).values_list("pk", flat=True).iterator())
        seen = rows.exclude(never_seen("seen")).values_list("user_id", flat=True)
        keys |= never.difference(seen.iterator())
    return list(keys)
