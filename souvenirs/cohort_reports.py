"""Reports on growth, retention and active days; `souvenirs.reports` has them too.

They are generators of dictionaries, oldest first, with "period" and "labels" like those of the
calendar reports of usage, and take a fixed number of queries however many periods they have. What
the words mean: see souvenirs.history.cohorts. A figure that is not known is None: of periods before
the first souvenir, or, where the user model has no date_joined, of those that begin soon after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

from django.db import router

from souvenirs import periods, spans
from souvenirs.conf import conf
from souvenirs.history import figures
from souvenirs.history.cohorts import Figures, Series
from souvenirs.models import Souvenir

Report = Iterator[dict[str, Any]]


def growth(
    period: str,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
) -> Report:
    """How many users of each calendar period are new, retained or resurrected, and how many users
    of the period before churned.

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

    Those of a period that is not complete are of the time so far.

    period: "day", "week", "month", "quarter" or "year".
    start, end, recent: as in all reports.
    """
    for each in growth_and_retention(period, start, end, recent=recent, ages=None):
        del each["retention"]
        yield each


def retention(
    period: str,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    ages: int = 12,
) -> Report:
    """How many of the users who were new in each calendar period, its cohort, were active in the
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

    "retained_users" are those of each age: from 0, which is the cohort itself, to `ages`, or to the
    period that the report ends in. "complete" says of each age whether its period is complete. The
    lists are empty where the cohort is not known.

    period: "day", "week", "month", "quarter" or "year".
    start, end, recent: of the cohorts, as in all reports.
    """
    for each in growth_and_retention(period, start, end, recent=recent, ages=ages):
        del each["growth"]
        yield each


def growth_and_retention(
    period: str,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    ages: int | None = 12,
) -> Report:
    """The dictionaries of `growth` with the "retention" of `retention`, from one sweep over the
    history, which is most of the work of either. ages: None for growth alone."""
    if ages is not None and ages < 0:
        raise ValueError(f"ages is {ages}: give a number of periods")
    chosen = spans.choose_calendar(period, start, end, recent)
    if not chosen:
        return
    intervals = [span.interval for span in chosen]
    before = periods.previous_calendar_period(period, intervals[0].start, conf.zone)
    length = 0 if ages is None else min(ages + 1, len(chosen))
    found = _read(Series((before, *intervals), ages=tuple(range(length))))[1:]
    for number, (span, own) in enumerate(zip(chosen, found)):
        later = zip(chosen[number : number + length], found[number:])
        of_cohort = [
            (each.retention[age], then.complete)
            for age, (then, each) in enumerate(later)
            if age in each.retention
        ]
        changes = own.growth
        yield {
            "period": span.period,
            "labels": span.labels,
            "growth": {
                "active_users": own.active,
                "new_users": changes and changes.new,
                "retained_users": changes and changes.retained,
                "resurrected_users": changes and changes.resurrected,
                "churned_users": changes and changes.churned,
            },
            "retention": {
                "cohort_users": of_cohort[0][0].cohort if of_cohort else None,
                "retained_users": [each.retained for each, _ in of_cohort],
                "complete": [complete for _, complete in of_cohort],
            },
        }


def active_days(end: date | None = None, days: int = 28) -> Report:
    """On how many of the last `days` calendar days that are over, or were at `end`, users were
    active: a dictionary for each number of days, from 1 on.

    {
        "period": {"start": datetime, "end": datetime, "complete": bool},
        "labels": {"active_days": int},
        "usage": {"active_users": int},
    }

    "active_users" were active on exactly that many days. All have the same period, those days; it
    is not complete if it begins before the first souvenir.
    """
    if days < 1:
        raise ValueError(f"days is {days}: give a number of days")
    t = time.time() if end is None else min(spans.seconds(end), time.time())
    window: list[periods.Interval] = []
    for _ in range(days):
        window.insert(0, periods.previous_calendar_period("day", t, conf.zone))
        t = window[0].start
    last = _read(Series(tuple(window), window=days))[-1]
    span = spans.Span(
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
