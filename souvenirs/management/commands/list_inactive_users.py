"""List users who have not been active recently."""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import chain, islice
from typing import Any

from django.core.management.base import CommandError
from django.db.models import QuerySet
from tabulate import tabulate

from souvenirs import checks, control, timestamps
from souvenirs.conf import conf
from souvenirs.history import counting
from souvenirs.lastseen import get_store
from souvenirs.management.base import SouvenirsCommand
from souvenirs.management.options import add_older_than, age_of, show, to_moment
from souvenirs.periods import EARLIEST
from souvenirs.spreadsheets import csv_lines

COLUMNS = ("key", "username", "is_active", "joined", "last_seen")
BATCH_SIZE = 2_000
LISTED = 3  # exit code, with --exit-code

Row = list[Any]


class Command(SouvenirsCommand):
    help = (
        "Lists users who have not been seen for some time, and users who joined before that time"
        " and have never been seen. It changes nothing."
    )
    requires_system_checks = (checks.TAG,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_older_than(parser, "how long they have not been seen, such as 90d or 1y")
        parser.add_argument(
            "--joined-before",
            metavar="DATE",
            help="list users who have never been seen only if they joined before this date"
            " (default: --older-than before now)",
        )
        parser.add_argument(
            "--format", choices=FORMATS, default="table", help="output format (default: table)"
        )
        parser.add_argument(
            "--exit-code",
            action="store_true",
            help=f"exit with {LISTED} if any users are listed, and with 0 if none are",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        age = age_of(options)
        since = max(time.time() - age, EARLIEST)
        require_record(since)
        users = control.inactive_users(
            timestamps.to_datetime(since), to_moment("joined_before", options["joined_before"])
        )
        listed = iter(rows(users))
        first = list(islice(listed, 1))
        for text in FORMATS[options["format"]](chain(first, listed)):
            self.stdout.write(text, ending="")
        if first and options["exit_code"]:
            self.stdout.flush()
            sys.exit(LISTED)


def require_record(since: float) -> None:
    """Raise CommandError if the record begins after `since`: users who were active only before it
    would be listed as never seen."""
    first = counting.first_recorded()
    if first is None:
        raise CommandError("No users have been recorded yet, so none are known to be inactive.")
    if first > since:
        raise CommandError(
            f"The record begins at {show(first)}, but --older-than goes back to {show(since)}:"
            " users who were active only before the record would be listed as never seen. Use a"
            " shorter time, or load past activity with backfill_souvenirs."
        )


def rows(users: QuerySet[Any]) -> Iterator[Row]:
    """Yield the rows of the users, in the order of their keys."""
    everybody = users.order_by("pk").iterator(BATCH_SIZE)
    while batch := list(islice(everybody, BATCH_SIZE)):
        times = get_store().get_many([user.pk for user in batch])
        for user in batch:
            seen = times.get(user.pk)
            yield [
                user.pk if isinstance(user.pk, int) else str(user.pk),
                user.get_username(),
                user.is_active,
                local(getattr(user, "date_joined", None)),
                None if seen is None else local(timestamps.to_datetime(seen)),
            ]


def local(when: datetime | None) -> str | None:
    """Format a datetime in the site's time zone, with the offset."""
    if when is None:
        return None
    return timestamps.aware(when).astimezone(conf.zone).isoformat(timespec="seconds")


def to_table(listed: Iterable[Row]) -> Iterator[str]:
    cells = [["" if cell is None else str(cell) for cell in row] for row in listed]
    if not cells:
        yield "No inactive users.\n"
        return
    cells = [[*row[:-1], row[-1] or "never"] for row in cells]
    yield tabulate(cells, COLUMNS, tablefmt="simple", disable_numparse=True) + "\n"


def to_csv(listed: Iterable[Row]) -> Iterator[str]:
    words = {True: "true", False: "false"}
    cells = ([words.get(c, c) if isinstance(c, bool) else c for c in row] for row in listed)
    return csv_lines(COLUMNS, cells)


def to_json(listed: Iterable[Row]) -> Iterator[str]:
    """Yield a JSON list with one dictionary per line."""
    separator = "[\n"
    for row in listed:
        yield separator + json.dumps(dict(zip(COLUMNS, row)))
        separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


FORMATS: dict[str, Callable[[Iterable[Row]], Iterator[str]]] = {
    "table": to_table,
    "csv": to_csv,
    "json": to_json,
}
