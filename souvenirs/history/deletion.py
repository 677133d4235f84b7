"""What becomes of a deleted user: their rows go, the numbers of the past stay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import connections, models, router, transaction
from django.db.models import F, Min

from souvenirs import timestamps
from souvenirs.conf import conf
from souvenirs.models import LastSeen, Sighting, Souvenir, StaleMark, Watermark
from souvenirs.periods import bucket_containing

# The souvenirs with these keys, for MySQL: given a list, it may read, and lock, the whole table
ONE_BY_ONE = (
    "JSON_TABLE(%s, '$[*]' COLUMNS (id BIGINT PATH '$')) k"
    " STRAIGHT_JOIN souvenirs_souvenir s ON s.id = k.id"
)


def has_json_table(using: str) -> bool:
    """Whether ONE_BY_ONE works: not with MariaDB before 10.6, where a deadlock is left possible."""
    connection: Any = connections[using]
    return not connection.mysql_is_mariadb or connection.mysql_version >= (10, 6)


def keep_history(user_pk: Any, using: str) -> None:
    """Keeps the buckets that a user was active in, where they are not rolled up yet, as marks.

    Nothing is locked but the user's souvenirs, so people who delete users do not wait for each
    other. Marks may say again what a Rollup already knows.
    """
    rows = Souvenir.objects.using(using).filter(user_id=user_pk)
    if connections[using].vendor == "sqlite":
        # Who reads first is refused to write when somebody else has written since: not even waits
        Watermark.objects.using(using).update(rolled_up=F("rolled_up"))
    if connections[using].vendor == "mysql" and has_json_table(using):
        _lock(list(rows.order_by("pk").values_list("pk", flat=True)), using)
    watermark = Watermark.objects.using(using).first()
    if watermark is not None:
        stale = StaleMark.objects.using(using).aggregate(first=Min("bucket"))["first"]
        start = watermark.rolled_up if stale is None else min(stale, watermark.rolled_up)
        rows = rows.filter(when__gte=timestamps.to_datetime(start))
    times = rows.order_by().values_list("when", flat=True)
    buckets = {bucket_containing(timestamps.to_seconds(when)) for when in times.iterator()}
    if not buckets:
        return
    last_seen = LastSeen.objects.using(using).filter(user_id=user_pk)
    ordinal = last_seen.values_list("pk", flat=True).first()
    if ordinal is None:  # their souvenirs came past us; Django may not look for such a row again
        last_seen.touch(Sighting(user_pk=user_pk, seen=None))
        ordinal = last_seen.get().pk
        last_seen.delete()
    StaleMark.objects.using(using).bulk_create(
        (StaleMark(bucket=bucket, member=ordinal) for bucket in sorted(buckets)), batch_size=5_000
    )


def _lock(keys: Sequence[int], using: str) -> None:
    """Locks these souvenirs, and no others.

    InnoDB would do so from the index on users, when they are deleted. Who prunes locks that after
    the row: then one of the two would fail for a deadlock. So here too it is the row first.
    """
    with connections[using].cursor() as cursor:
        select = f"SELECT s.id FROM {ONE_BY_ONE} FOR UPDATE"  # noqa: S608
        cursor.execute(select, [json.dumps(keys)])
        cursor.fetchall()


def keep_deleted_user(instance: models.Model, using: str, **kwargs: Any) -> None:
    """pre_delete of a user, in the transaction of the deletion."""
    keep_history(instance.pk, using)

    def forget(user_pk: Any = instance.pk) -> None:
        conf.last_seen_store.remove(user_pk)

    transaction.on_commit(forget, using=using, robust=True)


def forget_deleted_user(instance: models.Model, using: str, **kwargs: Any) -> None:
    """post_delete of a user whose database has not our tables: history, and the cascade.

    It waits for the commit there; whoever deletes is told if it fails.
    """

    def forget(user_pk: Any = instance.pk) -> None:
        ours = router.db_for_write(Souvenir)
        with transaction.atomic(using=ours):
            keep_history(user_pk, ours)
            for model in (LastSeen, Souvenir):
                model._base_manager.using(ours).filter(user_id=user_pk).delete()
        conf.last_seen_store.remove(user_pk)

    transaction.on_commit(forget, using=using)


def connect() -> None:
    """Starts listening for deleted users."""
    user_model = get_user_model()._meta.concrete_model
    together = router.allow_migrate_model(router.db_for_write(get_user_model()), Souvenir)
    for model in apps.get_models():
        if model._meta.concrete_model is user_model:  # signals of a proxy are sent by the proxy
            if together:
                models.signals.pre_delete.connect(
                    keep_deleted_user, sender=model, dispatch_uid="souvenirs.deletion"
                )
            else:
                models.signals.post_delete.connect(
                    forget_deleted_user, sender=model, dispatch_uid="souvenirs.deletion"
                )
