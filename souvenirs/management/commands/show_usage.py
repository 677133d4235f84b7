"""Prints a usage report: as a table, for machines, or as a bar chart."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import Any, NamedTuple

from django.core.exceptions import FieldError
from django.core.management.base import CommandError, CommandParser
from tabulate import tabulate

from souvenirs import checks, reports, timestamps
from souvenirs.conf import conf
from souvenirs.management.base import SouvenirsCommand
from souvenirs.management.options import to_moment


class Report(NamedTuple):
    usage: Callable[..., Iterator[dict[str, Any]]]
    column: str
    label: str | None  # None: periods go by the date that they begin on


SUBSCRIPTION = {
    "daily": Report(reports.daily_usage, "date", None),
    "monthly": Report(reports.customer_monthly_usage, "month", "year_month"),
    "quarterly": Report(reports.customer_quarterly_usage, "quarter", "year_quarter"),
    "yearly": Report(reports.customer_yearly_usage, "year", "year"),
}
CALENDAR = {
    "daily": Report(reports.calendar_daily_usage, "date", None),
    "weekly": Report(reports.calendar_weekly_usage, "week", "calendar_week"),
    "monthly": Report(reports.calendar_monthly_usage, "month", "calendar_year_month"),
    "quarterly": Report(reports.calendar_quarterly_usage, "quarter", "calendar_year_quarter"),
    "yearly": Report(reports.calendar_yearly_usage, "year", "calendar_year"),
}
COUNTS = ("registered", "activated", "active")
DATES = ("subscription_start", "after", "before")


class Table(NamedTuple):
    """What is printed: a row a period, or with --by one for each value in it.

    The columns of `text` say which period and value, those of `counts` count. The rows, with
    whether their periods are complete, can be iterated over once.
    """

    text: list[str]
    counts: Sequence[str]
    rows: Iterator[tuple[list[Any], bool]]

    @property
    def headers(self) -> list[str]:
        return [*self.text, *self.counts]


class Command(SouvenirsCommand):
    help = (
        "Shows registered, activated and active users in periods of a subscription, or of the"
        " calendar. Dates such as 2010-01-24, 1/24/2010 or 2010-01-24T22:00+01:00, by default in"
        " the site's time zone; periods are shown in it."
    )
    requires_system_checks = (checks.TAG,)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--subscription-start",
            metavar="DATE",
            help="when the subscription started or was renewed: its periods count from there",
        )
        parser.add_argument(
            "--after", metavar="DATE", help="leave out periods that end by then (inclusive)"
        )
        parser.add_argument(
            "--before", metavar="DATE", help="end the report there (exclusive; default: now)"
        )
        lengths = parser.add_mutually_exclusive_group()
        for length in CALENDAR:
            lengths.add_argument(
                f"--{length}",
                action="store_true",
                help=f"report on {length} activity"
                + {"monthly": " (default)", "weekly": " (of the calendar)"}.get(length, ""),
            )
        parser.add_argument(
            "--calendar",
            action="store_true",
            help="periods of the calendar, from --after or the first record on (the default"
            " without --subscription-start)",
        )
        parser.add_argument(
            "--recent",
            nargs="?",
            const=1,
            type=int,
            metavar="N",
            help="only the last N (1) periods",
        )
        parser.add_argument(
            "--ascending", action="store_true", help="oldest first (default: newest first)"
        )
        parser.add_argument(
            "--datefmt",
            default="%Y-%m-%d",
            help="strftime of the date columns (default: %%Y-%%m-%%d)",
        )
        parser.add_argument(
            "--by",
            metavar="PATH",
            help="count active users by what they have now, a path from the user model"
            " such as subscription__plan",
        )
        outputs = parser.add_mutually_exclusive_group()
        outputs.add_argument(
            "--format", choices=FORMATS, default="table", help="how to print (default: table)"
        )
        outputs.add_argument("--csv", action="store_true", help="the same as --format csv")
        outputs.add_argument(
            "--plot", action="store_true", help="print a bar chart of active users"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        bounds = {name: to_moment(name, options[name]) for name in DATES}
        check(options, bounds)
        table = read(options, bounds)
        if options["plot"]:
            self.stdout.write(plot(table, shutil.get_terminal_size().columns))
            return
        try:
            for text in FORMATS["csv" if options["csv"] else options["format"]](table):
                self.stdout.write(text)
        except BrokenPipeError:  # the reader has enough, as `head`; Python must not flush again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def length_of(options: dict[str, Any]) -> str:
    return next((length for length in CALENDAR if options[length]), "monthly")


def check(options: dict[str, Any], bounds: dict[str, datetime | None]) -> None:
    """Raises CommandError for options that make no report."""
    after, before, report = bounds["after"], bounds["before"], length_of(options)
    if options["calendar"] and bounds["subscription_start"]:
        raise CommandError(
            "--subscription-start and --calendar exclude each other: calendar periods have no"
            " subscription; use --after to say where to begin"
        )
    if bounds["subscription_start"] and report not in SUBSCRIPTION:
        raise CommandError(
            f"--{report} reports on the calendar: leave out --subscription-start, and use --after"
            " to say where to begin"
        )
    try:
        datetime.now(conf.zone).strftime(options["datefmt"])
    except ValueError as error:
        raise CommandError(f"--datefmt is {options['datefmt']!r}, which fails: {error}") from None
    if after and before and after.timestamp() >= before.timestamp():
        raise CommandError(
            f"--after is {options['after']!s}, which is not earlier than --before"
            f" {options['before']!s}: there is nothing between; exchange them?"
        )
    if options["recent"] is not None and options["recent"] < 1:
        raise CommandError(f"--recent is {options['recent']}: give a number of periods, from 1 up")

    if options["by"] and options["plot"]:
        raise CommandError("--plot draws one bar for each period: leave out --by, or use --format")


def read(options: dict[str, Any], bounds: dict[str, datetime | None]) -> Table:
    subscription_start = bounds["subscription_start"]
    report = (SUBSCRIPTION if subscription_start else CALENDAR)[length_of(options)]
    start = [subscription_start] if subscription_start else []
    try:
        usages = list(
            report.usage(
                *start,
                bounds["after"],
                bounds["before"],
                recent=options["recent"],
                by=options["by"],
            )
        )
    except reports.ReportError as error:
        raise CommandError(f"There is no such report: {error}.") from None
    except FieldError as error:
        raise CommandError(f"--by is {options['by']!r}: {error}") from None
    if not options["ascending"]:
        usages.reverse()
    text = [report.column, "start", "end"] if report.label else [report.column]
    if options["by"]:
        return Table([*text, options["by"]], ["active"], iter_rows(report, usages, options))
    return Table(text, COUNTS, iter_rows(report, usages, options))


def iter_rows(
    report: Report, usages: Iterable[dict[str, Any]], options: dict[str, Any]
) -> Iterator[tuple[list[Any], bool]]:
    for usage in usages:
        start_text, end_text = (
            timestamps.aware(usage["period"][name])
            .astimezone(conf.zone)
            .strftime(options["datefmt"])
            for name in ("start", "end")
        )
        label = report.label and usage["labels"][report.label]
        period = [label, start_text, end_text] if label else [start_text]
        complete = usage["period"]["complete"]
        if options["by"]:
            for value, users in usage["usage"]["active_users_by"].items():
                yield [*period, value, users], complete
        else:
            yield [*period, *(usage["usage"][f"{name}_users"] for name in COUNTS)], complete


def to_csv(table: Table) -> Iterator[str]:
    echo: Any = SimpleNamespace(write=str)  # what the writer's methods return
    writer = csv.writer(echo)
    yield writer.writerow([*table.headers, "complete"])
    for row, complete in table.rows:
        yield writer.writerow([*row, str(complete).lower()])


def to_json(table: Table) -> Iterator[str]:
    headers = [*table.headers, "complete"]
    rows = [dict(zip(headers, [*row, complete])) for row, complete in table.rows]
    yield json.dumps(rows, indent=2, default=str)


def to_text(table: Table, style: str = "simple") -> Iterator[str]:
    pairs = list(table.rows)
    rows = [row for row, _ in pairs]
    # "2016" is a label, no number (and tabulate cannot be told of columns where it has no rows)
    labels = list(range(len(table.text))) if rows else False
    lines = tabulate(rows, table.headers, tablefmt=style, disable_numparse=labels)
    yield lines + note(pairs)


def to_markdown(table: Table) -> Iterator[str]:
    return to_text(table, "pipe")


def note(rows: Iterable[tuple[list[Any], bool]]) -> str:
    partial = list(dict.fromkeys(str(row[0]) for row, complete in rows if not complete))
    if not partial:
        return ""
    names = partial[0] if len(partial) == 1 else f"{partial[0]} to {partial[-1]}"
    return f"\n\nPartial: {names} (not over yet, or cut by --before)"


def plot(table: Table, width: int) -> str:
    """Bars of active users: `#` of complete periods, `:` of partial ones."""
    rows = list(table.rows)
    names = [" ".join(map(str, row[: min(len(table.text), 2)])) for row, _ in rows]
    counts = [row[-1] for row, _ in rows]
    margin = max(map(len, names), default=0)
    digits = max((len(str(count)) for count in counts), default=0)
    room = max(width - margin - digits - 4, 10)
    most = max(counts, default=0) or 1
    lines = ["Active users"]
    for name, count, (_, complete) in zip(names, counts, rows):
        length = max(round(count * room / most), 1) if count else 0
        bar = ("#" if complete else ":") * length
        lines.append(f"{name:<{margin}}  {count:>{digits}}  {bar}".rstrip())
    return "\n".join(lines) + note(rows)


FORMATS: dict[str, Callable[[Table], Iterator[str]]] = {
    "table": to_text,
    "csv": to_csv,
    "json": to_json,
    "markdown": to_markdown,
}
