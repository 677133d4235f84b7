from typing import Any

import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

from souvenirs.fields import UserOneToOneField, cascade


class DropIndex(migrations.AlterField):
    """AlterField that drops the field's index, even in sqlmigrate's output.

    Django looks up the name of the index in the database. If the table does not exist yet, which
    is an error on MySQL and means no indexes on PostgreSQL, use the name that 0001 will give it.
    """

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        model = from_state.apps.get_model(app_label, self.model_name)
        connection, table = schema_editor.connection, model._meta.db_table
        if (
            schema_editor.collect_sql
            and connection.vendor != "sqlite"  # it rewrites the table
            and self.allow_migrate_model(connection.alias, model)
            and table not in connection.introspection.table_names()
        ):
            name = schema_editor._create_index_name(table, [self.name])
            schema_editor.execute(schema_editor._delete_index_sql(model, name))
        else:
            super().database_forwards(app_label, schema_editor, from_state, to_state)


class Migration(migrations.Migration):
    """Add last-seen times, and drop the index on `when`, which 0003 has replaced."""

    dependencies = [
        ("souvenirs", "0003_souvenir_covering_index"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        DropIndex(
            model_name="souvenir",
            name="when",
            field=models.DateTimeField(default=django.utils.timezone.now),
        ),
        migrations.CreateModel(
            name="LastSeen",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                ("seen", models.DateTimeField(db_index=True, null=True)),
                (
                    "user",
                    UserOneToOneField(
                        on_delete=cascade,
                        related_name="souvenirs_last_seen",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={"verbose_name": "last-seen time", "verbose_name_plural": "last seen"},
        ),
    ]
