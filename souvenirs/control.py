"""The public API: record that users were active, and query how many were active and when."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime
from typing import Any, overload

from asgiref.sync import sync_to_async
from django.db import router
from django.db.models import F, QuerySet
from django.utils.functional import LazyObject, empty

from souvenirs import scopes, timestamps
from souvenirs.conf import conf
from souvenirs.connections import dropping_dead_connections
from souvenirs.history import counting
from souvenirs.lastseen import get_store, inactive
from souvenirs.models import LastSeen, SouvenirQuerySet
from souvenirs.recording import memory
from souvenirs.recording.recorder import record
from souvenirs.recording.results import RATE_LIMITED, SKIPPED
from souvenirs.users import clean_pk, has_constraint, key_of


def souvenez(
    user: Any,
    when: datetime | None = None,
    ratelimit: bool | float = True,
    check_duplicate: bool = False,
) -> str:
    """Record that `user` (a user, or a user's primary key) was active.

    Call it as often as you like: it writes one row per user and rate-limit slot, and updates the
    user's last-seen time. Slots are clock-aligned windows of SOUVENIRS_RATELIMIT_SECONDS, split at
    the site's midnight.

    when: the time of the activity, by default now; past and future times, in any order. A naive
        datetime is in the site's time zone.
    ratelimit: False for no limit, or a number of seconds to use instead of the setting.
    check_duplicate: do not write a second row with the same user and `when`.

    Returns "added", "rate-limited", or (only with check_duplicate) "duplicated"; "skipped" if
    SOUVENIRS_ENABLED is False, as in a site's tests.

    Inside a transaction the row is part of it, and the last-seen time is updated when it commits.
    After a rollback the user can be recorded again: at once outside a transaction, and after at
    most a minute inside one.

    Raises TypeError if `user` is an instance of another model, or a key that is a float, a Decimal,
    a bool or bytes, or if `when` is not a datetime; ValueError if the user is not saved, the limit
    is below 0, or `when` is outside the years 1900 to 9998; the user model's DoesNotExist if no
    user has the key; and django.db.DatabaseError if the database fails. An enclosing transaction
    stays usable. A lost connection is closed, so that a later call opens a new one, even outside of
    requests (at whose end Django would close it).
    """
    if not conf.enabled:
        return SKIPPED
    if is_handled(user, when, ratelimit, check_duplicate):
        return RATE_LIMITED
    with dropping_dead_connections():
        return record(user, when, ratelimit, check_duplicate)


async def asouvenez(
    user: Any,
    when: datetime | None = None,
    ratelimit: bool | float = True,
    check_duplicate: bool = False,
) -> str:
    """`souvenez` for async code. It uses a thread only if there is something to write."""
    if not conf.enabled:
        return SKIPPED
    is_loaded = not (isinstance(user, LazyObject) and user.__dict__["_wrapped"] is empty)
    if is_loaded and not scopes.is_scoped() and is_handled(user, when, ratelimit, check_duplicate):
        return RATE_LIMITED
    return await sync_to_async(souvenez)(user, when, ratelimit, check_duplicate)


@overload
def count_active_users(
    start: datetime | None = None,
    end: datetime | None = None,
    qs: SouvenirQuerySet | None = None,
    *,
    by: None = None,
) -> int: ...


@overload
def count_active_users(
    start: datetime | None = None,
    end: datetime | None = None,
    qs: SouvenirQuerySet | None = None,
    *,
    by: str,
) -> Counter[Any]: ...


@dropping_dead_connections()
def count_active_users(
    start: datetime | None = None,
    end: datetime | None = None,
    qs: SouvenirQuerySet | None = None,
    *,
    by: str | None = None,
) -> int | Counter[Any]:
    """Count the distinct users who were active at start <= when < end.

    Either bound may be None; naive ones are in the site's time zone. Users deleted since then still
    count, and so do pruned souvenirs. `qs` is a queryset of Souvenir to count instead of the
    history. Raises TypeError if a bound is not a datetime.

    by: a path from the user model, such as "is_staff" or "subscription__plan". The result is then a
        Counter of users by their current value: None for users without one, "deleted" for users
        who no longer exist. A user with several values, as in a many-to-many relation, counts once
        for each. Raises django.core.exceptions.FieldError if there is no such path, or its values
        are documents or lists.
    """
    if by is not None:
        return counting.count_users_by(start, end, qs, by)
    return counting.count_users(start, end, qs)


@dropping_dead_connections()
def active_users_between(
    start: datetime | None = None, end: datetime | None = None
) -> QuerySet[Any]:
    """The users who were active at start <= when < end, as a queryset of the user model.

    The bounds are those of `count_active_users`, which also counts users who have been deleted. The
    set of users is fixed when this is called.
    """
    return counting.users_between(start, end)


@dropping_dead_connections()
def last_seen(user: Any) -> datetime | None:
    """Return when `user` (a user, or a user's primary key) was last active, or None for never.

    The time may be up to SOUVENIRS_LAST_SEEN_SECONDS before the user's last activity. It is in UTC,
    or naive and in the site's time zone if USE_TZ is False.
    """
    seen = get_store().get(clean_pk(user))
    return None if seen is None else timestamps.to_datetime(seen)


def with_last_seen(users: QuerySet[Any], name: str = "last_seen") -> QuerySet[Any]:
    """Annotate a queryset of users with `name`: each user's last-seen time, or None.

    It is a column of a joined table, so a list does not need a query per user; use it in filters,
    expressions and aggregates as you would `last_login`. (As with any annotation, `exclude` also
    leaves out users without a time.) With last-seen times in Redis, it is the time of the first
    visit in the rate-limit slot.

    Raises ValueError if the user model has a field called `name`, or a router keeps souvenirs in a
    different database from `users`.
    """
    if not has_constraint():
        raise ValueError(
            f"souvenirs are in the database {router.db_for_write(LastSeen)!r}, and users are not,"
            " so they cannot be joined: use last_seen(user) for each user"
        )
    annotated: QuerySet[Any] = users.annotate(**{name: F("souvenirs_last_seen__seen")})
    return annotated


@dropping_dead_connections()
def inactive_users(since: datetime, joined_before: datetime | None = None) -> QuerySet[Any]:
    """The users who were last seen before `since`, as a queryset of the user model.

    Users who were never seen are included only if they joined (`date_joined`) before
    `joined_before`, by default `since`; if the user model has no such column, they are left out.
    Nobody was seen before you began to record: see docs/inactive.md before you act on the list.

    Naive datetimes are in the site's time zone. The result never includes a user seen since then;
    with last-seen times in Redis, a user last seen up to one rate-limit slot earlier may be
    missing. If a router keeps users in a different database from souvenirs, the set of users is
    fixed when this is called. Raises TypeError if a bound is not a datetime.
    """
    start = timestamps.to_seconds(since)
    joined = start if joined_before is None else timestamps.to_seconds(joined_before)
    users: QuerySet[Any] = inactive.inactive_users(start, joined)
    return users


def is_handled(
    user: Any, when: datetime | None, ratelimit: bool | float, check_duplicate: bool
) -> bool:
    return (
        when is None
        and ratelimit is True
        and not check_duplicate
        and memory.recent_users.is_handled(key_of(user), time.time())
    )
