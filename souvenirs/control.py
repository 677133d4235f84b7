"""The public API: remember that users were active, ask how many were and when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import lru_cache, partial
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connections, router, transaction
from django.db.models import ExpressionWrapper, F, QuerySet
from django.utils.functional import LazyObject, empty

from souvenirs import timestamps
from souvenirs.conf import conf
from souvenirs.fields import SecondsField
from souvenirs.history import counting
from souvenirs.models import (
    GRACE_SECONDS,
    LastSeen,
    Sighting,
    Souvenir,
    SouvenirQuerySet,
    StaleMark,
)
from souvenirs.periods import BUCKET, bucket_containing, slot_containing
from souvenirs.recording.throttle import Claim, Handled, throttle
from souvenirs.signals import souvenir_recorded

USER_FIELD: Any = Souvenir._meta.get_field("user")

ADDED = "added"
RATE_LIMITED = "rate-limited"
DUPLICATED = "duplicated"
SKIPPED = "skipped"
FAILED = "failed"


def souvenez(
    user: Any,
    when: datetime | None = None,
    ratelimit: bool | float = True,
    check_duplicate: bool = False,
) -> str:
    """Remembers that `user` (a user, or the primary key of one) was active.

    Call it as often as you like: it writes one row per user and rate-limit slot, and keeps the
    user's last-seen time. Slots are the clock's windows of SOUVENIRS_RATELIMIT_SECONDS, cut at the
    site's midnight.

    when: the time of the activity, now by default; past and future, in any order. A naive datetime
        is in the site's time zone.
    ratelimit: False for no limit, or a number of seconds in place of the setting's.
    check_duplicate: do not write a row of the same user and `when` again.

    Returns "added", "rate-limited", or (only with check_duplicate) "duplicated".

    Inside a transaction the row is part of it, and last-seen follows when it commits; after a
    rollback the user is recorded again within a minute.

    Raises ValueError for a user who is not saved or a limit below 0, TypeError for a `when` that
    is no datetime, the user model's DoesNotExist where no user has the key, and
    django.db.DatabaseError when the database fails. An enclosing transaction stays usable.
    """
    if is_handled(user, when, ratelimit, check_duplicate):
        return RATE_LIMITED
    tell_hits()
    visit = Visit(user, when, ratelimit)
    result = visit.record(check_duplicate)
    souvenir_recorded.send_robust(sender=Souvenir, result=result, user_pk=visit.user_pk, count=1)
    return result


async def asouvenez(
    user: Any,
    when: datetime | None = None,
    ratelimit: bool | float = True,
    check_duplicate: bool = False,
) -> str:
    """`souvenez` for async code. It takes a thread only where there is something to write."""
    is_loaded = not (isinstance(user, LazyObject) and user.__dict__["_wrapped"] is empty)
    if is_loaded and is_handled(user, when, ratelimit, check_duplicate):
        return RATE_LIMITED
    return await sync_to_async(souvenez)(user, when, ratelimit, check_duplicate)


def count_active_users(
    start: datetime | None = None,
    end: datetime | None = None,
    qs: SouvenirQuerySet | None = None,
) -> int:
    """How many distinct users were active at start <= when < end.

    Either bound may be None; naive ones are in the site's time zone. Who is deleted since counts
    too, and so do souvenirs that are pruned. `qs` is a queryset of Souvenir to count in place of
    this history. Raises TypeError for a bound that is no datetime.
    """
    return counting.count_users(start, end, qs)


def active_users_between(
    start: datetime | None = None, end: datetime | None = None
) -> QuerySet[Any]:
    """The users who were active at start <= when < end, as a queryset of the user model.

    Bounds are as those of `count_active_users`, which may count more: those who are deleted. Who
    they are is decided when this is called.
    """
    return counting.users_between(start, end)


def last_seen(user: Any) -> datetime | None:
    """When `user` (a user, or the primary key of one) was last active, None for never.

    The time is up to SOUVENIRS_LAST_SEEN_SECONDS behind what the user really did last. It is UTC,
    or naive and in the site's time zone where USE_TZ is False.
    """
    seen = conf.last_seen_store.get(clean_pk(user))
    return None if seen is None else timestamps.to_datetime(seen)


def with_last_seen(users: QuerySet[Any], name: str = "last_seen") -> QuerySet[Any]:
    """A queryset of users who each have the attribute `name`: their last-seen time, or None.

    It is joined, so a list costs no query per user; filter and order by it as by a column. Times
    are as those of `last_seen`. Raises ValueError if the user model has a field called `name`, or
    a router keeps souvenirs in another database than `users`.
    """
    if not USER_FIELD.db_constraint:
        raise ValueError(
            f"souvenirs are in the database {router.db_for_write(LastSeen)!r}, and users are not:"
            " they cannot be joined; use last_seen(user) for each"
        )
    seen = ExpressionWrapper(F("souvenirs_last_seen__seen"), output_field=SecondsField())
    annotated: QuerySet[Any] = users.annotate(**{name: seen})
    return annotated


def tell_hits() -> None:
    """Sends the signal for the visits that process memory has answered since the last time."""
    if hits := throttle.take_hits():
        souvenir_recorded.send_robust(
            sender=Souvenir, result=RATE_LIMITED, user_pk=None, count=hits
        )


def is_handled(
    user: Any, when: datetime | None, ratelimit: bool | float, check_duplicate: bool
) -> bool:
    return (
        when is None
        and ratelimit is True
        and not check_duplicate
        and throttle.is_handled(getattr(user, "pk", user), time.time())
    )


def clean_pk(user: Any) -> Any:
    """The primary key of a user, or a key, as the user model has it. ValueError for others."""
    user_pk = getattr(user, "pk", user)
    field = get_user_model()._meta.pk
    assert field is not None
    try:
        user_pk = field.to_python(user_pk)
    except ValidationError:
        raise ValueError(f"{user!r} is no user and no primary key of one") from None
    if user_pk is None:
        raise ValueError(f"{user!r} has no primary key: only saved users can be remembered")
    return user_pk


class Visit:
    """One call of souvenez that process memory could not answer."""

    def __init__(self, user: Any, when: datetime | None, ratelimit: bool | float) -> None:
        self.key = getattr(user, "pk", user)  # what process memory is asked for
        self.user_pk = clean_pk(user)
        # Whole microseconds, as databases keep: a row must not be rounded into the next slot
        self.now = time.time_ns() // 1_000 / 1_000_000
        self.live = when is None
        if when is None:
            self.t, self.when = self.now, timestamps.to_datetime(self.now)
        else:
            self.t, self.when = timestamps.to_seconds(when), timestamps.to_site(when)
        self.default_limit = ratelimit is True
        self.limit = conf.ratelimit_seconds if ratelimit is True else float(ratelimit)
        if not 0 <= self.limit < math.inf:
            raise ValueError(f"ratelimit is {ratelimit!r}: give True, False or seconds from 0 up")
        self.minute = slot_containing(self.t, conf.last_seen_seconds, conf.zone)
        self.slot = slot_containing(self.t, self.limit, conf.zone) if self.limit else None
        self.has_row = False
        self.bucket_end = bucket_containing(self.t) + BUCKET
        self.is_marked = False
        self.using = router.db_for_write(Souvenir)
        connection = connections[self.using]
        self.is_nested = connection.in_atomic_block
        # Where autocommit is off nobody tells when there was a commit: nothing is remembered then
        self.is_manual = not self.is_nested and not connection.get_autocommit()

    def record(self, check_duplicate: bool) -> str:
        """Writes what is to be written. Raises as souvenez does."""
        try:
            return self.write_unless_limited(check_duplicate)
        except IntegrityError:
            self.require_user()
            raise

    def write_unless_limited(self, check_duplicate: bool) -> str:
        claim = self.claim()
        result = RATE_LIMITED
        is_written = claim is None or claim.granted
        if is_written:
            result = self.write(claim, check_duplicate)
        follow = partial(self.follow, is_written, claim.until if claim else 0)
        if not self.is_nested:
            follow()
        else:
            # Last-seen waits for the commit of a transaction that is not ours: that may last, and
            # must not hold the user's row locked meanwhile.
            self.on_commit(follow)
        return result

    def claim(self) -> Claim | None:
        """The claim on the slot; None where there is no limit."""
        if self.slot is None:
            return None
        if self.default_limit:
            known = throttle.handled.get(self.user_pk)
            if known is not None and known.written_start <= self.t < known.written_end:
                self.has_row = True  # last-seen was written with the slot's souvenir
                return Claim("", False, self.slot.end)
        return throttle.claim(self.user_pk, self.slot, self.limit)

    def write(self, claim: Claim | None, check_duplicate: bool) -> str:
        """Writes the row, and last-seen in the same transaction where that is ours."""
        try:
            with transaction.atomic(using=self.using):
                if self.is_nested:
                    # A foreign key is checked at the end of a transaction: in one that is not
                    # ours, a key of nobody would make somebody else's commit fail.
                    self.require_user()
                else:
                    # Last-seen first: deleting a user locks their rows in this order too
                    self.require_user_apart()
                    LastSeen.objects.touch(self.sighting())
                result = ADDED
                if check_duplicate and self.is_duplicate():
                    result = DUPLICATED
                else:
                    row = Souvenir(user_id=self.user_pk, when=self.when)
                    row.save(force_insert=True, using=self.using, follow_up=False)
                    # When somebody else's transaction will be over, nobody knows
                    if self.is_nested or self.is_manual or time.time() >= self.bucket_end:
                        self.mark_stale()
                        self.is_marked = True
                if claim is not None and self.slot is not None and not self.is_manual:
                    self.on_commit(partial(throttle.confirm, claim, self.slot))
        except BaseException:
            if claim is not None:
                throttle.release(claim)
            raise
        is_late = time.time() > self.bucket_end + GRACE_SECONDS / 2
        if result == ADDED and is_late and not self.is_marked:  # the roller may have been here
            self.mark_stale()
        return result

    def mark_stale(self) -> None:
        StaleMark.objects.using(self.using).mark([self.when])

    def on_commit(self, do: Callable[[], None]) -> None:
        def follow_up() -> None:  # a function: Django logs its name if it fails, a partial has none
            do()

        transaction.on_commit(follow_up, using=self.using, robust=True)

    def follow(self, is_written: bool, written_until: float) -> None:
        """What is left to do once the transaction has committed."""
        store, sighting = conf.last_seen_store, self.sighting()
        if self.is_nested or not is_written:
            self.require_user_apart()
        if not is_written:
            if self.limit > conf.ratelimit_seconds > 0:  # the table has each slot of the setting
                slot = slot_containing(self.t, conf.ratelimit_seconds, conf.zone)
                LastSeen.objects.touch(replace(sighting, slot_start=int(slot.start)))
            store.touch(sighting)
        else:
            if self.is_nested:
                LastSeen.objects.touch(sighting)
            if sighting.seen is not None:
                store.follow({self.user_pk: sighting.seen}, sighting.latest)
        self.remember(written_until)

    def sighting(self) -> Sighting:
        latest = math.floor(self.now) + conf.last_seen_seconds
        seen = math.floor(self.t)
        return Sighting(
            user_pk=self.user_pk,
            seen=seen if seen <= latest else None,
            slot_start=int(self.minute.start),
            latest=latest if self.live else None,
            has_row=self.has_row,
        )

    def remember(self, written_until: float) -> None:
        """Fills process memory. Only live visits do: memory is about the present."""
        if self.is_manual or not (self.live and self.default_limit and self.slot is not None):
            return
        written = written_until >= self.slot.end
        handled = shared(
            max(self.minute.start, self.slot.start),
            min(self.minute.end, self.slot.end, written_until),
            self.slot.start,
            self.slot.end if written else self.slot.start,
        )
        for key in {self.user_pk, self.key}:
            throttle.handled[key] = handled

    def is_duplicate(self) -> bool:
        rows = Souvenir.objects.using(self.using)
        found: bool = rows.filter(user_id=self.user_pk, when=self.when).exists()
        return found

    def require_user_apart(self) -> None:
        """Where users are in another database, which so does not tell."""
        if not USER_FIELD.db_constraint:
            self.require_user()

    def require_user(self) -> None:
        model = get_user_model()
        users = model._base_manager.using(router.db_for_write(model))
        if not users.filter(pk=self.user_pk).exists():
            raise model.DoesNotExist(f"There is no user with the primary key {self.user_pk!r}")


@lru_cache(maxsize=8)
def shared(*args: float) -> Handled:
    """A Handled, the same object for all users of a minute: each costs a dictionary's item only."""
    return Handled(*args)
