from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.db import models, router, transaction
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from souvenirs import timestamps
from souvenirs.fields import UserForeignKey, UserOneToOneField
from souvenirs.signals import souvenirs_written

if TYPE_CHECKING:
    from typing_extensions import Self


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
        """Return the number of distinct users of these souvenirs."""
        count: int = self.order_by().values("user").distinct().count()
        return count

    def bulk_create(self, objs: Iterable[Souvenir], *args: Any, **kwargs: Any) -> list[Souvenir]:
        """Like Django's, but also update last-seen times and the history."""
        self._for_write = True
        objs = list(objs)
        for row in objs:
            timestamps.require_year(row.when)
        with transaction.atomic(using=self.db):
            rows = super().bulk_create(objs, *args, **kwargs)
            souvenirs_written.send(sender=Souvenir, souvenirs=rows, using=self.db)
        return rows


class Souvenir(models.Model):
    """A user was active at `when`.

    There is usually at most one row per user and rate-limit slot. A second one may be written after
    a crash or without a shared cache, and does not change any count.
    """

    user = UserForeignKey()
    when = models.DateTimeField(default=timezone.now)

    objects = SouvenirQuerySet.as_manager()

    class Meta:
        ordering = ["-when"]
        indexes = [models.Index(fields=["when", "user"], name="souvenirs_when_user")]

    def __str__(self) -> str:
        return f"user={self.user_id} when={self.when}"

    def save(self, *args: Any, announce: bool = True, **kwargs: Any) -> None:
        """Like Django's, but also update last-seen times and the history if `announce` is True."""
        timestamps.require_year(self.when)
        using = kwargs.get("using") or router.db_for_write(Souvenir, instance=self)
        with transaction.atomic(using=using, savepoint=False):
            super().save(*args, **kwargs)
            if announce:
                souvenirs_written.send(sender=Souvenir, souvenirs=[self], using=using)


class LastSeen(models.Model):
    """When a user was last active, at a resolution of SOUVENIRS_LAST_SEEN_SECONDS. There is a row
    for every user with a souvenir."""

    # The user's ordinal in 32-bit bitmaps, so ids must not be wasted (see lastseen.table).
    id = models.AutoField(primary_key=True)
    user = UserOneToOneField(related_name="souvenirs_last_seen")
    # NULL: the user has souvenirs, but only with times that were in the future.
    seen = models.DateTimeField(null=True, db_index=True)

    class Meta:
        verbose_name = _("last-seen time")
        verbose_name_plural = _("last seen")

    def __str__(self) -> str:
        return f"user={self.user_id} seen={self.seen}"


class Rollup(models.Model):
    """The users who were active in a closed interval of the past, [start, end) in Unix seconds.

    It is complete unless there is a DirtyBucket or DeletedMember for the interval, and never has a
    member who was not active then. Pruning souvenirs or deleting a user does not change it. There
    is no Rollup for a bucket or a day in which nobody was active.
    """

    BUCKET = 0  # a quarter of an hour
    DAY = 1  # in the site's time zone when it was rolled up
    MONTH = 2  # likewise

    kind = models.PositiveSmallIntegerField(choices={BUCKET: "bucket", DAY: "day", MONTH: "month"})
    start = models.BigIntegerField()
    end = models.BigIntegerField()
    members = models.BinaryField()  # the ids of the users' LastSeen, a roaring bitmap
    active_users = models.PositiveIntegerField()  # the number of members
    last_member = models.PositiveIntegerField(db_index=True)  # the largest of the ids; 0 for none

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["kind", "start", "end"], name="souvenirs_rollup_unique")
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} [{self.start}, {self.end}) users={self.active_users}"


class Usage(Rollup):
    """The model of the admin's Usage page, for the permission souvenirs.view_usage."""

    class Meta:
        proxy = True
        default_permissions = ("view",)
        verbose_name = _("usage")
        verbose_name_plural = _("usage")


class DirtyBucket(models.Model):
    """A bucket for which Rollups may be incomplete: souvenirs were written after it had ended."""

    bucket = models.BigIntegerField(db_index=True)  # its start, Unix seconds

    def __str__(self) -> str:
        return f"bucket={self.bucket}"


class DeletedMember(models.Model):
    """A tombstone: a deleted user was active in a bucket, and Rollups may not include them yet."""

    bucket = models.BigIntegerField(db_index=True)  # its start, Unix seconds
    member = models.PositiveIntegerField(db_index=True)  # the id of the user's former LastSeen

    def __str__(self) -> str:
        return f"bucket={self.bucket} member={self.member}"


class Watermark(models.Model):
    """How far souvenirs are rolled up and pruned, in Unix seconds. Its single row is the lock that
    transactions hold while they change Rollups."""

    rolled_up = models.BigIntegerField()  # earlier buckets are rolled up, except dirty ones
    pruned = models.BigIntegerField()  # earlier souvenirs may have been deleted
    # Increased by each transaction that holds the lock and changes the history of past days
    revision = models.BigIntegerField(default=0)
    deletions = models.BigIntegerField(default=0)  # of users, so far; see UserDeletion

    def __str__(self) -> str:
        return f"rolled_up={self.rolled_up} pruned={self.pruned}"


class UserDeletion(models.Model):
    """Users were deleted in a transaction that Watermark.deletions does not count yet. (If each
    transaction updated that one row, concurrent deletions would wait for each other.)"""

    def __str__(self) -> str:
        return f"deletion {self.pk}"


class AccountTotals(models.Model):
    """The accounts of the site at the end of a day, as they were then."""

    date = models.DateField(unique=True)  # in the site's time zone
    end = models.BigIntegerField(db_index=True)  # Unix seconds: the first instant after the day
    registered = models.PositiveIntegerField()
    activated = models.PositiveIntegerField()  # those with is_active

    class Meta:
        verbose_name_plural = "account totals"

    def __str__(self) -> str:
        return f"{self.date}: registered={self.registered} activated={self.activated}"
