from __future__ import annotations

import math
import time
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import connections, models, router, transaction
from django.db.models import Case, F, Value, When
from django.db.models.functions import Coalesce, Greatest
from django.utils import timezone

from souvenirs import clock
from souvenirs.conf import conf
from souvenirs.fields import UserForeignKey, UserOneToOneField

if TYPE_CHECKING:
    from typing_extensions import Self


NEVER = 2**63 - 1  # seconds: the largest that a BigIntegerField holds


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
        """As Django's; and the users' last-seen times follow."""
        self._for_write = True
        with transaction.atomic(using=self.db):
            rows = super().bulk_create(objs, *args, **kwargs)
            LastSeen.objects.using(self.db).catch_up(rows)
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

    def save(self, *args: Any, touch: bool = True, **kwargs: Any) -> None:
        """As Django's; and the user's last-seen time follows (`touch` False: the caller's care)."""
        using = kwargs.get("using") or router.db_for_write(Souvenir, instance=self)
        with transaction.atomic(using=using, savepoint=False):
            super().save(*args, **kwargs)
            if touch:
                LastSeen.objects.using(using).catch_up([self])


class LastSeenQuerySet(models.QuerySet["LastSeen"]):
    def catch_up(self, souvenirs: Iterable[Souvenir]) -> None:
        """Moves the last-seen times of these souvenirs' users forward to them, in batches; times
        that are still to come make the row only."""
        latest = time.time() + conf.last_seen_seconds
        newest: dict[Any, int] = {}
        for souvenir in souvenirs:
            seen = math.floor(clock.to_seconds(souvenir.when))
            known = newest.setdefault(souvenir.user_id, -1)
            if known < seen <= latest:
                newest[souvenir.user_id] = seen
        users = sorted(newest, key=str)  # in one order, so that two of these cannot deadlock
        for batch in (users[at : at + 200] for at in range(0, len(users), 200)):
            rows = self.filter(user_id__in=batch)
            existing = set(rows.values_list("user_id", flat=True))
            self.bulk_create(
                (LastSeen(user_id=user_pk) for user_pk in batch if user_pk not in existing),
                ignore_conflicts=True,
            )
            times = [When(user_id=u, then=Value(newest[u])) for u in batch if newest[u] >= 0]
            if times:
                rows.filter(user_id__in=[u for u in batch if newest[u] >= 0]).update(
                    seen=Greatest(Coalesce(F("seen"), Value(0)), Case(*times))
                )

    def touch(
        self,
        user_pk: Any,
        seen: int | None,
        *,
        slot_start: int,
        latest: int | None,
        has_row: bool = False,
    ) -> None:
        """Moves a user's last-seen time forward to `seen`, and makes the row if there is none.

        Nothing is written if the user was already seen in the slot that began at `slot_start`, or
        later; but a time after `latest`, if given, is replaced: it can only come from a clock that
        was wrong. `seen` None makes the row only. All in unix seconds. `has_row` spares a look
        whether there is one: True if the caller knows that there is (or was, before the user was
        deleted: then nothing is written).

        UPDATE comes first, and INSERT only where there is no row: an upsert would burn an id on
        each visit (PostgreSQL takes the sequence's next value before it sees the conflict), and
        ids have to stay dense.
        """
        using = self._db or router.db_for_write(LastSeen)  # type: ignore[attr-defined]
        if seen is not None and move_forward(user_pk, seen, slot_start, latest, using, has_row):
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
        if seen is not None:
            move_forward(user_pk, seen, slot_start, latest, using, has_row=True)


def move_forward(
    user_pk: Any, seen: int, slot_start: int, latest: int | None, using: str, has_row: bool
) -> bool:
    """The UPDATE of `LastSeenQuerySet.touch`. False if the user has no row.

    In SQL of our own: the first request of each user, process and minute waits for it, and the ORM
    takes longer to build these statements than the database to answer them.
    """
    connection = connections[using]
    user: Any = LastSeen._meta.get_field("user")
    names: tuple[str, ...] = (LastSeen._meta.db_table, user.column, "seen")
    table, key, at = (connection.ops.quote_name(name) for name in names)
    is_behind = f"({at} IS NULL OR {at} < %s OR {at} > %s)"
    values = [user.get_db_prep_save(user_pk, connection), slot_start, NEVER]
    if latest is not None:
        values[2] = latest
    with transaction.mark_for_rollback_on_error(using), connection.cursor() as cursor:
        update = f"UPDATE {table} SET {at} = %s WHERE {key} = %s AND {is_behind}"  # noqa: S608
        cursor.execute(update, [seen, *values])
        if cursor.rowcount or has_row:
            return True
        select = f"SELECT 1 FROM {table} WHERE {key} = %s AND NOT {is_behind}"  # noqa: S608
        cursor.execute(select, values)
        return cursor.fetchone() is not None


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


def forget_deleted_user(instance: models.Model, using: str, **kwargs: Any) -> None:
    """post_delete of a user: the cascade, where the user's database has not our tables.

    It waits for the commit there; whoever deletes is told if it fails.
    """

    def forget(user_pk: Any = instance.pk) -> None:
        for model in (LastSeen, Souvenir):
            ours = router.db_for_write(model)
            model._base_manager.using(ours).filter(user_id=user_pk).delete()

    transaction.on_commit(forget, using=using)


def connect() -> None:
    """Starts listening for deleted users, if our tables are in another database than they."""
    if router.allow_migrate_model(router.db_for_write(get_user_model()), Souvenir):
        return
    user_model = get_user_model()._meta.concrete_model
    for model in apps.get_models():
        if model._meta.concrete_model is user_model:  # signals of a proxy are sent by the proxy
            models.signals.post_delete.connect(
                forget_deleted_user, sender=model, dispatch_uid="souvenirs.models"
            )
