"""Delete old souvenirs."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from souvenirs import checks
from souvenirs.history import maintenance, pruning
from souvenirs.management.base import SouvenirsCommand
from souvenirs.management.options import add_older_than, age_of
from souvenirs.management.progress import Progress


class Command(SouvenirsCommand):
    help = (
        "Deletes old souvenirs that are rolled up. Past counts are kept: ranges that begin and end"
        " on a quarter of an hour are counted as before, other bounds are rounded down to the"
        " quarter. It may be interrupted at any time, and may run while the site is running."
    )
    requires_system_checks = (checks.TAG,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_older_than(parser, "delete souvenirs older than this, such as 90d or 1y")
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="print how many souvenirs would be deleted of those that are rolled up now, and"
            " delete none",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        age = age_of(options)
        if options["dry_run"]:
            self.stdout.write(f"Would delete {pruning.prunable(age).count()} souvenirs.")
            return
        maintenance.roll_up()
        total = pruning.prunable(age).count()
        with Progress(self.stderr, total=total, desc="pruning", unit="souvenirs") as bar:
            deleted = pruning.prune(age, on_batch=bar.update)
        self.stdout.write(
            f"Deleted {deleted} souvenirs."
            if deleted
            else "Nothing to do: there are no souvenirs that old."
        )
