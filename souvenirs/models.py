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
        """How many distinct users these souvenirs are of."""
        count: int = self.order_by().values("user").distinct().count()
        return count

    def bulk_create(self, objs: Iterable[Souvenir], *args: Any, **kwargs: Any) -> list[Souvenir]:
        """As Django's; and last-seen times and the history follow."""
        self._for_write = True
        objs = list(objs)
        for row in objs:
            timestamps.require_year(row.when)
        with transaction.atomic(using=self.db):
            rows = super().bulk_create(objs, *args, **kwargs)
            souvenirs_written.send(sender=Souvenir, souvenirs=rows, using=self.db)
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

    def save(self, *args: Any, announce: bool = True, **kwargs: Any) -> None:
        """As Django's; and last-seen times and the history follow, unless `announce` is False."""
        timestamps.require_year(self.when)
        using = kwargs.get("using") or router.db_for_write(Souvenir, instance=self)
        with transaction.atomic(using=using, savepoint=False):
            super().save(*args, **kwargs)
            if announce:
                souvenirs_written.send(sender=Souvenir, souvenirs=[self], using=using)


class LastSeen(models.Model):
    """When a user was last active, to SOUVENIRS_LAST_SEEN_SECONDS. There is a row for every user
    who has a souvenir."""

    # The user's ordinal, meant for 32-bit bitmaps; so it is never wasted (see lastseen.table).
    id = models.AutoField(primary_key=True)
    user = UserOneToOneField(related_name="souvenirs_last_seen")
    # NULL: the user has souvenirs, but only of times that were still to come.
    seen = models.DateTimeField(null=True, db_index=True)

    class Meta:
        verbose_name = _("last-seen time")
        verbose_name_plural = _("last seen")

    def __str__(self) -> str:
        return f"user={self.user_id} seen={self.seen}"


class Rollup(models.Model):
    """The users who were active in a closed interval of the past, [start, end) in unix seconds.

    It holds all of them unless a DirtyBucket or DeletedMember says otherwise, and never anybody who
    was not active then. It stays when their souvenirs are pruned, and when a user is deleted. A
    bucket in which nobody was active has no Rollup, nor has such a day.
    """

    BUCKET = 0  # a quarter of an hour
    DAY = 1  # of the site's time zone when it was rolled up, as is
    MONTH = 2

    kind = models.PositiveSmallIntegerField(choices={BUCKET: "bucket", DAY: "day", MONTH: "month"})
    start = models.BigIntegerField()
    end = models.BigIntegerField()
    members = models.BinaryField()  # the ids of the users' LastSeen, a roaring bitmap
    active_users = models.PositiveIntegerField()  # how many they are
    last_member = models.PositiveIntegerField(db_index=True)  # the largest of the ids; 0 for none

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["kind", "start", "end"], name="souvenirs_rollup_unique")
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} [{self.start}, {self.end}) users={self.active_users}"


class Usage(Rollup):
    """What the admin's Usage page is about: it has the permission souvenirs.view_usage."""

    class Meta:
        proxy = True
        default_permissions = ("view",)
        verbose_name = _("usage")
        verbose_name_plural = _("usage")


class DirtyBucket(models.Model):
    """A bucket of which Rollups may not know all souvenirs yet: some came when it had ended."""

    bucket = models.BigIntegerField(db_index=True)  # its start, unix seconds

    def __str__(self) -> str:
        return f"bucket={self.bucket}"


class DeletedMember(models.Model):
    """A user who is deleted was active in a bucket, of which Rollups may not know it yet."""

    bucket = models.BigIntegerField(db_index=True)  # its start, unix seconds
    member = models.PositiveIntegerField(db_index=True)  # the id that their LastSeen had

    def __str__(self) -> str:
        return f"bucket={self.bucket} member={self.member}"


class Watermark(models.Model):
    """How far the history has come, in unix seconds. Its one row is the lock of whoever changes
    Rollups."""

    rolled_up = models.BigIntegerField()  # all buckets before are rolled up, except marked ones
    pruned = models.BigIntegerField()  # souvenirs before may be gone
    # Raised by each transaction that holds the lock and changes what is known of days that are over
    revision = models.BigIntegerField(default=0)
    deletions = models.BigIntegerField(default=0)  # of users, so far; see UserDeletion

    def __str__(self) -> str:
        return f"rolled_up={self.rolled_up} pruned={self.pruned}"


class UserDeletion(models.Model):
    """Users were deleted in a transaction that Watermark.deletions does not count yet: that one row
    would make people who delete users wait for each other."""

    def __str__(self) -> str:
        return f"deletion {self.pk}"


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
