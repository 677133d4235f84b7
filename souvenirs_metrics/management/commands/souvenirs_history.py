"""Writes the past values of the gauges, for import into Prometheus."""

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
LOOKBACK_SECONDS = 300  # how long Prometheus shows a sample
# Prometheus keeps the last two to three hours outside of blocks. When it starts, it drops those of
# these samples that are older than the end of the newest block
UNSAVED_SECONDS = 4 * 3600
RESERVED_LABELS = {
    *ACTIVE_USERS.labels,
    *GROWTH.labels,
    *RETENTION_COHORT.labels,
    *SEGMENT_ACTIVE_USERS.labels,
    "le",
}


def label(text: str | tuple[str, str]) -> tuple[str, str]:
    """Parse name=value, or a pair of the two.

    Raise ArgumentTypeError for anything else, and for reserved names.
    """
    if isinstance(text, tuple):
        text = "=".join(text)
    match = re.fullmatch(r"([a-zA-Z_][a-zA-Z0-9_]*)=([^\ud800-\udfff]+)", text)
    if match is None:
        raise ArgumentTypeError(f"must be name=value, like job=souvenirs, not {text!r}")
    name, value = match.groups()
    if name.startswith("__") or name in RESERVED_LABELS:
        raise ArgumentTypeError(
            f"{text!r}: the name {name} is reserved; use another one, such as job or instance"
        )
    return name, value


class Command(SouvenirsCommand):
    help = (
        "Writes the values that the gauges had at past instants, from the history, as OpenMetrics"
        " with timestamps for `promtool tsdb create-blocks-from openmetrics`. Windows and periods"
        " that begin before the first record are left out. Dates are written like 2010-01-24 or"
        " 2010-01-24T22:00+01:00; without an offset, they are in the site's time zone."
    )
    requires_system_checks = (checks.TAG,)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--start", metavar="DATE", help="first instant (inclusive; default: the first record)"
        )
        parser.add_argument(
            "--end",
            metavar="DATE",
            help="end (exclusive; default: four hours ago, so that a running Prometheus loses none"
            " of the samples that it has scraped since; latest: now, for a new Prometheus)",
        )
        parser.add_argument(
            "--step",
            type=duration,
            default=STEP,
            metavar="DURATION",
            help="time between instants, which are multiples of it in unix time (default:"
            " %(default)s)",
        )
        parser.add_argument(
            "--label",
            type=label,
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="label to add to each series, such as the scrape's job or instance; repeatable",
        )
        parser.add_argument(
            "--segments",
            action="store_true",
            help="also write the segments of SOUVENIRS_METRICS_SEGMENTS, by the values that users"
            " have now, whatever they had then, and without users who have been deleted since",
        )
        parser.add_argument("--output", metavar="FILE", help="file to write (default: stdout)")

    def handle(self, *args: Any, **options: Any) -> None:
        first = first_recorded(conf.database(Souvenir))
        if first is None:
            raise CommandError("There are no souvenirs, so there is no history to write.")
        if options["segments"] and not conf.segments:
            raise CommandError("--segments requires the setting SOUVENIRS_METRICS_SEGMENTS")
        labels = dict(options["label"])
        if len(labels) < len(options["label"]):
            raise CommandError("--label gives two values for the same name: remove one of them")
        instants = to_instants(options, first)
        if instants.step > LOOKBACK_SECONDS:
            self.stderr.write(
                f"Graphs will have gaps: --step is more than {STEP}, and Prometheus shows a sample"
                f" for {STEP} only."
            )
        track = partial(Progress, self.stderr, desc="reading", unit="days")
        samples = 0
        try:
            with self.opened(options["output"]) as output:
                for line in openmetrics(instants, labels, track, options["segments"]):
                    output.write(line)
                    samples += line[0] != "#"
                output.flush()
        except BrokenPipeError:  # the reader, such as `head`, is done: Python must not flush again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        except OSError as error:
            name = options["output"] or "the output"
            raise CommandError(f"Cannot write {name}: {error.strerror}") from None
        if options["output"] and options["verbosity"]:
            self.stdout.write(f"Wrote {samples} samples to {options['output']}.")

    def opened(self, name: str | None) -> AbstractContextManager[Any]:
        if name is None:
            return nullcontext(self.stdout)
        return open(name, "w", encoding="utf-8", newline="\n")


def to_instants(options: dict[str, Any], first: float) -> range:
    """The multiples of the step with start <= t < end. Raise CommandError if there are none."""
    start, end = (to_moment(name, options[name]) for name in ("start", "end"))
    now = time.time()
    bounds = (
        first if start is None else max(timestamps.to_seconds(start), first),
        now - UNSAVED_SECONDS if end is None else min(timestamps.to_seconds(end), now),
    )
    step: int = options["step"]
    first_instant, after = (math.ceil(bound / step) * step for bound in bounds)
    instants = range(first_instant, after, step)
    if not instants:
        raise CommandError(
            f"There is no instant to write: no multiple of --step ({step} seconds) is between"
            f" {show(bounds[0])} (inclusive) and {show(bounds[1])} (exclusive). The first record is"
            f" from {show(first)}. Use an earlier --start or a later --end (up to now)."
        )
    return instants
