"""Turn dictionaries of reports into rows of the Usage page, in the reader's language."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _

from souvenirs import timestamps
from souvenirs.charts import Bar, Chart, Column, draw
from souvenirs.conf import conf

NEW, RESURRECTED, CHURNED = "new", "resurrected", "churned"
ACTIVE = "active"
HEATS = 9  # CSS classes for shares in the retention triangle, besides the one for 0

Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A period: its names and its figures, which are None if not known.

    short: the name on a chart's axis.
    """

    start: date
    name: str
    short: str
    complete: bool
    registered: int | None
    activated: int | None
    active: int
    new: int | None
    retained: int | None
    resurrected: int | None
    churned: int | None
    change: float | None  # of active users, relative to the row before; None in the first row

    @property
    def knows_growth(self) -> bool:
        return None not in (self.new, self.retained, self.resurrected, self.churned)


class Cell:
    """The share of a cohort that was active at an age, from 0 to 1."""

    def __init__(self, users: int, cohort: int, complete: bool) -> None:
        self.users, self.complete = users, complete
        self.share = users / cohort if cohort else None

    @property
    def heat(self) -> int:
        return 0 if not self.share else max(1, round(self.share * HEATS))


@dataclass(frozen=True, kw_only=True)
class Cohort:
    name: str
    users: int
    cells: list[Cell]


def day_of(report: Report) -> date:
    """Return the date, in the site's time zone, on which a report's period begins."""
    return timestamps.aware(report["period"]["start"]).astimezone(conf.zone).date()


def name_of(period: str, day: date) -> str:
    if period == "day":
        return date_format(day, "DATE_FORMAT")
    if period == "week":
        year, week, _day = day.isocalendar()
        return _("Week %(week)d of %(year)d") % {"week": week, "year": year}
    if period == "month":
        return date_format(day, "YEAR_MONTH_FORMAT")
    if period == "quarter":
        return _("Quarter %(quarter)d of %(year)d") % {
            "quarter": (day.month + 2) // 3,
            "year": day.year,
        }
    return str(day.year)


def short_name_of(period: str, day: date) -> str:
    if period in ("day", "week"):
        return date_format(day, "j M")
    if period == "month":
        return date_format(day, "M Y")
    if period == "quarter":
        return _("Q%(quarter)d %(year)d") % {"quarter": (day.month + 2) // 3, "year": day.year}
    return str(day.year)


def rows_of(period: str, reports: Iterable[Report]) -> list[Row]:
    """Return a row for each period, oldest first."""
    rows: list[Row] = []
    for report in reports:
        day, counts, changes = day_of(report), report["usage"], report["growth"]
        before = rows[-1].active if rows else None
        rows.append(
            Row(
                start=day,
                name=name_of(period, day),
                short=short_name_of(period, day),
                complete=report["period"]["complete"],
                registered=counts["registered_users"],
                activated=counts["activated_users"],
                active=counts["active_users"],
                new=changes["new_users"],
                retained=changes["retained_users"],
                resurrected=changes["resurrected_users"],
                churned=changes["churned_users"],
                change=counts["active_users"] / before - 1 if before else None,
            )
        )
    return rows


def cohorts_of(period: str, reports: Iterable[Report]) -> list[Cohort]:
    """Return the retention triangle, oldest cohort first, without empty and unknown cohorts."""
    cohorts = []
    for report in reports:
        found = report["retention"]
        users = found["cohort_users"]
        if users:
            ages = zip(found["retained_users"], found["complete"])
            cells = [Cell(retained, users, complete) for retained, complete in ages]
            cohorts.append(Cohort(name=name_of(period, day_of(report)), users=users, cells=cells))
    return cohorts


# Charts


def grouped(number: int) -> str:
    return number_format(number, force_grouping=True)


def hint_of(row: Row, *bars: Bar) -> str:
    """Return the tooltip of a column, with a line for each of its bars."""
    title = row.name if row.complete else _("%(period)s, so far") % {"period": row.name}
    lines = [f"{label_of(bar.name)}: {grouped(bar.value)}" for bar in bars]
    return "\n".join([title, *lines])


def label_of(name: str) -> str:
    return {
        ACTIVE: _("Active"),
        NEW: _("New"),
        RESURRECTED: _("Returned"),
        CHURNED: _("Lost"),
    }[name]


def active_chart(rows: Sequence[Row]) -> Chart:
    columns = [
        Column(
            name=row.short,
            hint=hint_of(row, Bar(ACTIVE, row.active)),
            above=(Bar(ACTIVE, row.active),),
            partial=not row.complete,
        )
        for row in rows
    ]
    title = _("Active users")
    return draw(columns, name="active", title=title, description=described(rows), number=grouped)


def growth_chart(rows: Sequence[Row]) -> Chart | None:
    """Draw the growth chart. Return None if growth is not known in any of the periods."""
    if not any(row.knows_growth for row in rows):
        return None
    columns = [growth_column(row) for row in rows]
    title = _("New, returned and lost users")
    return draw(columns, name="growth", title=title, description=described(rows), number=grouped)


def growth_column(row: Row) -> Column:
    if not row.knows_growth:
        hint = _("%(period)s: not known") % {"period": row.name}
        return Column(name=row.short, hint=hint)
    # Retained users are left out: next to them, the others would be too small to see
    above = Bar(NEW, row.new or 0), Bar(RESURRECTED, row.resurrected or 0)
    below = (Bar(CHURNED, row.churned or 0),)
    return Column(
        name=row.short,
        hint=hint_of(row, *above, *below),
        above=above,
        below=below,
        partial=not row.complete,
    )


def described(rows: Sequence[Row]) -> str:
    return _("A column for each period from %(first)s to %(last)s. The table has the numbers.") % {
        "first": rows[0].name,
        "last": rows[-1].name,
    }


# CSV

CSV_HEADERS = (
    "period", "start", "complete", "registered_users", "activated_users", "active_users",
    "new_users", "retained_users", "resurrected_users", "churned_users",
)  # fmt: skip


def csv_rows(period: str, reports: Sequence[Report]) -> Iterator[list[Any]]:
    """Yield rows for programs: with the report's label of the period, the same in all languages."""
    for report, row in zip(reports, rows_of(period, reports)):
        label = next(iter(report["labels"].values()))
        yield [
            label, row.start.isoformat(), str(row.complete).lower(),
            row.registered, row.activated, row.active,
            row.new, row.retained, row.resurrected, row.churned,
        ]  # fmt: skip
