"""Usage reports: periods x counts -> dictionaries, oldest first.

    {
        "period": {"start": datetime, "end": datetime, "complete": bool},
        "labels": {...},
        "usage": {"registered_users": int, "activated_users": int, "active_users": int},
    }

A period holds the instants with start <= t < end. A report goes up to its `end`, now by default,
which cuts the last period; that one is not complete, nor is any that is not over. A report is a
generator, and takes two queries however many periods it has (three where it has to look for its
start): one for active users, one for accounts. Periods that are not shown are not counted.

Subscription periods count from the subscription start, at its time on the clocks of its zone. Where
that is datetime.timezone.utc, as it is in datetimes from the database, or none, the zone is the
site's; ZoneInfo("UTC") stays UTC. Calendar periods are always the site's. A bound may also be a
date: the site's midnight. Periods are aware datetimes, or naive ones where USE_TZ is False.

Parameters of all reports:

start: leave out the periods that end at or before it.
end: where the report ends.
recent: only so many periods, the last ones.
by: a path from the user model, such as "subscription__plan", by which active users are counted too:
    see `control.count_active_users`. "usage" then has a Counter, "active_users_by", for which
    there is one more query.

Reports raise ReportError, a ValueError, if they have more than MAX_PERIODS periods, `recent` or
not, or one beyond the years 1 to 9999.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, timezone
from itertools import repeat
from typing import Any, NamedTuple

from django.conf import settings

from souvenirs import periods, timestamps
from souvenirs.conf import conf
from souvenirs.history import accounts, counting
from souvenirs.periods import Interval

Labels = dict[str, Any]
Usage = dict[str, Any]

MAX_PERIODS = 100_000


class ReportError(ValueError):
    """Why there is no such report."""


class Span(NamedTuple):
    """A period, not cut, with its labels."""

    start: datetime
    end: datetime
    labels: Labels


def daily_usage(
    subscription_start: date,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: str | None = None,
) -> Iterator[Usage]:
    """Days from the subscription start's time of day, with the labels of their subscription month:
    see `customer_monthly_usage`."""
    return _report(_subscription_days(_anchor(subscription_start)), start, end, recent, by)


def customer_monthly_usage(
    subscription_start: date,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: str | None = None,
) -> Iterator[Usage]:
    """Months from the subscription start. Labels: year_month "Y01 M01", year_quarter "Y01 Q1",
    year "Y01"."""
    months = enumerate(periods.iter_months(_anchor(subscription_start)))
    spans = (Span(*month, _month_labels(n)) for n, month in months)
    return _report(spans, start, end, recent, by)


def customer_quarterly_usage(
    subscription_start: date,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: str | None = None,
) -> Iterator[Usage]:
    """Three months each from the subscription start. Labels: year_quarter "Y01 Q1", year "Y01"."""
    quarters = enumerate(periods.iter_quarters(_anchor(subscription_start)))
    spans = (Span(*quarter, _quarter_labels(n)) for n, quarter in quarters)
    return _report(spans, start, end, recent, by)


def customer_yearly_usage(
    subscription_start: date,
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: str | None = None,
) -> Iterator[Usage]:
    """Years from the subscription start. Label: year "Y01"."""
    years = enumerate(periods.iter_years(_anchor(subscription_start)))
    spans = (Span(*year, _year_labels(n)) for n, year in years)
    return _report(spans, start, end, recent, by)


def calendar_daily_usage(
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: str | None = None,
) -> Iterator[Usage]:
    """Calendar days from that of `start` on; without, from that of the first souvenir on. Labels:
    calendar_date "2016-01-31", calendar_year_month "2016-01", calendar_year 2016."""
    return _calendar_report(
        "day",
        lambda day: {"calendar_date": day.isoformat(), **_calendar_month_labels(day)},
        start,
        end,
        recent,
        by,
    )


def calendar_weekly_usage(
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: str | None = None,
) -> Iterator[Usage]:
    """ISO weeks, from Monday to Sunday, from that of `start` on; without, from that of the first
    souvenir on. Label: calendar_week "2016-W05", of the ISO year."""
    return _calendar_report(
        "week", lambda day: {"calendar_week": f"{day:%G-W%V}"}, start, end, recent, by
    )


def calendar_monthly_usage(
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: str | None = None,
) -> Iterator[Usage]:
    """Calendar months from that of `start` on; without, from that of the first souvenir on. Labels:
    calendar_year_month "2016-01", calendar_year 2016."""
    return _calendar_report("month", _calendar_month_labels, start, end, recent, by)


def calendar_quarterly_usage(
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: str | None = None,
) -> Iterator[Usage]:
    """Calendar quarters from that of `start` on; without, from that of the first souvenir on.
    Labels: calendar_year_quarter "2016-Q1", calendar_year 2016."""
    return _calendar_report("quarter", _calendar_quarter_labels, start, end, recent, by)


def calendar_yearly_usage(
    start: date | None = None,
    end: date | None = None,
    *,
    recent: int | None = None,
    by: str | None = None,
) -> Iterator[Usage]:
    """Calendar years from that of `start` on; without, from that of the first souvenir on. Label:
    calendar_year 2016."""
    return _calendar_report("year", lambda day: {"calendar_year": day.year}, start, end, recent, by)


def usage_for_periods(
    periods: Iterable[tuple[date, date]], *, by: str | None = None
) -> Iterator[Usage]:
    """The usage of each of the (start, end), in their order, as dictionaries without labels.

    They may overlap. Two queries however many there are, and one more with `by`. A period is
    complete if its end has passed. SOUVENIRS_USAGE_REPORTS_FUNCTION names a function that the
    reports call in place of
    this one; it may call this one, and add to the dictionaries.
    """
    pairs = list(periods)
    ranges = [Interval(_seconds(start), _seconds(end)) for start, end in pairs]
    active, active_by = _count(ranges, by)
    totals = accounts.as_of_all([interval.end for interval in ranges]) or [(None, None)] * len(
        ranges
    )
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


def _count(ranges: Sequence[Interval], by: str | None) -> tuple[list[int], list[Usage]]:
    """The active users of each range; and what `by` adds to its usage."""
    if by is None:
        return counting.count_users_of_ranges(ranges), [{}] * len(ranges)
    counts = counting.count_users_of_ranges_by(ranges, by)
    return [each.users for each in counts], [{"active_users_by": each.by} for each in counts]


_usage_for_periods = usage_for_periods  # what functions written for 1.0.2 call to wrap it


def registered_users_as_of(date: date) -> tuple[int | None, int | None]:
    """How many users had joined before `date` (a datetime; a date is the site's midnight), and how
    many of those are active now, by `is_active` (all, where the user model has no such column).
    (None, None) where it has no datetime column `date_joined`."""
    return accounts.as_of(_moment(date)) or (None, None)


def _report(
    spans: Iterable[Span],
    start: date | None,
    end: date | None,
    recent: int | None,
    by: str | None,
) -> Iterator[Usage]:
    now = time.time()
    limit = MAX_PERIODS if recent is None else min(recent, MAX_PERIODS)
    if limit < 0:
        raise ValueError(f"recent is {recent}: give a number of periods")
    try:
        chosen = _choose(spans, start, end, now, limit)
    except (OverflowError, ValueError):
        raise ReportError("periods must lie within the years 1 to 9999 in every zone") from None
    if chosen is None:
        raise ReportError(f"a report has at most {MAX_PERIODS:,} periods, and this one has more")
    pairs = [(_shown(span.start), _shown(span.end)) for span, _ in chosen]
    function = conf.usage_reports_function
    usages = list(usage_for_periods(pairs, by=by) if function is None else function(pairs))
    if len(usages) != len(chosen):
        raise ValueError(
            f"SOUVENIRS_USAGE_REPORTS_FUNCTION gave {len(usages)} dictionaries for {len(chosen)}"
            " periods: let it give one for each, in their order"
        )
    added: Iterable[Usage] = repeat({})
    if function is not None and by is not None:
        _, added = _count([Interval(*map(_seconds, pair)) for pair in pairs], by)
    for usage, users_by, (span, is_complete) in zip(usages, added, chosen):
        yield {
            **usage,
            "usage": {**usage["usage"], **users_by},
            "period": {**usage["period"], "complete": is_complete},
            "labels": span.labels,
        }


def _choose(
    spans: Iterable[Span], start: date | None, end: date | None, now: float, limit: int
) -> deque[tuple[Span, bool]] | None:
    """The last `limit` periods, and whether each is complete. None if there are too many to look
    at."""
    first = None if start is None else _seconds(start)
    last = now if end is None else _seconds(end)
    chosen: deque[tuple[Span, bool]] = deque(maxlen=limit)
    for number, span in enumerate(spans):
        if _seconds(span.start) >= last:
            break
        if number == MAX_PERIODS:
            return None
        full_end = _seconds(span.end)
        if full_end > last:
            zone = span.start.tzinfo
            cut = datetime.fromtimestamp(now, zone) if end is None else _moment(end)
            span = span._replace(end=cut)
        if first is None or first < min(full_end, last):
            chosen.append((span, full_end <= min(last, now)))
    return chosen


def _calendar_report(
    name: str,
    labels: Callable[[date], Labels],
    start: date | None,
    end: date | None,
    recent: int | None,
    by: str | None,
) -> Iterator[Usage]:
    t = counting.first_recorded() if start is None else _seconds(start)
    yield from _report(
        _calendar_spans(name, labels, time.time() if t is None else t), None, end, recent, by
    )


def _calendar_spans(name: str, labels: Callable[[date], Labels], t: float) -> Iterator[Span]:
    while True:
        start, end = periods.calendar_period(name, t, conf.zone)
        yield Span(
            datetime.fromtimestamp(start, conf.zone),
            datetime.fromtimestamp(end, conf.zone),
            labels(periods.day_containing(start, conf.zone)),
        )
        t = end


def _subscription_days(anchor: datetime) -> Iterator[Span]:
    months = enumerate(periods.iter_months(anchor))
    n, month = next(months)
    for day in periods.iter_days(anchor):
        if _seconds(day[0]) >= _seconds(month[1]):
            n, month = next(months)
        yield Span(*day, _month_labels(n))


def _month_labels(n: int) -> Labels:
    year_month = f"Y{n // 12 + 1:02} M{n % 12 + 1:02}"
    return {"year_month": year_month, **_quarter_labels(n // 3)}


def _quarter_labels(n: int) -> Labels:
    return {"year_quarter": f"Y{n // 4 + 1:02} Q{n % 4 + 1}", **_year_labels(n // 4)}


def _year_labels(n: int) -> Labels:
    return {"year": f"Y{n + 1:02}"}


def _calendar_month_labels(day: date) -> Labels:
    return {"calendar_year_month": f"{day:%Y-%m}", "calendar_year": day.year}


def _calendar_quarter_labels(day: date) -> Labels:
    quarter = f"{day:%Y}-Q{(day.month + 2) // 3}"
    return {"calendar_year_quarter": quarter, "calendar_year": day.year}


def _moment(when: date) -> datetime:
    """A bound as an aware datetime: see the module's docstring."""
    if isinstance(when, datetime):
        return timestamps.aware(when)
    return datetime.fromtimestamp(periods.midnight(when, conf.zone), conf.zone)


def _seconds(when: date) -> float:
    return timestamps.to_seconds(_moment(when))


def _anchor(subscription_start: date) -> datetime:
    when = _moment(subscription_start)
    return when.astimezone(conf.zone) if when.tzinfo == timezone.utc else when


def _shown(when: datetime) -> datetime:
    return when if settings.USE_TZ else timestamps.to_site(when)
