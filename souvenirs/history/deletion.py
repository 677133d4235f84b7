"""When users are deleted: their rows and last-seen times go, the numbers of the past stay."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from itertools import islice
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import models, router, transaction
from django.db.models import F, QuerySet

from souvenirs import databases, scopes, timestamps
from souvenirs.fields import NOTED
from souvenirs.history import marks
from souvenirs.lastseen import get_store, table
from souvenirs.lastseen.base import LastSeenUpdate
from souvenirs.models import LastSeen, Souvenir, Watermark
from souvenirs.periods import bucket_containing

BATCH_SIZE = 500  # users
LOCK_SIZE = 50_000  # rows
LEFT = "_souvenirs_users_left"  # attribute of an instance, or a QuerySet


def keep_history(rows: QuerySet[Souvenir], using: str) -> None:
    """Keep the buckets that users were active in, where they are not rolled up yet, as marks.

    rows: all souvenirs of those users.

    Nothing is locked but these, so people who delete users do not wait for each other. Marks may
    say again what a Rollup already knows.
    """
    if databases.must_write_first(using):
        Watermark.objects.using(using).update(rolled_up=F("rolled_up"))
    if databases.locks_beyond_keys(using):
        # InnoDB would lock them from the index on users, when they are deleted. Pruning locks the
        # index after the row: one of the two would fail for a deadlock. So the row comes first.
        keys = rows.order_by("pk").values_list("pk", flat=True).iterator()
        while batch := list(islice(keys, LOCK_SIZE)):
            databases.lock_rows(Souvenir, batch, using)
    watermark = Watermark.objects.using(using).first()
    if watermark is not None:
        marked = marks.oldest_mark(using)
        start = watermark.rolled_up if marked is None else min(marked, watermark.rolled_up)
        rows = rows.filter(when__gte=timestamps.to_datetime(start))
    buckets: dict[Any, set[int]] = defaultdict(set)
    for user_pk, when in rows.order_by().values_list("user_id", "when").iterator():
        buckets[user_pk].add(bucket_containing(timestamps.to_seconds(when)))
    users = iter(buckets)
    while batch := list(islice(users, BATCH_SIZE)):
        ordinals = _ordinals(batch, using)
        marks.mark_deleted(
            ((bucket, ordinals[user_pk]) for user_pk in batch for bucket in buckets[user_pk]), using
        )


def _ordinals(user_pks: list[Any], using: str) -> dict[Any, int]:
    last_seen = LastSeen.objects.using(using)
    found = dict(last_seen.filter(user_id__in=user_pks).values_list("user_id", "pk"))
    for user_pk in user_pks:
        # The souvenirs came past us; Django may not look for such a row again
        if user_pk not in found:
            table.insert(LastSeenUpdate(user_pk=user_pk, seen=None), using)
            row = last_seen.filter(user_id=user_pk)
            found[user_pk] = row.get().pk
            row.delete()
    return found


def keep_deleted_users(
    instance: models.Model, using: str, origin: Any = None, **kwargs: Any
) -> None:
    """pre_delete of a user, in the transaction of the deletion, where our tables are too.

    With the first of the users that are deleted together, the histories of all of them are kept:
    `fields.cascade` has noted whose they are, on the `origin` of the deletion.
    """
    if not router.allow_migrate_model(using, Souvenir):
        if origin is not None:
            vars(origin)[LEFT] = []
        return
    noted = None if origin is None else vars(origin).get(NOTED)
    if noted is None:
        keep_history(Souvenir.objects.using(using).filter(user_id=instance.pk), using)
    while noted:
        rows = noted.pop()
        if rows.model is Souvenir:
            keep_history(rows, using)

    def forget(user_pk: Any = instance.pk) -> None:
        get_store().remove(user_pk)

    transaction.on_commit(forget, using=using, robust=True)


def forget_deleted_user(
    instance: models.Model, using: str, origin: Any = None, **kwargs: Any
) -> None:
    """post_delete of a user, where our tables are in another database: history, and the cascade.

    It waits for the commit there, and does all users of a deletion together; if it fails, it
    raises.
    """
    if router.allow_migrate_model(using, Souvenir) or not scopes.has_table(Souvenir):
        return
    left: list[Any] = [] if origin is None else vars(origin)[LEFT]
    if not left:
        transaction.on_commit(partial(_forget, left, router.db_for_write(Souvenir)), using=using)
    left.append(instance.pk)


def _forget(user_pks: list[Any], using: str) -> None:
    for start in range(0, len(user_pks), BATCH_SIZE):
        batch = user_pks[start : start + BATCH_SIZE]
        with transaction.atomic(using=using):
            keep_history(Souvenir.objects.using(using).filter(user_id__in=batch), using)
            for model in (LastSeen, Souvenir):
                model._base_manager.using(using).filter(user_id__in=batch).delete()
        for user_pk in batch:
            get_store().remove(user_pk)


def connect() -> None:
    """Listen for deleted users."""
    user_model = get_user_model()._meta.concrete_model
    for model in apps.get_models():
        if model._meta.concrete_model is user_model:  # signals of a proxy are sent by the proxy
            models.signals.pre_delete.connect(
                keep_deleted_users, sender=model, dispatch_uid="souvenirs.deletion"
            )
            models.signals.post_delete.connect(
                forget_deleted_user, sender=model, dispatch_uid="souvenirs.deletion"
            )
