from __future__ import annotations

from typing import Any


class History:
    """Keeps souvenirs in the database "history", and everything else out of it."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "history" if model._meta.app_label == "souvenirs" else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return (db == "history") == (app_label == "souvenirs")
