from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import connections, models, router, transaction
from django.utils import timezone

from souvenirs import timestamps
from souvenirs.conf import conf
from souvenirs.fields import UserForeignKey, UserOneToOneField
from souvenirs.periods import bucket_containing

if TYPE_CHECKING:
    from typing_extensions import Self


NEVER = 2**63 - 1  # seconds: the largest that a BigIntegerField holds

# A bucket that has ended so long ago is rolled up. Who takes over half as long to write a souvenir
# of it leaves a mark; so clocks of a site's machines may differ by the other half.
GRACE_SECONDS = 120


class SouvenirQuerySet(models.QuerySet["Souvenir"]):
    def between(self, start: datetime | None = None, end: datetime | None = None) -> Self:
        """Souvenirs with start <= when < end; either bound may be None."""
        rows = self
        if start is not None:
            rows = rows.filter(when__gte=start)
        if end is not None:
            rows = rows.filter(when__lt=end)
        return rows

    def count_users(self) -> int:
        """How many distinct users these souvenirs are of."""
        count: int = self.order_by().values("user").distinct().count()
        return count

    def bulk_create(self, objs: Iterable[Souvenir], *args: Any, **kwargs: Any) -> list[Souvenir]:
        """As Django's; and the users' last-seen times and the history follow."""
        self._for_write = True
        with transaction.atomic(using=self.db):
            rows = super().bulk_create(objs, *args, **kwargs)
            LastSeen.objects.using(self.db).catch_up(rows)
            StaleMark.objects.using(self.db).mark(row.when for row in rows)
        return rows


