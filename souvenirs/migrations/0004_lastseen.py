from django.conf import settings
from django.db import migrations, models

from souvenirs.fields import UserOneToOneField, cascade


class Migration(migrations.Migration):
    dependencies = [
        ("souvenirs", "0003_souvenir_covering_index"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="LastSeen",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                ("seen", models.BigIntegerField(db_index=True, null=True)),
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
