"""What people did since the last look, as text: who joined, and who came back after how long."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

AWAY_DAYS = 7  # the shortest absence that is reported
DAY = 86_400

# When each user was last seen, in unix seconds; None for never
Seen = Mapping[str, float | None]


class Watcher:
    """Reads the database of the site in a directory."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "db.sqlite3"
        self.seen = self.read()

    def read(self) -> Seen:
        rows = (
            "SELECT username, seen FROM auth_user"
            " LEFT JOIN souvenirs_lastseen ON user_id = auth_user.id"
        )
        with closing(sqlite3.connect(self.file, timeout=20)) as database:
            return {name: to_seconds(seen) for name, seen in database.execute(rows)}

    def news(self) -> list[str]:
        before, self.seen = self.seen, self.read()
        return describe(before, self.seen)


def to_seconds(seen: str | None) -> float | None:
    """Convert a datetime column of SQLite, which is in UTC, to unix seconds."""
    if seen is None:
        return None
    return datetime.fromisoformat(seen).replace(tzinfo=timezone.utc).timestamp()


def describe(before: Seen, after: Seen) -> list[str]:
    news = []
    for name, seen in sorted(after.items()):
        if name not in before:
            news.append(f"{name} joined")
            continue
        last = before[name]
        if seen is None or seen == last:
            continue
        if last is None:
            news.append(f"{name} came for the first time")
        elif seen - last >= AWAY_DAYS * DAY:
            news.append(f"{name} came back after {(seen - last) // DAY:.0f} days")
    return news
