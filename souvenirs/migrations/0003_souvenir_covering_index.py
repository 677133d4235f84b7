from typing import Any

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
        if not self.allow_migrate_model(connection.alias, model):
            return
        # In a transaction PostgreSQL cannot: so is a tenant's schema made, where nobody waits
        is_concurrent = connection.vendor == "postgresql" and not connection.in_atomic_block
        options = {"concurrently": True} if is_concurrent else {}
        existing = {}
        if not schema_editor.collect_sql:  # by sqlmigrate, before the table is there
            with connection.cursor() as cursor:
                existing = connection.introspection.get_constraints(cursor, model._meta.db_table)
        if self.index.name in existing:  # of a try that was interrupted, and maybe invalid
            schema_editor.remove_index(model, self.index, **options)
        schema_editor.add_index(model, self.index, **options)


class Migration(migrations.Migration):
    """An index that a count can be read from. 0004 drops the one on `when` alone."""

    atomic = False  # PostgreSQL builds indexes concurrently outside of a transaction only

    dependencies = [("souvenirs", "0002_souvenir_big_key")]

    operations = [
        AddIndexWithoutLock(
            model_name="souvenir",
            index=models.Index(fields=["when", "user"], name="souvenirs_when_user"),
        ),
    ]
