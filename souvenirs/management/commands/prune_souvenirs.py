"""Deletes old souvenirs."""

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
        "Deletes souvenirs that are rolled up. The numbers of the past stay: counts of ranges that"
        " begin and end at quarters of an hour do not change, others are set back to the quarter."
        " It may be interrupted at any time, and run while the site does."
    )
    requires_system_checks = (checks.TAG,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_older_than(parser, "the age from which on they are deleted, such as 90d or 1y")
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="say how many would be deleted of those that are rolled up now, and delete none",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        age = age_of(options)
        if options["dry_run"]:
            self.stdout.write(f"{pruning.prunable(age).count()} souvenirs would be deleted.")
            return
        maintenance.roll_up()
        total = pruning.prunable(age).count()
        with Progress(self.stderr, total=total, desc="pruning", unit="souvenirs") as bar:
            deleted = pruning.prune(age, on_batch=bar.update)
        self.stdout.write(
            f"{deleted} souvenirs are deleted."
            if deleted
            else "Nothing to do: there are no souvenirs of that age."
        )