class Souvenir(models.Model):
    """A user was active at `when`. At most one row per user and rate-limit slot, as a rule: a
    second one may be written after a crash or without a shared cache, and changes no count."""

    user = UserForeignKey()
    when = models.DateTimeField(default=timezone.now)

    objects = SouvenirQuerySet.as_manager()

    class Meta:
        ordering = ["-when"]
        indexes = [models.Index(fields=["when", "user"], name="souvenirs_when_user")]

    def __str__(self) -> str:
        return f"user={self.user_id} when={self.when}"

    def save(self, *args: Any, follow_up: bool = True, **kwargs: Any) -> None:
        """As Django's; and the user's last-seen time and the history follow (`follow_up` False:
        they are the caller's care)."""
        using = kwargs.get("using") or router.db_for_write(Souvenir, instance=self)
        with transaction.atomic(using=using, savepoint=False):
            super().save(*args, **kwargs)
            if follow_up:
                LastSeen.objects.using(using).catch_up([self])
                StaleMark.objects.using(using).mark([self.when])


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A user was seen, which moves their last-seen time forward to `seen`.

    Nothing is moved if the user was already seen in the slot that began at `slot_start`, or later;
    but a time after `latest`, if given, is replaced: it can only come from a clock that was wrong.
    `seen` None: at a time that is still to come. All in unix seconds. `has_row` spares a look
    whether LastSeen has a row: True if the caller knows that there is one (or was, before the user
    was deleted).
    """

    user_pk: Any
    seen: int | None
    slot_start: int = 0
    latest: int | None = None
    has_row: bool = False


class LastSeenQuerySet(models.QuerySet["LastSeen"]):
    def catch_up(self, souvenirs: Iterable[Souvenir]) -> None:
        """Moves the last-seen times of these souvenirs' users forward to them, in batches; times
        that are still to come make the row only. The last-seen store follows on commit."""
        latest = time.time() + conf.last_seen_seconds
        newest: dict[Any, int] = {}
        for souvenir in souvenirs:
            seen = math.floor(timestamps.to_seconds(souvenir.when))
            known = newest.setdefault(souvenir.user_id, -1)
            if known < seen <= latest:
                newest[souvenir.user_id] = seen
        users = sorted(newest, key=str)  # in one order, so that two of these cannot deadlock
        for batch in (users[at : at + 150] for at in range(0, len(users), 150)):
            existing = dict(self.filter(user_id__in=batch).values_list("user_id", "seen"))
            self.bulk_create(
                (LastSeen(user_id=user_pk) for user_pk in batch if user_pk not in existing),
                ignore_conflicts=True,
            )
            times = {user_pk: -1 if at is None else at for user_pk, at in existing.items()}
            behind = {u: newest[u] for u in batch if newest[u] > times.get(u, -1)}
            if behind:
                move_all_forward(behind, self.db)
        times = {user_pk: seen for user_pk, seen in newest.items() if seen >= 0}
        transaction.on_commit(lambda: conf.last_seen_store.follow(times), using=self.db)

    def touch(self, sighting: Sighting) -> None:
        """Moves a user's last-seen time forward, and makes the row if there is none. If `has_row`
        is wrong, because the user was deleted, nothing is written.

        UPDATE comes first, and INSERT only where there is no row: an upsert would burn an id on
        each visit (PostgreSQL takes the sequence's next value before it sees the conflict), and
        ids have to stay dense.
        """
        using = self._db or router.db_for_write(LastSeen)  # type: ignore[attr-defined]
        user_pk, seen = sighting.user_pk, sighting.seen
        if move_forward(sighting, using):
            return
        if seen is None and self.using(using).filter(user_id=user_pk).exists():
            return
        # Somebody else may make the row meanwhile, with an older time. On a conflict it has to be
        # locked for writing, which MySQL does in this form only: of two transactions that share a
        # lock, neither could go on to the update.
        targeted = connections[using].features.supports_update_conflicts_with_target
        self.using(using).bulk_create(
            [LastSeen(user_id=user_pk, seen=seen)],
            update_conflicts=True,
            update_fields=["user"],
            unique_fields=["user"] if targeted else None,
        )
        move_forward(replace(sighting, has_row=True), using)


def move_forward(sighting: Sighting, using: str) -> bool:
    """The UPDATE of `LastSeenQuerySet.touch`. False if there is nothing to move, or no row.

    In SQL of our own: the first request of each user, process and minute waits for it, and the ORM
    takes longer to build these statements than the database to answer them.
    """
    if sighting.seen is None:
        return False
    connection = connections[using]
    user: Any = LastSeen._meta.get_field("user")
    names: tuple[str, ...] = (LastSeen._meta.db_table, user.column, "seen")
    table, key, at = (connection.ops.quote_name(name) for name in names)
    is_behind = f"({at} IS NULL OR {at} < %s OR {at} > %s)"
    latest = NEVER if sighting.latest is None else sighting.latest
    values = [user.get_db_prep_save(sighting.user_pk, connection), sighting.slot_start, latest]
    with transaction.mark_for_rollback_on_error(using), connection.cursor() as cursor:
        update = f"UPDATE {table} SET {at} = %s WHERE {key} = %s AND {is_behind}"  # noqa: S608
        cursor.execute(update, [sighting.seen, *values])
        if cursor.rowcount or sighting.has_row:
            return True
        select = f"SELECT 1 FROM {table} WHERE {key} = %s AND NOT {is_behind}"  # noqa: S608
        cursor.execute(select, values)
        return cursor.fetchone() is not None


def move_all_forward(newest: Mapping[Any, int], using: str) -> None:
    """Moves the last-seen times of these users, who have rows, forward to those given: in SQL of
    our own, as `move_forward`."""
    connection = connections[using]
    user: Any = LastSeen._meta.get_field("user")
    names: tuple[str, ...] = (LastSeen._meta.db_table, user.column, "seen")
    table, key, at = (connection.ops.quote_name(name) for name in names)
    pairs = [(user.get_db_prep_save(u, connection), seen) for u, seen in newest.items()]
    case = f"CASE {key} {'WHEN %s THEN %s ' * len(pairs)}END"
    keys = ", ".join(["%s"] * len(pairs))
    values = [value for pair in pairs for value in pair]
    with transaction.mark_for_rollback_on_error(using), connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {table} SET {at} = {case} WHERE {key} IN ({keys})"  # noqa: S608
            f" AND ({at} IS NULL OR {at} < {case})",
            [*values, *(user_key for user_key, _ in pairs), *values],
        )


class LastSeen(models.Model):
    """When a user was last active, to SOUVENIRS_LAST_SEEN_SECONDS. There is a row for every user
    who has a souvenir."""

    # The user's ordinal, meant for 32-bit bitmaps; so it is never wasted (see `touch`).
    id = models.AutoField(primary_key=True)
    user = UserOneToOneField(related_name="souvenirs_last_seen")
    # Unix seconds: windows are arithmetic on it, exact in folds even where USE_TZ is False.
    # NULL: the user has souvenirs, but only of times that were still to come.
    seen = models.BigIntegerField(null=True, db_index=True)

    objects = LastSeenQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "last seen"

    def __str__(self) -> str:
        return f"user={self.user_id} seen={self.seen}"


class Rollup(models.Model):
    """The users who were active in a closed interval of the past, [start, end) in unix seconds.

    It holds all of them if no StaleMark says otherwise, and never anybody who was not active then.
    It stays when their souvenirs are pruned, and when a user is deleted. A bucket in which nobody
    was active has no Rollup, nor has such a day.
    """

    BUCKET = 0  # a quarter of an hour
    DAY = 1  # of the site's time zone when it was rolled up, as is
    MONTH = 2

    kind = models.PositiveSmallIntegerField(choices={BUCKET: "bucket", DAY: "day", MONTH: "month"})
    start = models.BigIntegerField()
    end = models.BigIntegerField()
    members = models.BinaryField()  # the ids of the users' LastSeen, a roaring bitmap
    active_users = models.PositiveIntegerField()  # how many they are

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["kind", "start", "end"], name="souvenirs_rollup_unique")
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} [{self.start}, {self.end}) users={self.active_users}"


class StaleMarkQuerySet(models.QuerySet["StaleMark"]):
    def mark(self, times: Iterable[datetime]) -> None:
        """Marks the buckets of these times."""
        buckets = {bucket_containing(timestamps.to_seconds(when)) for when in times}
        self.bulk_create((StaleMark(bucket=bucket) for bucket in sorted(buckets)), batch_size=5_000)


class StaleMark(models.Model):
    """Something that the Rollups of a bucket may not know yet: souvenirs that came when it had
    ended, or (`member`) the LastSeen id of a user who was active in it and is deleted since.

    Marks are only ever added, so writers never wait for each other; the roller takes them away in
    the transaction that honours them.
    """

    bucket = models.BigIntegerField(db_index=True)  # its start, unix seconds
    member = models.PositiveIntegerField(null=True)

    objects = StaleMarkQuerySet.as_manager()

    def __str__(self) -> str:
        return f"bucket={self.bucket} member={self.member}"


class Watermark(models.Model):
    """How far the history has come, in unix seconds. One row; who rolls up or prunes locks it."""

    rolled_up = models.BigIntegerField()  # all buckets before are rolled up, but for StaleMarks
    pruned = models.BigIntegerField()  # souvenirs before may be gone

    def __str__(self) -> str:
        return f"rolled_up={self.rolled_up} pruned={self.pruned}"


class AccountTotals(models.Model):
    """The accounts of the site at the end of a day, as they were then."""

    date = models.DateField(unique=True)  # of the site's time zone
    end = models.BigIntegerField(db_index=True)  # unix seconds: the first instant after the day
    registered = models.PositiveIntegerField()
    activated = models.PositiveIntegerField()  # those with is_active

    class Meta:
        verbose_name_plural = "account totals"

    def __str__(self) -> str:
        return f"{self.date}: registered={self.registered} activated={self.activated}"
