"""The public API: remember that users were active, ask how many were and when."""

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
    """Remember that `user` (a user, or the primary key of one) was active.

    Call it as often as you like: it writes one row per user and rate-limit slot, and keeps the
    user's last-seen time. Slots are the clock's windows of SOUVENIRS_RATELIMIT_SECONDS, cut at the
    site's midnight.

    when: the time of the activity, now by default; past and future, in any order. A naive datetime
        is in the site's time zone.
    ratelimit: False for no limit, or a number of seconds in place of the setting's.
    check_duplicate: do not write a row of the same user and `when` again.

    Returns "added", "rate-limited", or (only with check_duplicate) "duplicated"; "skipped" where
    SOUVENIRS_ENABLED is False, as in the tests of a site.

    Inside a transaction the row is part of it, and last-seen follows when it commits; after a
    rollback the user is recorded again by a visit outside of transactions, or within a minute.

    Raises TypeError for an instance of another model, a key that is a float, a Decimal, a bool or
    bytes, and a `when` that is not a datetime; ValueError for a user who is not saved, a limit
    below 0, and a `when` that is not of the years 1900 to 9998; the user model's DoesNotExist if no
    user has the key; and django.db.DatabaseError if the database fails. An enclosing transaction
    stays usable. A connection that was lost is closed, so that a later call makes a new one, also
    where no request's end would.
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
    """`souvenez` for async code. It takes a thread only where there is something to write."""
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

    Either bound may be None; naive ones are in the site's time zone. Users who were deleted since
    count too, and so do souvenirs that are pruned. `qs` is a queryset of Souvenir to count
    instead of this history. Raises TypeError for a bound that is not a datetime.

    by: a path from the user model, such as "is_staff" or "subscription__plan". Then the result is a
        Counter: users by the value that they have now, None where there is none, and "deleted" for
        those who do not exist any more. A user with several values, as of a many-to-many relation,
        counts once in each. Raises django.core.exceptions.FieldError if there is no such path, or
        it leads to documents or lists.
    """
    if by is not None:
        return counting.count_users_by(start, end, qs, by)
    return counting.count_users(start, end, qs)


@dropping_dead_connections()
def active_users_between(
    start: datetime | None = None, end: datetime | None = None
) -> QuerySet[Any]:
    """The users who were active at start <= when < end, as a queryset of the user model.

    Bounds are as those of `count_active_users`, which may count more: those who are deleted. Who
    they are is decided when this is called.
    """
    return counting.users_between(start, end)


@dropping_dead_connections()
def last_seen(user: Any) -> datetime | None:
    """When `user` (a user, or the primary key of one) was last active, None for never.

    The time is up to SOUVENIRS_LAST_SEEN_SECONDS behind what the user really did last. It is UTC,
    or naive and in the site's time zone where USE_TZ is False.
    """
    seen = get_store().get(clean_pk(user))
    return None if seen is None else timestamps.to_datetime(seen)


def with_last_seen(users: QuerySet[Any], name: str = "last_seen") -> QuerySet[Any]:
    """A queryset of users who each have the attribute `name`: their last-seen time, or None.

    It is the column of a joined table, so a list costs no query per user; use it in filters,
    expressions and aggregates as you would `last_login`. (As with any annotation, `exclude` leaves
    out who has no time.) With last-seen times in Redis it is the first time in the rate limit's
    slot.

    Raises ValueError if the user model has a field called `name`, or a router keeps souvenirs in
    another database than `users`.
    """
    if not has_constraint():
        raise ValueError(
            f"souvenirs are in the database {router.db_for_write(LastSeen)!r}, and users are not:"
            " they cannot be joined; use last_seen(user) for each"
        )
    annotated: QuerySet[Any] = users.annotate(**{name: F("souvenirs_last_seen__seen")})
    return annotated


@dropping_dead_connections()
def inactive_users(since: datetime, joined_before: datetime | None = None) -> QuerySet[Any]:
    """The users who were last seen before `since`, as a queryset of the user model.

    Users who were never seen count only if they joined (`date_joined`) before `joined_before`,
    which is `since` by default; where the user model has no such column, they do not count. Nobody
    was seen before you began to record: see docs/inactive.md before you act on the list.

    Naive datetimes are in the site's time zone. Nobody who was seen since is among the users; with
    last-seen times in Redis, somebody last seen up to a rate limit's slot earlier may be missing.
    Where a router keeps users in another database than souvenirs, who they are is decided when
    this is called. Raises TypeError for a bound that is not a datetime.
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
