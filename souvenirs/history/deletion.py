"""When a user is deleted: their rows and last-seen time go, the numbers of the past stay."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import models, router, transaction
from django.db.models import F

from souvenirs import databases, scopes, timestamps
from souvenirs.history import marks
from souvenirs.lastseen import get_store, table
from souvenirs.lastseen.base import LastSeenUpdate
from souvenirs.models import LastSeen, Souvenir, Watermark
from souvenirs.periods import bucket_containing


def keep_history(user_pk: Any, using: str) -> None:
    """Keep the buckets that a user was active in, where they are not rolled up yet, as marks.

    Nothing is locked but the user's souvenirs, so people who delete users do not wait for each
    other. Marks may say again what a Rollup already knows.
    """
    rows = Souvenir.objects.using(using).filter(user_id=user_pk)
    if databases.must_write_first(using):
        Watermark.objects.using(using).update(rolled_up=F("rolled_up"))
    if databases.locks_beyond_keys(using):
        # InnoDB would lock them from the index on users, when they are deleted. Pruning locks the
        # index after the row: one of the two would fail for a deadlock. So the row comes first.
        databases.lock_rows(Souvenir, list(rows.order_by("pk").values_list("pk", flat=True)), using)
    watermark = Watermark.objects.using(using).first()
    if watermark is not None:
        marked = marks.oldest_mark(using)
        start = watermark.rolled_up if marked is None else min(marked, watermark.rolled_up)
        rows = rows.filter(when__gte=timestamps.to_datetime(start))
    times = rows.order_by().values_list("when", flat=True)
    buckets = {bucket_containing(timestamps.to_seconds(when)) for when in times.iterator()}
    if not buckets:
        return
    last_seen = LastSeen.objects.using(using).filter(user_id=user_pk)
    ordinal = last_seen.values_list("pk", flat=True).first()
    if ordinal is None:  # the souvenirs came past us; Django may not look for such a row again
        table.insert(LastSeenUpdate(user_pk=user_pk, seen=None), using)
        ordinal = last_seen.get().pk
        last_seen.delete()
    marks.mark_deleted(ordinal, buckets, using)


def keep_deleted_user(instance: models.Model, using: str, **kwargs: Any) -> None:
    """pre_delete of a user, in the transaction of the deletion, where our tables are too."""
    if not router.allow_migrate_model(using, Souvenir):
        return
    keep_history(instance.pk, using)

    def forget(user_pk: Any = instance.pk) -> None:
        get_store().remove(user_pk)

    transaction.on_commit(forget, using=using, robust=True)


def forget_deleted_user(instance: models.Model, using: str, **kwargs: Any) -> None:
    """post_delete of a user, where our tables are in another database: history, and the cascade.

    It waits for the commit there; if it fails, it raises.
    """
    if router.allow_migrate_model(using, Souvenir) or not scopes.has_table(Souvenir):
        return
    ours = router.db_for_write(Souvenir)

    def forget(user_pk: Any = instance.pk) -> None:
        with transaction.atomic(using=ours):
            keep_history(user_pk, ours)
            for model in (LastSeen, Souvenir):
                model._base_manager.using(ours).filter(user_id=user_pk).delete()
        get_store().remove(user_pk)

    transaction.on_commit(forget, using=using)


def connect() -> None:
    """Listen for deleted users."""
    user_model = get_user_model()._meta.concrete_model
    for model in apps.get_models():
        if model._meta.concrete_model is user_model:  # signals of a proxy are sent by the proxy
            models.signals.pre_delete.connect(
                keep_deleted_user, sender=model, dispatch_uid="souvenirs.deletion"
            )
            models.signals.post_delete.connect(
                forget_deleted_user, sender=model, dispatch_uid="souvenirs.deletion"
            )
