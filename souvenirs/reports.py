"""Usage reports: generators of one dictionary per period, oldest first.

    {
        "period": {"start": datetime, "end": datetime, "complete": bool},
        "labels": {...},
        "usage": {"registered_users": int, "activated_users": int, "active_users": int},
    }

A period contains the instants with start <= t < end. A report runs up to its `end`, by default now,
which cuts the last period short; a period that is cut short or not over is not complete. A report
runs two queries, however many periods it has: one for active users, one for accounts (and a third
if it has to find its start). Periods that are not shown are not counted.

Subscription periods count from the subscription start, at its wall time in its zone. If that zone
is datetime.timezone.utc, as in datetimes from the database, or if there is none, it is the site's
zone; ZoneInfo("UTC") stays UTC. Calendar periods are always in the site's zone. A bound may also be
a date, which means the site's midnight. Periods are aware datetimes, or naive ones if USE_TZ is
False.

Parameters of all reports:

start: leave out periods that end at or before it.
end: where the report ends, unless that is later than now.
recent: only this many periods, the last ones.

Usage reports also take:

by: a path from the user model, such as "subscription__plan": also count active users by its values,
    as `control.count_active_users` does. "usage" then has a Counter, "active_users_by", which takes
    one more query.

Reports raise ReportError, a ValueError, if there are more than MAX_PERIODS periods, even with
`recent`, or one beyond the years 1 to 9999.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timezone
from itertools import repeat
from typing import Any

from souvenirs import periods, spans
from souvenirs.cohort_reports import active_days, changes, growth, retention
from souvenirs.conf import conf
from souvenirs.history import accounts, counting
from souvenirs.history.segments import By
from souvenirs.periods import Interval
from souvenirs.spans import Labels, ReportError, Span

__all__ = [
    "ReportError",
    "active_days",
    "calendar_daily_usage",
    "calendar_monthly_usage",
    "calendar_overview",
    "calendar_quarterly_usage",
    "calendar_weekly_usage",
    "calendar_yearly_usage",
    "customer_monthly_usage",
    "customer_quarterly_usage",
    "customer_yearly_usage",
    "daily_usage",
    "growth",
    "registered_users_as_of",
    "retention",
    "usage_for_periods",
]

Usage = dict[str, Any]


def daily_usage(
    subscription_start: date,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: By | None = None,
) -> Iterator[Usage]:
    """Days that begin at the subscription start's time of day, with the labels of their
    subscription month: see `customer_monthly_usage`."""
    return _report(_subscription_days(_anchor(subscription_start)), start, end, recent, by)


def customer_monthly_usage(
    subscription_start: date,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: By | None = None,
) -> Iterator[Usage]:
    """Months from the subscription start. Labels: year_month "Y01 M01", year_quarter "Y01 Q1",
    year "Y01"."""
    months = enumerate(periods.iter_months(_anchor(subscription_start)))
    return _report((Span(*month, _month_labels(n)) for n, month in months), start, end, recent, by)


def customer_quarterly_usage(
    subscription_start: date,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: By | None = None,
) -> Iterator[Usage]:
    """Three months each from the subscription start. Labels: year_quarter "Y01 Q1", year "Y01"."""
    quarters = enumerate(periods.iter_quarters(_anchor(subscription_start)))
    of_quarters = (Span(*quarter, _quarter_labels(n)) for n, quarter in quarters)
    return _report(of_quarters, start, end, recent, by)


def customer_yearly_usage(
    subscription_start: date,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: By | None = None,
) -> Iterator[Usage]:
    """Years from the subscription start. Label: year "Y01"."""
    years = enumerate(periods.iter_years(_anchor(subscription_start)))
    return _report((Span(*year, _year_labels(n)) for n, year in years), start, end, recent, by)


def calendar_daily_usage(
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: By | None = None,
) -> Iterator[Usage]:
    """Calendar days, from that of `start` (by default the first souvenir) on. Labels: calendar_date
    "2016-01-31", calendar_year_month "2016-01", calendar_year 2016."""
    return _calendar_report("day", start, end, recent, by)


def calendar_weekly_usage(
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: By | None = None,
) -> Iterator[Usage]:
    """ISO weeks, Monday to Sunday, from that of `start` (by default the first souvenir) on. Label:
    calendar_week "2016-W05", of the ISO year."""
    return _calendar_report("week", start, end, recent, by)


def calendar_monthly_usage(
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: By | None = None,
) -> Iterator[Usage]:
    """Calendar months, from that of `start` (by default the first souvenir) on. Labels:
    calendar_year_month "2016-01", calendar_year 2016."""
    return _calendar_report("month", start, end, recent, by)


def calendar_quarterly_usage(
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: By | None = None,
) -> Iterator[Usage]:
    """Calendar quarters, from that of `start` (by default the first souvenir) on. Labels:
    calendar_year_quarter "2016-Q1", calendar_year 2016."""
    return _calendar_report("quarter", start, end, recent, by)


def calendar_yearly_usage(
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: By | None = None,
) -> Iterator[Usage]:
    """Calendar years, from that of `start` (by default the first souvenir) on. Label: calendar_year
    2016."""
    return _calendar_report("year", start, end, recent, by)


def calendar_overview(
    period: str,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    ages: int | None = 12,
) -> Iterator[Usage]:
    """Calendar periods with usage, growth and retention, from one reading of the history: the
    dictionaries of the calendar report of usage, each with the "growth" of `growth` and the
    "retention" of `retention`.

    period: "day", "week", "month", "quarter" or "year".
    ages: as in `retention`; None to leave "retention" out.
    """
    chosen = spans.choose_calendar(period, start, end, recent)
    found = list(changes(period, chosen, ages=ages))
    active = [each["growth"]["active_users"] for each in found]
    for usage, each in zip(_usage(chosen, active=active), found):
        yield {**each, **usage}


def usage_for_periods(
    periods: Iterable[tuple[date, date]], *, by: By | None = None
) -> Iterator[Usage]:
    """Yield the usage of each (start, end) in order, as dictionaries without labels.

    Periods may overlap. There are two queries, however many periods there are, and one more with
    `by`. A period is complete if its end has passed. SOUVENIRS_USAGE_REPORTS_FUNCTION names a
    function that the reports call instead of this one; it may call this one, and add to the
    dictionaries.
    """
    pairs = list(periods)
    ranges = [Interval(spans.seconds(start), spans.seconds(end)) for start, end in pairs]
    yield from _usages(pairs, ranges, *_count(ranges, by))


def _usages(
    pairs: Sequence[tuple[date, date]],
    ranges: Sequence[Interval],
    active: Sequence[int],
    active_by: Iterable[Usage],
) -> Iterator[Usage]:
    """Yield what `usage_for_periods` yields for these periods, whose active users are counted."""
    totals = accounts.as_of_all([interval.end for interval in ranges])
    now = time.time()
    for (start, end), interval, users, users_by, (registered, activated) in zip(
        pairs, ranges, active, active_by, totals
    ):
        yield {
            "period": {"start": start, "end": end, "complete": interval.end <= now},
            "usage": {
                "registered_users": registered,
                "activated_users": activated,
                "active_users": users,
                **users_by,
            },
        }


def _count(ranges: Sequence[Interval], by: By | None) -> tuple[list[int], list[Usage]]:
    """Count the active users of each range; also return what `by` adds to its usage."""
    if by is None:
        return counting.count_users_of_ranges(ranges), [{}] * len(ranges)
    counts = counting.count_users_of_ranges_by(ranges, by)
    return [each.users for each in counts], [{"active_users_by": each.by} for each in counts]


_usage_for_periods = usage_for_periods  # functions written for 1.0.2 wrap it under this name


def registered_users_as_of(date: date) -> tuple[int | None, int | None]:
    """Return how many users had joined before `date` (a datetime, or a date for the site's
    midnight), and how many of those have `is_active` now (all, if the user model has no such
    column). Return (None, None) if it has no datetime column `date_joined`."""
    return accounts.as_of(spans.moment(date)) or (None, None)


def _calendar_report(
    name: str, start: date | None, end: date | None, recent: int | None, by: By | None
) -> Iterator[Usage]:
    yield from _usage(spans.choose_calendar(name, start, end, recent), by)


def _report(
    of_subscription: Iterable[Span],
    start: date | None,
    end: date | None,
    recent: int | None,
    by: By | None,
) -> Iterator[Usage]:
    yield from _usage(spans.choose(of_subscription, start, end, recent), by)


def _usage(
    chosen: Sequence[Span], by: By | None = None, active: Sequence[int] | None = None
) -> Iterator[Usage]:
    """Yield the usage of these periods. `active`: their active users, if they are counted."""
    pairs = [(spans.shown(span.start), spans.shown(span.end)) for span in chosen]
    intervals = [span.interval for span in chosen]
    function = conf.usage_reports_function
    if function is not None:
        usages = list(function(pairs))
    elif active is not None:
        usages = list(_usages(pairs, intervals, active, repeat({})))
    else:
        usages = list(usage_for_periods(pairs, by=by))
    if len(usages) != len(chosen):
        raise ValueError(
            f"SOUVENIRS_USAGE_REPORTS_FUNCTION returned {len(usages)} dictionaries for"
            f" {len(chosen)} periods: it must return one for each period, in order"
        )
    added: Iterable[Usage] = repeat({})
    if function is not None and by is not None:
        _, added = _count(intervals, by)
    for usage, users_by, span in zip(usages, added, chosen):
        yield {
            **usage,
            "usage": {**usage["usage"], **users_by},
            "period": {**usage["period"], "complete": span.complete},
            "labels": span.labels,
        }


def _subscription_days(anchor: datetime) -> Iterator[Span]:
    months = enumerate(periods.iter_months(anchor))
    n, month = next(months)
    for day in periods.iter_days(anchor):
        if spans.seconds(day[0]) >= spans.seconds(month[1]):
            n, month = next(months)
        yield Span(*day, _month_labels(n))


def _month_labels(n: int) -> Labels:
    year_month = f"Y{n // 12 + 1:02} M{n % 12 + 1:02}"
    return {"year_month": year_month, **_quarter_labels(n // 3)}


def _quarter_labels(n: int) -> Labels:
    return {"year_quarter": f"Y{n // 4 + 1:02} Q{n % 4 + 1}", **_year_labels(n // 4)}


def _year_labels(n: int) -> Labels:
    return {"year": f"Y{n + 1:02}"}


def _anchor(subscription_start: date) -> datetime:
    when = spans.moment(subscription_start)
    return when.astimezone(conf.zone) if when.tzinfo == timezone.utc else when
