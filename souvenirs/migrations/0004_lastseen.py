from typing import Any

import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

from souvenirs.fields import UserOneToOneField, cascade


class DropIndex(migrations.AlterField):
    """AlterField that drops the field's index, in sqlmigrate's output too.

    Django asks the database what the index is called. Where the table is not there yet, which
    MySQL takes for an error and PostgreSQL for a table without indexes, its name is the one that
    0001 is going to give it.
    """

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        model = from_state.apps.get_model(app_label, self.model_name)
        connection, table = schema_editor.connection, model._meta.db_table
        if (
            schema_editor.collect_sql
            and connection.vendor != "sqlite"  # which rewrites the table
            and self.allow_migrate_model(connection.alias, model)
            and table not in connection.introspection.table_names()
        ):
            name = schema_editor._create_index_name(table, [self.name])
            schema_editor.execute(schema_editor._delete_index_sql(model, name))
        else:
            super().database_forwards(app_label, schema_editor, from_state, to_state)


class Migration(migrations.Migration):
    """Last-seen times; and the index on `when` goes, which 0003 has replaced."""

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
