from django.db import migrations, models


class Migration(migrations.Migration):
    """Add the history: bitmaps of closed intervals, and marks for what they may lack."""

    dependencies = [("souvenirs", "0005_fill_lastseen")]

    operations = [
        migrations.CreateModel(
            name="Rollup",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "kind",
                    models.PositiveSmallIntegerField(
                        choices=[(0, "bucket"), (1, "day"), (2, "month")]
                    ),
                ),
                ("start", models.BigIntegerField()),
                ("end", models.BigIntegerField()),
                ("members", models.BinaryField()),
                ("active_users", models.PositiveIntegerField()),
                ("last_member", models.PositiveIntegerField(db_index=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("kind", "start", "end"), name="souvenirs_rollup_unique"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="DirtyBucket",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("bucket", models.BigIntegerField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="DeletedMember",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("bucket", models.BigIntegerField(db_index=True)),
                ("member", models.PositiveIntegerField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="Watermark",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("rolled_up", models.BigIntegerField()),
                ("pruned", models.BigIntegerField()),
                ("revision", models.BigIntegerField(default=0)),
                ("deletions", models.BigIntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name="UserDeletion",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="AccountTotals",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("date", models.DateField(unique=True)),
                ("end", models.BigIntegerField(db_index=True)),
                ("registered", models.PositiveIntegerField()),
                ("activated", models.PositiveIntegerField()),
            ],
            options={"verbose_name_plural": "account totals"},
        ),
        migrations.CreateModel(
            name="Usage",
            fields=[],
            options={
                "verbose_name": "usage",
                "verbose_name_plural": "usage",
                "proxy": True,
                "default_permissions": ("view",),
                "indexes": [],
                "constraints": [],
            },
            bases=("souvenirs.rollup",),
        ),
    ]
