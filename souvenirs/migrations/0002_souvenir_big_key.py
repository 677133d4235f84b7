from django.db import migrations, models


class Migration(migrations.Migration):
    """Use a 64-bit key. PostgreSQL, MySQL and SQLite rewrite the table, and lock it meanwhile."""

    dependencies = [("souvenirs", "0001_initial")]

    operations = [
        migrations.AlterField(
            model_name="souvenir",
            name="id",
            field=models.BigAutoField(
                auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
            ),
        ),
    ]
