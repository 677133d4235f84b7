"""Reports on growth, retention and active days; `souvenirs.reports` has them too.

They are generators of dictionaries, oldest first, with "period" and "labels" as in the calendar
reports of usage. They run a fixed number of queries, however many periods they have. The terms are
defined in souvenirs.history.cohorts. A figure that is not known is None: in periods before the
first souvenir and, if the user model has no date_joined, in those that begin soon after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from typing import Any

from django.db import router

from souvenirs import periods, spans
from souvenirs.conf import conf
from souvenirs.history import figures
from souvenirs.history.cohorts import Figures, Series
from souvenirs.models import Souvenir
from souvenirs.spans import Span

Report = Iterator[dict[str, Any]]


def growth(
    period: str,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
) -> Report:
    """Report how many users of each calendar period are new, retained or resurrected, and how many
    users of the period before it churned.

    {
        "period": {"start": datetime, "end": datetime, "complete": bool},
        "labels": {...},
        "growth": {
            "active_users": int,
            "new_users": int | None,
            "retained_users": int | None,
            "resurrected_users": int | None,
            "churned_users": int | None,
        },
    }

    In a period that is not complete, the figures cover the time so far.

    period: "day", "week", "month", "quarter" or "year".
    start, end, recent: as in all reports.
    """
    yield from changes(period, spans.choose_calendar(period, start, end, recent), ages=None)


def retention(
    period: str,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    ages: int = 12,
) -> Report:
    """Report how many of the new users of each calendar period (its cohort) were active in the
    periods that followed.

    {
        "period": {"start": datetime, "end": datetime, "complete": bool},
        "labels": {...},
        "retention": {
            "cohort_users": int | None,
            "retained_users": [int, ...],
            "complete": [bool, ...],
        },
    }

    "retained_users" has one number for each age, from 0 (the cohort itself) to `ages`, or to the
    last period of the report. "complete" says, for each age, whether its period is complete. Both
    lists are empty if the cohort is not known.

    period: "day", "week", "month", "quarter" or "year".
    start, end, recent: of the cohorts, as in all reports.
    """
    for each in changes(period, spans.choose_calendar(period, start, end, recent), ages=ages):
        del each["growth"]
        yield each


def changes(period: str, chosen: Sequence[Span], *, ages: int | None) -> Report:
    """Yield the dictionaries of `growth` for these consecutive calendar periods, each with the
    "retention" of `retention` (unless `ages` is None), from one sweep over the history, which is
    most of the work of either report.

    Raises ValueError if `ages` is negative.
    """
    if ages is not None and ages < 0:
        raise ValueError(f"ages must be a number of periods, not {ages}")
    if not chosen:
        return
    intervals = [span.interval for span in chosen]
    before = periods.previous_calendar_period(period, intervals[0].start, conf.zone)
    length = 0 if ages is None else min(ages + 1, len(chosen))
    found = _read(Series((before, *intervals), ages=tuple(range(length))))[1:]
    for number, (span, own) in enumerate(zip(chosen, found)):
        change = own.growth
        report = {
            "period": span.period,
            "labels": span.labels,
            "growth": {
                "active_users": own.active,
                "new_users": change and change.new,
                "retained_users": change and change.retained,
                "resurrected_users": change and change.resurrected,
                "churned_users": change and change.churned,
            },
        }
        if ages is not None:
            later = zip(chosen[number : number + length], found[number:])
            report["retention"] = _of_cohort(later)
        yield report


def _of_cohort(later: Iterable[tuple[Span, Figures]]) -> dict[str, Any]:
    """Return the "retention" of `retention` for a cohort, given its period and those after it."""
    known = [
        (each.retention[age], then.complete)
        for age, (then, each) in enumerate(later)
        if age in each.retention
    ]
    return {
        "cohort_users": known[0][0].cohort if known else None,
        "retained_users": [each.retained for each, _ in known],
        "complete": [complete for _, complete in known],
    }


def active_days(end: date | None = None, days: int = 28) -> Report:
    """Report on how many of the last `days` calendar days users were active: a dictionary for each
    number of days, from 1 on. Only days that were over at `end` (by default now) count.

    {
        "period": {"start": datetime, "end": datetime, "complete": bool},
        "labels": {"active_days": int},
        "usage": {"active_users": int},
    }

    "active_users" were active on exactly that many days. All dictionaries have the same period,
    which covers these days; it is not complete if it begins before the first souvenir.
    """
    if days < 1:
        raise ValueError(f"days must be a positive number of days, not {days}")
    t = time.time() if end is None else min(spans.seconds(end), time.time())
    window: list[periods.Interval] = []
    for _ in range(days):
        window.insert(0, periods.previous_calendar_period("day", t, conf.zone))
        t = window[0].start
    last = _read(Series(tuple(window), window=days))[-1]
    span = Span(
        datetime.fromtimestamp(window[0].start, conf.zone),
        datetime.fromtimestamp(window[-1].end, conf.zone),
        {},
        last.is_window_known,
    )
    for number, users in enumerate(last.active_days or []):
        if number:
            yield {
                "period": span.period,
                "labels": {"active_days": number},
                "usage": {"active_users": users},
            }


def _read(series: Series) -> list[Figures]:
    return figures.read_figures({"": series}, router.db_for_read(Souvenir))[""]
