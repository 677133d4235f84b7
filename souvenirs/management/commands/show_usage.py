"""Print a report: as a table, in a machine-readable format, or as a chart."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from django.core.exceptions import FieldError
from django.core.management.base import CommandError, CommandParser

from souvenirs import checks, reports, timestamps
from souvenirs.conf import conf
from souvenirs.management import charts
from souvenirs.management.base import SouvenirsCommand
from souvenirs.management.options import to_moment
from souvenirs.management.tables import FORMATS, Row, Table


class Report(NamedTuple):
    usage: Callable[..., Iterator[dict[str, Any]]]
    column: str
    label: str | None  # None: periods are labelled with the date on which they begin


SUBSCRIPTION = {
    "daily": Report(reports.daily_usage, "date", None),
    "monthly": Report(reports.customer_monthly_usage, "month", "year_month"),
    "quarterly": Report(reports.customer_quarterly_usage, "quarter", "year_quarter"),
    "yearly": Report(reports.customer_yearly_usage, "year", "year"),
}
COHORTS = {"growth": reports.growth, "retention": reports.retention}
PERIODS = {
    "daily": "day",
    "weekly": "week",
    "monthly": "month",
    "quarterly": "quarter",
    "yearly": "year",
}
CALENDAR = {
    "daily": Report(reports.calendar_daily_usage, "date", None),
    "weekly": Report(reports.calendar_weekly_usage, "week", "calendar_week"),
    "monthly": Report(reports.calendar_monthly_usage, "month", "calendar_year_month"),
    "quarterly": Report(reports.calendar_quarterly_usage, "quarter", "calendar_year_quarter"),
    "yearly": Report(reports.calendar_yearly_usage, "year", "calendar_year"),
}
COUNTS = ("registered", "activated", "active")
CHANGES = ("active", "new", "retained", "resurrected", "churned")
AGES = 12
DATES = ("subscription_start", "after", "before")


class Command(SouvenirsCommand):
    help = (
        "Shows registered, activated and active users in periods of a subscription or of the"
        " calendar; or how many users are new, retained, resurrected and churned. Write dates like"
        " 2010-01-24, 1/24/2010 or 2010-01-24T22:00+01:00; without an offset, they are in the"
        " site's time zone, in which periods are shown."
    )
    requires_system_checks = (checks.TAG,)

    def add_arguments(self, parser: CommandParser) -> None:
        kinds = parser.add_mutually_exclusive_group()
        kinds.add_argument(
            "--growth",
            action="store_true",
            help="how many active users are new, retained or resurrected, and how many churned",
        )
        kinds.add_argument(
            "--retention",
            action="store_true",
            help=f"how many new users of a period were active in the {AGES} periods after it",
        )
        kinds.add_argument(
            "--active-days",
            action="store_true",
            help="on how many of the last 28 complete days users were active",
        )
        parser.add_argument(
            "--subscription-start",
            metavar="DATE",
            help="when the subscription started or was renewed: periods are counted from there",
        )
        parser.add_argument(
            "--after", metavar="DATE", help="omit periods that end by this date (inclusive)"
        )
        parser.add_argument(
            "--before", metavar="DATE", help="end the report at this date (exclusive; default: now)"
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
            help="use calendar periods, from --after or the first record on (the default without"
            " --subscription-start)",
        )
        parser.add_argument(
            "--recent",
            nargs="?",
            const=1,
            type=int,
            metavar="N",
            help="show only the last N periods (default: 1)",
        )
        parser.add_argument(
            "--ascending", action="store_true", help="oldest first (default: newest first)"
        )
        parser.add_argument(
            "--datefmt",
            default="%Y-%m-%d",
            help="strftime format of the date columns (default: %%Y-%%m-%%d)",
        )
        parser.add_argument(
            "--by",
            metavar="PATH",
            help="count active users by their current value of a path from the user model, such as"
            " subscription__plan",
        )
        outputs = parser.add_mutually_exclusive_group()
        outputs.add_argument(
            "--format", choices=FORMATS, default="table", help="output format (default: table)"
        )
        outputs.add_argument("--csv", action="store_true", help="the same as --format csv")
        outputs.add_argument(
            "--plot", action="store_true", help="print a chart, in color on a terminal"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        bounds = {name: to_moment(name, options[name]) for name in DATES}
        check(options, bounds)
        table = read(options, bounds)
        if options["plot"] or (options["retention"] and self.has_color(options)):
            self.stdout.write(self.chart(table, options))
            return
        try:
            for text in FORMATS["csv" if options["csv"] else options["format"]](table):
                self.stdout.write(text)
        except BrokenPipeError:  # the reader, such as `head`, stopped; Python must not flush again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def has_color(self, options: Mapping[str, Any]) -> bool:
        is_for_people = options["format"] == "table" and not options["csv"]
        return is_for_people and charts.has_color(self.stdout, options)

    def chart(self, table: Table, options: Mapping[str, Any]) -> str:
        width, color = shutil.get_terminal_size().columns, self.has_color(options)
        if options["growth"]:
            return charts.growth_bars(table, width, color)
        if options["retention"]:
            is_wide = charts.encodes(self.stdout, charts.SHADES)
            shades = charts.SHADES if is_wide else charts.PLAIN_SHADES
            return charts.triangle(table, color, shades)
        return charts.bars(table, width)


def length_of(options: dict[str, Any]) -> str:
    return next((length for length in CALENDAR if options[length]), "monthly")


def check(options: dict[str, Any], bounds: dict[str, datetime | None]) -> None:
    """Raise CommandError if the options do not define a report."""
    after, before, report = bounds["after"], bounds["before"], length_of(options)
    kind = next((name for name in (*COHORTS, "active_days") if options[name]), None)
    if kind and bounds["subscription_start"]:
        raise CommandError(
            f"--{kind.replace('_', '-')} reports on calendar periods: omit --subscription-start,"
            " and use --after to set the start"
        )
    if kind == "active_days" and (
        after or options["recent"] or any(options[length] for length in CALENDAR)
    ):
        raise CommandError(
            "--active-days reports on the 28 days before --before: omit --after, --recent and the"
            " length of periods"
        )
    if options["calendar"] and bounds["subscription_start"]:
        raise CommandError(
            "--subscription-start and --calendar exclude each other: calendar periods have no"
            " subscription; use --after to set the start"
        )
    if bounds["subscription_start"] and report not in SUBSCRIPTION:
        raise CommandError(
            f"--{report} reports on calendar periods: omit --subscription-start, and use --after"
            " to set the start"
        )
    try:
        datetime.now(conf.zone).strftime(options["datefmt"])
    except ValueError as error:
        raise CommandError(f"--datefmt is {options['datefmt']!r}, which fails: {error}") from None
    if after and before and after.timestamp() >= before.timestamp():
        raise CommandError(
            f"--after, {options['after']!s}, must be earlier than --before, {options['before']!s}:"
            " there is nothing between them"
        )
    if options["recent"] is not None and options["recent"] < 1:
        raise CommandError(
            f"--recent must be a positive number of periods, not {options['recent']}"
        )
    if options["by"] and options["plot"]:
        raise CommandError("--plot draws one bar for each period: omit --by, or use --format")
    if options["by"] and kind:
        raise CommandError(f"--{kind.replace('_', '-')} reports on all users: omit --by")


def read(options: dict[str, Any], bounds: dict[str, datetime | None]) -> Table:
    if options["active_days"]:
        return days_table(list(reports.active_days(bounds["before"])))
    subscription_start = bounds["subscription_start"]
    length = length_of(options)
    report = (SUBSCRIPTION if subscription_start else CALENDAR)[length]
    function: Callable[..., Iterator[dict[str, Any]]] = report.usage
    first: list[Any] = [subscription_start] if subscription_start else []
    more = {"by": options["by"]}
    for name, of_cohorts in COHORTS.items():
        if options[name]:
            function, first, more = of_cohorts, [PERIODS[length]], {}
    try:
        found = list(
            function(*first, bounds["after"], bounds["before"], recent=options["recent"], **more)
        )
    except reports.ReportError as error:
        raise CommandError(f"Could not produce the report: {error}.") from None
    except FieldError as error:
        raise CommandError(f"--by is {options['by']!r}: {error}") from None
    if not options["ascending"]:
        found.reverse()
    text = [report.column, "start", "end"] if report.label else [report.column]
    periods = [period_columns(each, report.label, options["datefmt"]) for each in found]
    if options["retention"]:
        return retention_table(text, periods, [each["retention"] for each in found])
    if options["by"]:
        return Table([*text, options["by"]], ["active"], rows_by_value(periods, found))
    key, counts = ("growth", CHANGES) if options["growth"] else ("usage", COUNTS)
    rows = [
        ([*period, *(each[key][f"{name}_users"] for name in counts)], each["period"]["complete"])
        for period, each in zip(periods, found)
    ]
    return Table(text, counts, rows)


def rows_by_value(periods: Iterable[list[Any]], found: Iterable[dict[str, Any]]) -> Iterator[Row]:
    for period, each in zip(periods, found):
        for value, users in each["usage"]["active_users_by"].items():
            yield [*period, value, users], each["period"]["complete"]


def period_columns(row: dict[str, Any], label: str | None, datefmt: str) -> list[Any]:
    dates = [
        timestamps.aware(row["period"][name]).astimezone(conf.zone).strftime(datefmt)
        for name in ("start", "end")
    ]
    return [row["labels"][label], *dates] if label else dates[:1]


def retention_table(
    text: list[str], periods: list[list[Any]], found: list[dict[str, Any]]
) -> Table:
    """Return a table of the cohorts that are known, at ages whose periods are over."""
    rows: list[Row] = []
    for period, cohort in zip(periods, found):
        over = [n for n, complete in zip(cohort["retained_users"], cohort["complete"]) if complete]
        if over:
            rows.append(([*period, *over], True))
    ages = max((len(row) - len(text) for row, _ in rows), default=1) - 1
    counts = ["users", *(f"age {age}" for age in range(1, ages + 1))]
    return Table(text, counts, rows)


def days_table(found: list[dict[str, Any]]) -> Table:
    rows = [
        (
            [each["labels"]["active_days"], each["usage"]["active_users"]],
            each["period"]["complete"],
        )
        for each in found
    ]
    return Table(["active days"], ["active"], rows, "the record begins within these days")
