"""Roll up the history."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from typing import Any

from django.db import router

from souvenirs import checks
from souvenirs.history import maintenance, repair
from souvenirs.history.counting import first_recorded
from souvenirs.history.progress import due_until, watermark
from souvenirs.lastseen import get_store
from souvenirs.management.base import SouvenirsCommand
from souvenirs.management.progress import Progress
from souvenirs.models import Rollup
from souvenirs.periods import Interval

DAY = 86_400


class Command(SouvenirsCommand):
    help = (
        "Rolls up the souvenirs of each quarter of an hour, day and month that is over, so that"
        " counting them takes milliseconds. It continues where the last run stopped. Run it from"
        " cron, unless the metrics are scraped: that rolls up too."
    )
    requires_system_checks = (checks.TAG,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--repair",
            action="store_true",
            help="also compare all rollups with the rows: use it after rows were changed by raw"
            " SQL, update() or loaddata, or after TIME_ZONE was changed",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        get_store().resync()
        using = router.db_for_write(Rollup)
        first = first_recorded(using)
        if first is None:
            if options["verbosity"]:
                self.stdout.write("There are no souvenirs.")
            return
        if options["repair"]:
            with self.progress("repairing", first, watermark(using).rolled_up) as bar:
                repair.repair(lambda step: advance(bar, step))
        start = max(watermark(using).rolled_up, first)
        steps = 0

        def on_step(step: Interval) -> None:
            nonlocal steps
            steps += 1
            advance(bar, step)

        with self.progress("rolling up", start, due_until(time.time())) as bar:
            maintenance.roll_up(on_step=on_step)
        if options["verbosity"] and not steps and not options["repair"]:
            self.stdout.write("Nothing to do: the history is rolled up.")
        elif options["verbosity"]:
            total = Rollup.objects.using(using).count()
            self.stdout.write(f"The history is rolled up ({total} intervals).")

    def progress(self, what: str, start: float, end: float) -> Progress:
        days = max(end - start, 0) / DAY
        return Progress(self.stderr, total=days, desc=what, unit="days")


def advance(bar: Progress, step: Interval) -> None:
    bar.update(min((step.end - step.start) / DAY, (bar.total or 0) - bar.n))
