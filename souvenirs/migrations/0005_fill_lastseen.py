import time
from typing import Any

from django.db import migrations
from django.db.models import Exists, Max, OuterRef, Q
from tqdm import tqdm

from souvenirs import timestamps

BATCH = 5_000  # users in memory at a time


def fill_last_seen(apps: Any, schema_editor: Any) -> None:
    """Create the LastSeen rows of users who have souvenirs but no such row.

    Each batch is a separate transaction, so that after an interruption the next run continues
    where this one stopped. Future times are ignored.
    """
    using = schema_editor.connection.alias
    LastSeen = apps.get_model("souvenirs", "LastSeen").objects.using(using)
    Souvenir = apps.get_model("souvenirs", "Souvenir").objects.using(using)
    has_happened = Q(when__lte=timestamps.to_datetime(time.time()))
    missing = (
        Souvenir.filter(~Exists(LastSeen.filter(user_id=OuterRef("user_id"))))
        .order_by("user_id")
        .values("user_id")
        .annotate(newest=Max("when", filter=has_happened))
    )
    with tqdm(desc="last seen", unit=" users", disable=None, delay=1) as progress:
        batch = list(missing[:BATCH])
        while batch:
            LastSeen.bulk_create(
                (
                    LastSeen.model(
                        user_id=row["user_id"],
                        seen=row["newest"] and row["newest"].replace(microsecond=0),
                    )
                    for row in batch
                ),
                ignore_conflicts=True,  # the site may already be running
            )
            progress.update(len(batch))
            batch = list(missing.filter(user_id__gt=batch[-1]["user_id"])[:BATCH])


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("souvenirs", "0004_lastseen")]

    operations = [migrations.RunPython(fill_last_seen, migrations.RunPython.noop, elidable=True)]
