from django.apps import AppConfig


class SouvenirsConfig(AppConfig):
    name = "souvenirs"
    verbose_name = "Souvenirs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from souvenirs import checks  # noqa: F401  (registers the checks)
        from souvenirs.history import marks
        from souvenirs.history.deletion import keep_history_of_deleted
        from souvenirs.lastseen import table
        from souvenirs.recording import turnover
        from souvenirs.recording.deletion import write_before_deletion
        from souvenirs.signals import deleting_users, souvenirs_written

        souvenirs_written.connect(table.catch_up)
        souvenirs_written.connect(marks.mark_dirty)
        deleting_users.connect(write_before_deletion)
        deleting_users.connect(keep_history_of_deleted)
        turnover.connect()
