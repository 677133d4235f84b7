"""Choose the periods of a report, with their labels, and whether each is complete."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime
from typing import Any, NamedTuple

from django.conf import settings

from souvenirs import periods, timestamps
from souvenirs.conf import conf
from souvenirs.history import counting
from souvenirs.periods import Interval

Labels = dict[str, Any]

MAX_PERIODS = 100_000


class ReportError(ValueError):
    """A report cannot be produced; the message says why."""


class Span(NamedTuple):
    """A period with its labels. It is complete if it is over and was not cut short."""

    start: datetime
    end: datetime
    labels: Labels
    complete: bool = False

    @property
    def interval(self) -> Interval:
        return Interval(seconds(self.start), seconds(self.end))

    @property
    def period(self) -> dict[str, Any]:
        """The period as reports show it."""
        return {"start": shown(self.start), "end": shown(self.end), "complete": self.complete}


def choose(
    spans: Iterable[Span], start: date | None, end: date | None, recent: int | None
) -> list[Span]:
    """Return the spans that a report shows: see the module `reports` for parameters and errors."""
    now = time.time()
    limit = MAX_PERIODS if recent is None else min(recent, MAX_PERIODS)
    if limit < 0:
        raise ValueError(f"recent must be a number of periods, not {recent}")
    try:
        chosen = _last(spans, start, end, now, limit)
    except (OverflowError, ValueError):
        raise ReportError("periods must lie within the years 1 to 9999 in every zone") from None
    if chosen is None:
        raise ReportError(f"a report has at most {MAX_PERIODS:,} periods, and this one has more")
    return list(chosen)


def _last(
    spans: Iterable[Span], start: date | None, end: date | None, now: float, limit: int
) -> deque[Span] | None:
    """Return the last `limit` periods, or None if there are more than MAX_PERIODS to go through."""
    first = None if start is None else seconds(start)
    last = now if end is None else min(now, seconds(end))
    chosen: deque[Span] = deque(maxlen=limit)
    for number, span in enumerate(spans):
        if seconds(span.start) >= last:
            break
        if number == MAX_PERIODS:
            return None
        full_end = seconds(span.end)
        if full_end > last:
            zone = span.start.tzinfo
            cut = datetime.fromtimestamp(now, zone)
            if end is not None and last < now:
                cut = moment(end)
            span = span._replace(end=cut)
        if first is None or first < min(full_end, last):
            chosen.append(span._replace(complete=full_end <= min(last, now)))
    return chosen


def choose_calendar(
    name: str, start: date | None, end: date | None, recent: int | None
) -> list[Span]:
    """Return the calendar periods from the one that contains `start` on; without `start`, from the
    one that contains the first souvenir on.

    Raises ValueError if there is no calendar period of this name; other errors are those of
    `choose`.
    """
    if name not in CALENDAR_LABELS:
        names = ", ".join(CALENDAR_LABELS)
        raise ValueError(f"{name!r} is not a calendar period; use one of {names}")
    t = counting.first_recorded() if start is None else seconds(start)
    return choose(_calendar_spans(name, time.time() if t is None else t), None, end, recent)


def _calendar_spans(name: str, t: float) -> Iterator[Span]:
    labels = CALENDAR_LABELS[name]
    while True:
        start, end = periods.calendar_period(name, t, conf.zone)
        yield Span(
            datetime.fromtimestamp(start, conf.zone),
            datetime.fromtimestamp(end, conf.zone),
            labels(periods.day_containing(start, conf.zone)),
        )
        t = end


def _day_labels(day: date) -> Labels:
    return {"calendar_date": day.isoformat(), **_month_labels(day)}


def _week_labels(day: date) -> Labels:
    return {"calendar_week": f"{day:%G-W%V}"}


def _month_labels(day: date) -> Labels:
    return {"calendar_year_month": f"{day:%Y-%m}", "calendar_year": day.year}


def _quarter_labels(day: date) -> Labels:
    quarter = f"{day:%Y}-Q{(day.month + 2) // 3}"
    return {"calendar_year_quarter": quarter, "calendar_year": day.year}


def _year_labels(day: date) -> Labels:
    return {"calendar_year": day.year}


CALENDAR_LABELS: dict[str, Callable[[date], Labels]] = {
    "day": _day_labels,
    "week": _week_labels,
    "month": _month_labels,
    "quarter": _quarter_labels,
    "year": _year_labels,
}


def moment(when: date) -> datetime:
    """Return a bound as an aware datetime: see the module `reports`."""
    if isinstance(when, datetime):
        return timestamps.aware(when)
    return datetime.fromtimestamp(periods.midnight(when, conf.zone), conf.zone)


def seconds(when: date) -> float:
    """Return the Unix time of a bound."""
    return timestamps.to_seconds(moment(when))


def shown(when: datetime) -> datetime:
    """Return a bound as reports show it."""
    return when if settings.USE_TZ else timestamps.to_site(when)
