"""Select the periods that a page or a JSON document shows, from the parameters of its URL."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import Any

from django.utils.translation import gettext as _

from souvenirs import periods, reports
from souvenirs.conf import conf
from souvenirs.history import counting
from souvenirs.periods import NAMES
from souvenirs.timestamps import YEARS

DEFAULT_PERIOD = "month"
DEFAULT_RECENT = {"day": 30, "week": 26, "month": 12, "quarter": 8, "year": 5}
MAX_PERIODS = 400
MAX_DAYS = {"day": 1, "week": 7, "month": 31, "quarter": 92, "year": 366}
MAX_DIGITS = 9

USAGE: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "day": reports.calendar_daily_usage,
    "week": reports.calendar_weekly_usage,
    "month": reports.calendar_monthly_usage,
    "quarter": reports.calendar_quarterly_usage,
    "year": reports.calendar_yearly_usage,
}


class SelectionError(ValueError):
    """The parameters are invalid; the message says why, for the client."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Calendar periods from `start` (inclusive) to `end` (exclusive), or to now if that is earlier;
    only the last `recent` of them. Each of the three may be None.

    now: Unix seconds. Reports that are shown together must use the same `now`: a new period may
        begin between two readings of the clock.
    """

    period: str = DEFAULT_PERIOD
    start: date | None = None
    end: date | None = None
    recent: int | None = None
    now: float = field(default_factory=time.time, compare=False)

    @property
    def _most(self) -> int:
        return self.recent or MAX_PERIODS + 1

    @cached_property
    def first_day(self) -> date | None:
        """The day on which a report has to start so that it goes through no more periods than it
        shows, however long ago `start` or the first souvenir is. None: at the first souvenir."""
        today = periods.day_containing(self.now, conf.zone)
        end = today if self.end is None else min(self.end, today)
        earliest = end - timedelta(days=MAX_DAYS[self.period] * (self._most + 1))
        if self.start is not None:
            return max(self.start, earliest)
        t = counting.first_recorded()
        is_later = t is not None and earliest > periods.day_containing(t, conf.zone)
        return earliest if is_later else None

    @property
    def _end(self) -> date:
        now = datetime.fromtimestamp(self.now, conf.zone)
        return now if self.end is None or self.end > now.date() else self.end

    def read(self, report: Callable[..., Iterator[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return the dictionaries of `report`, which is called with start, end and recent.

        Raises SelectionError if there are more than MAX_PERIODS periods, or the report raises
        ReportError.
        """
        try:
            rows = list(report(self.first_day, self._end, recent=self._most))
        except reports.ReportError as error:
            raise SelectionError(str(error)) from None
        if len(rows) > MAX_PERIODS:
            raise SelectionError(
                _("There are more than %(most)d periods: choose longer ones, or a later start.")
                % {"most": MAX_PERIODS}
            )
        return rows


def select(
    params: Mapping[str, str], period: str | None = None, now: float | None = None
) -> Selection:
    """Return the selection for the parameters `period`, `start`, `end` and `recent`; empty ones are
    ignored. Without `start` and `recent`, select DEFAULT_RECENT periods. Raises SelectionError.

    period: used instead of the parameter.
    now: used instead of the clock, in Unix seconds.
    """
    name = period or params.get("period") or DEFAULT_PERIOD
    if name not in NAMES:
        raise SelectionError(
            _("The period is %(value)r: it must be one of %(names)s.")
            % {"value": name, "names": ", ".join(NAMES)}
        )
    start, end = to_date(params, "start"), to_date(params, "end")
    if start is not None and end is not None and start >= end:
        raise SelectionError(
            _("The start, %(start)s, must be earlier than the end, %(end)s.")
            % {"start": start, "end": end}
        )
    recent = to_number(params, "recent")
    if recent is None and start is None:
        recent = DEFAULT_RECENT[name]
    return Selection(
        period=name,
        start=start,
        end=end,
        recent=recent,
        now=time.time() if now is None else now,
    )


def to_date(params: Mapping[str, str], name: str) -> date | None:
    text = params.get(name)
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.year not in YEARS:
        raise SelectionError(
            _("%(name)s is %(value)r: write a date like 2026-01-31.")
            % {"name": name, "value": text}
        )
    return day


def to_number(params: Mapping[str, str], name: str) -> int | None:
    text = params.get(name)
    if not text:
        return None
    is_number = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    if not is_number or not 1 <= int(text) <= MAX_PERIODS:
        raise SelectionError(
            _("%(name)s is %(value)r: write a number from 1 to %(most)d.")
            % {"name": name, "value": text, "most": MAX_PERIODS}
        )
    return int(text)
