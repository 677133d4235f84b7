from typing import Any

from django.db import migrations, models


class AddIndexWithoutLock(migrations.AddIndex):
    """AddIndex without blocking writers, if the database supports it (PostgreSQL).

    Not the operation in django.contrib.postgres, which needs psycopg: sites on other databases do
    not have it.
    """

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        connection = schema_editor.connection
        if not self.allow_migrate_model(connection.alias, model):
            return
        # Not in a transaction, where PostgreSQL cannot: a tenant's new schema, which nobody uses
        is_concurrent = connection.vendor == "postgresql" and not connection.in_atomic_block
        options = {"concurrently": True} if is_concurrent else {}
        existing = {}
        if not schema_editor.collect_sql:  # sqlmigrate may run before the table exists
            with connection.cursor() as cursor:
                existing = connection.introspection.get_constraints(cursor, model._meta.db_table)
        if self.index.name in existing:  # from an interrupted attempt, and possibly invalid
            schema_editor.remove_index(model, self.index, **options)
        schema_editor.add_index(model, self.index, **options)


class Migration(migrations.Migration):
    """Add an index from which users can be counted. 0004 drops the one on `when` alone."""

    atomic = False  # PostgreSQL builds indexes concurrently only outside of a transaction

    dependencies = [("souvenirs", "0002_souvenir_big_key")]

    operations = [
        AddIndexWithoutLock(
            model_name="souvenir",
            index=models.Index(fields=["when", "user"], name="souvenirs_when_user"),
        ),
    ]
