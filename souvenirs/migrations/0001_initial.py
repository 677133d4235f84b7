import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

from souvenirs.fields import UserForeignKey, cascade


class Migration(migrations.Migration):
    """The schema of django-souvenirs 1.0.2."""

    initial = True

    dependencies = [migrations.swappable_dependency(settings.AUTH_USER_MODEL)]

    operations = [
        migrations.CreateModel(
            name="Souvenir",
            fields=[
                (
                    "id",
                    models.AutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("when", models.DateTimeField(db_index=True, default=django.utils.timezone.now)),
                ("user", UserForeignKey(on_delete=cascade, to=settings.AUTH_USER_MODEL)),
            ],
            options={"ordering": ["-when"]},
        ),
    ]
