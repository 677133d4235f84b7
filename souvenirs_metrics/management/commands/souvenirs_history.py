"""Writes the gauges of the past for Prometheus."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from django.core.management.base import CommandError

from souvenirs import checks, timestamps
from souvenirs.history.counting import first_recorded
from souvenirs.management.base import SouvenirsCommand
from souvenirs.management.options import duration, show, to_moment
from souvenirs.management.progress import Progress
from souvenirs.models import Souvenir
from souvenirs_metrics.conf import conf
from souvenirs_metrics.families import ACTIVE_USERS, GROWTH, RETENTION_COHORT, SEGMENT_ACTIVE_USERS
from souvenirs_metrics.prometheus_history import openmetrics

STEP = "5m"
LOOKBACK = 300  # seconds: Prometheus shows a sample for so long
# Prometheus has the last two to three hours in no block yet. When it starts it drops of these what
# is older than the end of the newest block
UNSAVED = 4 * 3600
OURS = {
    *ACTIVE_USERS.labels,
    *GROWTH.labels,
    *RETENTION_COHORT.labels,
    *SEGMENT_ACTIVE_USERS.labels,
    "le",
}


def label(text: str | tuple[str, str]) -> tuple[str, str]:
    """name=value, or a pair of them. ArgumentTypeError for anything else, and for names that are
    not to be had."""
    if isinstance(text, tuple):
        text = "=".join(text)
    match = re.fullmatch(r"([a-zA-Z_][a-zA-Z0-9_]*)=([^\ud800-\udfff]+)", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is no name=value; write it like job=souvenirs")
    name, value = match.groups()
    if name.startswith("__") or name in OURS:
        raise ArgumentTypeError(
            f"{text!r}: {name} is not to be set; choose another name, such as job or instance"
        )
    return name, value


class Command(SouvenirsCommand):
    help = (
        "Writes what gauges were at past instants, from the history, as OpenMetrics with"
        " timestamps: for promtool tsdb create-blocks-from openmetrics. Windows and periods that"
        " begin before the first record are left out. Dates such as 2010-01-24 or"
        " 2010-01-24T22:00+01:00, by default in the site's time zone."
    )
    requires_system_checks = (checks.TAG,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--start", metavar="DATE", help="begin there (inclusive; default: the first record)"
        )
        parser.add_argument(
            "--end",
            metavar="DATE",
            help="end there (exclusive; default: four hours ago, so that a Prometheus that runs"
            " loses nothing of what it has scraped since; a new one takes --end now, the latest)",
        )
        parser.add_argument(
            "--step",
            type=duration,
            default=STEP,
            metavar="DURATION",
            help="instants are the multiples of it in unix time (default: %(default)s)",
        )
        parser.add_argument(
            "--label",
            type=label,
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="add it to each series, such as the job and instance of the scrape; repeatable",
        )
        parser.add_argument(
            "--segments",
            action="store_true",
            help="write the segments of SOUVENIRS_METRICS_SEGMENTS too, by the values that users"
            " have now, whatever they had then, and without the users who have been deleted since",
        )
        parser.add_argument("--output", metavar="FILE", help="write there (default: to stdout)")

    def handle(self, *args: Any, **options: Any) -> None:
        first = first_recorded(conf.database(Souvenir))
        if first is None:
            raise CommandError("There are no souvenirs, so there is no history to write.")
        if options["segments"] and not conf.segments:
            raise CommandError("--segments has nothing to write: set SOUVENIRS_METRICS_SEGMENTS")
        labels = dict(options["label"])
        if len(labels) < len(options["label"]):
            raise CommandError("--label gives two values to the same name: leave one of them out")
        instants = to_instants(options, first)
        if instants.step > LOOKBACK:
            self.stderr.write(
                f"--step is over {STEP}, for which Prometheus shows a sample: graphs will have gaps"
            )
        track = partial(Progress, self.stderr, desc="reading", unit="days")
        samples = 0
        try:
            with self.opened(options["output"]) as output:
                for line in openmetrics(instants, labels, track, options["segments"]):
                    output.write(line)
                    samples += line[0] != "#"
                output.flush()
        except BrokenPipeError:  # who reads has enough, as `head`; Python is not to try once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        except OSError as error:
            name = options["output"] or "The output"
            raise CommandError(f"{name} cannot be written: {error.strerror}") from None
        if options["output"] and options["verbosity"]:
            self.stdout.write(f"{options['output']} has {samples} samples.")

    def opened(self, name: str | None) -> AbstractContextManager[Any]:
        if name is None:
            return nullcontext(self.stdout)
        return open(name, "w", encoding="utf-8", newline="\n")


def to_instants(options: dict[str, Any], first: float) -> range:
    """The multiples of the step with start <= t < end. Raises CommandError if there are none."""
    start, end = (to_moment(name, options[name]) for name in ("start", "end"))
    now = time.time()
    bounds = (
        first if start is None else max(timestamps.to_seconds(start), first),
        now - UNSAVED if end is None else min(timestamps.to_seconds(end), now),
    )
    step: int = options["step"]
    first_instant, after = (math.ceil(bound / step) * step for bound in bounds)
    instants = range(first_instant, after, step)
    if not instants:
        raise CommandError(
            f"There is no instant to write: none is both a multiple of --step ({step} seconds) and"
            f" from {show(bounds[0])} on, before {show(bounds[1])}. The first record is of"
            f" {show(first)}; give an earlier --start or a later --end (up to now)."
        )
    return instants
