from django.apps import AppConfig


class SouvenirsConfig(AppConfig):
    name = "souvenirs"
    verbose_name = "Souvenirs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from souvenirs import checks  # noqa: F401  (registers the checks)
        from souvenirs.history import deletion

        deletion.connect()
