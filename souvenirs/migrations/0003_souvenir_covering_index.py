from typing import Any

import django.utils.timezone
from django.db import migrations, models


class AddIndexWithoutLock(migrations.AddIndex):
    """AddIndex that lets writers go on, where the database can (PostgreSQL).

    Not django.contrib.postgres's, which needs psycopg: sites on other databases lack it.
    """

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        connection = schema_editor.connection
        if connection.vendor != "postgresql":
            super().database_forwards(app_label, schema_editor, from_state, to_state)
        elif self.allow_migrate_model(connection.alias, model):
            # An earlier try that was interrupted leaves an invalid index of this name
            schema_editor.remove_index(model, self.index, concurrently=True)
            schema_editor.add_index(model, self.index, concurrently=True)


class Migration(migrations.Migration):
    """An index that a count can be read from, in place of the one on `when` alone."""

    atomic = False  # PostgreSQL builds indexes concurrently outside of a transaction only

    dependencies = [("souvenirs", "0002_souvenir_big_key")]

    operations = [
        AddIndexWithoutLock(
            model_name="souvenir",
            index=models.Index(fields=["when", "user"], name="souvenirs_when_user"),
        ),
        migrations.AlterField(
            model_name="souvenir",
            name="when",
            field=models.DateTimeField(default=django.utils.timezone.now),
        ),
    ]
