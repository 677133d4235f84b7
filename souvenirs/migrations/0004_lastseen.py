import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

from souvenirs.fields import UserOneToOneField, cascade


class Migration(migrations.Migration):
    """Last-seen times; and the index on `when` goes, which 0003 has replaced."""

    dependencies = [
        ("souvenirs", "0003_souvenir_covering_index"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AlterField(
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
            options={"verbose_name_plural": "last seen"},
        ),
    ]
