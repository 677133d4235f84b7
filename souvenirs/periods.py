"""Calendar arithmetic, on Unix seconds and on datetimes. Pure: no settings, no database.

A local day lasts from the first instant of its date to the first instant of the next date, so days
follow each other without gaps or overlaps, whatever the clocks do. They are 23, 24 or 25 hours long
(in Lord Howe half an hour shorter or longer), and empty if a date was skipped (Apia, 30 December
2011).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, timedelta, timezone, tzinfo
from datetime import time as clock_time
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from dateutil.relativedelta import relativedelta

ONE_DAY = timedelta(days=1)
NAMES = ("day", "week", "month", "quarter", "year")

EARLIEST, LATEST = -62_135_596_800, 253_402_214_400  # Unix seconds: the years 1 and 9999
BUCKET = 900  # seconds: the offset of every modern zone is a multiple of a quarter of an hour

UNITS = {"y": 31_536_000, "w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
MAX_DURATION = 292 * UNITS["y"]  # Prometheus's limit: it keeps durations as 64 bits of nanoseconds
DURATION = re.compile("".join(f"(?:([0-9]{{1,20}}){unit})?" for unit in UNITS))


class Interval(NamedTuple):
    """The instants t with start <= t < end, in Unix seconds."""

    start: float
    end: float


def parse_duration(text: str) -> int:
    """Convert a Prometheus duration such as "90m" or "1h30m" (years, weeks, days, hours, minutes,
    seconds; a year is 365 days) to seconds. Raises ValueError for anything else, for 0, and for
    more than 292 years.

    Source of the grammar: prometheus.io, Querying basics, Time durations; without milliseconds.
    """
    match = DURATION.fullmatch(text) if isinstance(text, str) else None
    seconds = sum(
        int(number) * unit
        for number, unit in zip(match.groups() if match else (), UNITS.values())
        if number
    )
    if not 0 < seconds <= MAX_DURATION:
        raise ValueError(f"{text!r} is not a duration; write it like '30m', '1h', '7d' or '1h30m'")
    return seconds


def bucket_containing(t: float) -> int:
    """Return the start of the quarter of an hour that contains `t`."""
    return int(t // BUCKET * BUCKET)


def bucket_after(t: float) -> int:
    """Return the start of the first quarter of an hour that begins at or after `t`."""
    return int(-(-t // BUCKET) * BUCKET)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union of the intervals, as disjoint intervals in ascending order."""
    found: list[Interval] = []
    for interval in sorted(interval for interval in intervals if interval.start < interval.end):
        if found and interval.start <= found[-1].end:
            found[-1] = Interval(found[-1].start, max(found[-1].end, interval.end))
        else:
            found.append(interval)
    return found


def gaps(interval: Interval, covered: Iterable[Interval]) -> list[Interval]:
    """Return the parts of `interval` not covered by `covered`, disjoint and in ascending order."""
    found = []
    start, end = interval
    for inner in merged(covered):
        if start < min(inner.start, end):
            found.append(Interval(start, min(inner.start, end)))
        start = max(start, inner.end)
    if start < end:
        found.append(Interval(start, end))
    return found


@lru_cache(maxsize=512)
def midnight(day: date, zone: ZoneInfo) -> int:
    """Return the Unix time of the first instant of the local date `day`, or of the next date if
    `day` was skipped."""
    wall = datetime.combine(day, clock_time(), tzinfo=zone)
    early, late = (
        int(wall.replace(fold=fold).astimezone(timezone.utc).timestamp()) for fold in (0, 1)
    )
    if early <= late:
        return early  # the usual case, and the first of two midnights where clocks went back
    # Clocks jumped over this midnight: the day begins where they did, between the two readings
    # (PEP 495 reads a time in a gap with the offset before it for fold=0, after it for fold=1).
    return _offset_change(late, early, zone)


def _offset_change(early: int, late: int, zone: tzinfo) -> int:
    """Return the first instant after `early` and up to `late` at which the offset is that of
    `late`."""
    after = datetime.fromtimestamp(late, zone).utcoffset()
    while late - early > 1:
        middle = (early + late) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == after:
            late = middle
        else:
            early = middle
    return late


class RepeatedHour(NamedTuple):
    """Clocks show the same times from `start` to `turn`, and again from there to `end`. Unix
    seconds."""

    start: int
    turn: int
    end: int


def repeated_hour(t: float, zone: tzinfo) -> RepeatedHour | None:
    """Return the repeated hour that contains `t`, or None, as for most times. (Some are shorter or
    longer than an hour.)"""
    t = math.floor(t)
    wall = datetime.fromtimestamp(t, zone)
    other = wall.replace(fold=1 - wall.fold)
    seconds = int(abs(wall.timestamp() - other.timestamp()))
    if not seconds:
        return None
    early = t - seconds if wall.fold else t
    turn = _offset_change(early, early + seconds, zone)
    return RepeatedHour(turn - seconds, turn, turn + seconds)


def day_containing(t: float, zone: ZoneInfo) -> date:
    """Return the date whose local day contains `t`. It differs from the wall date only where clocks
    went back over midnight: the repeated hour belongs to the new day, which had already begun."""
    day = datetime.fromtimestamp(math.floor(t), zone).date()
    while midnight(day + ONE_DAY, zone) <= t:
        day += ONE_DAY
    return day


def slot_containing(t: float, seconds: float, zone: ZoneInfo) -> Interval:
    """Return the rate-limit slot that contains `t`: a window of `seconds`, aligned to Unix time and
    cut at the ends of the local day, so that activity on both sides of midnight counts in both
    days."""
    day = day_containing(t, zone)
    start = t // seconds * seconds
    end = min(start + seconds, midnight(day + ONE_DAY, zone))
    return Interval(float(max(start, midnight(day, zone))), float(end))


def first_day(name: str, day: date) -> date:
    """Return the first date of the calendar period `name` (one of NAMES; weeks are ISO weeks) that
    contains `day`."""
    if name == "day":
        return day
    if name == "week":
        return day - timedelta(days=day.weekday())
    if name == "month":
        return day.replace(day=1)
    if name == "quarter":
        return day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
    if name == "year":
        return day.replace(month=1, day=1)
    raise ValueError(f"{name!r} is not a calendar period; use one of {', '.join(NAMES)}")


def calendar_period(name: str, t: float, zone: ZoneInfo) -> Interval:
    """Return the calendar period `name` that contains `t`. Raises ValueError for unknown names."""
    return _period(name, day_containing(t, zone), zone)


def previous_calendar_period(name: str, t: float, zone: ZoneInfo) -> Interval:
    """Return the last calendar period `name` that had ended by `t`; never an empty one."""
    day = first_day(name, day_containing(t, zone))
    period = _period(name, day - ONE_DAY, zone)
    while period.start == period.end:  # a date that was skipped
        day -= ONE_DAY
        period = _period(name, day - ONE_DAY, zone)
    return period


def _period(name: str, day: date, zone: ZoneInfo) -> Interval:
    first = first_day(name, day)
    # 32 days after the first of a month is in the next month, and so on; then take its first day
    after = {"day": 1, "week": 7, "month": 32, "quarter": 95, "year": 367}[name]
    return Interval(
        midnight(first, zone), midnight(first_day(name, first + timedelta(days=after)), zone)
    )


def iter_days(start: datetime, end: datetime | None = None) -> Iterator[tuple[datetime, datetime]]:
    """Yield consecutive days counted from `start` up to `end`, each as (start, end).

    Each day begins at the same wall time in `start`'s zone, also across daylight-saving changes; if
    clocks skipped that time, later by as much as they skipped; if they showed it twice, at the
    first one. The last day is cut at `end` and has that very object as its end; without `end` the
    iterator is endless. `start` and `end` are both aware, in any zones, or both naive.
    """
    return _anchored(start, end, lambda n: timedelta(days=n))


def iter_weeks(start: datetime, end: datetime | None = None) -> Iterator[tuple[datetime, datetime]]:
    """Periods of seven days counted from `start`: see `iter_days`."""
    return _anchored(start, end, lambda n: timedelta(weeks=n))


def iter_months(
    start: datetime, end: datetime | None = None
) -> Iterator[tuple[datetime, datetime]]:
    """Months counted from `start`: see `iter_days`. They begin on its day of the month, or on the
    last day of a shorter month."""
    return _anchored(start, end, lambda n: relativedelta(months=n))


def iter_quarters(
    start: datetime, end: datetime | None = None
) -> Iterator[tuple[datetime, datetime]]:
    """Periods of three such months: see `iter_months`."""
    return _anchored(start, end, lambda n: relativedelta(months=3 * n))


def iter_years(start: datetime, end: datetime | None = None) -> Iterator[tuple[datetime, datetime]]:
    """Periods of twelve such months: see `iter_months`. From 29 February they begin on the 28th in
    common years."""
    return _anchored(start, end, lambda n: relativedelta(years=n))


def _anchored(
    start: datetime, end: datetime | None, distance: Callable[[int], timedelta | relativedelta]
) -> Iterator[tuple[datetime, datetime]]:
    # Always count from the start: from one month to the next, the 31st would stay the 30th
    wall = start.replace(tzinfo=None, fold=0)
    for n in itertools.count(1):
        if end is not None and _instant(start) >= _instant(end):
            return
        after = _existing((wall + distance(n)).replace(tzinfo=start.tzinfo))
        if _instant(start) < _instant(after):  # not a date that was skipped
            is_cut = end is not None and _instant(after) > _instant(end)
            yield start, end if end is not None and is_cut else after
        start = after


def _instant(when: datetime) -> datetime:
    """Return a datetime for comparison: Python compares datetimes of one zone by wall time."""
    return when if when.tzinfo is None else when.astimezone(timezone.utc)


def _existing(when: datetime) -> datetime:
    """Return `when` as clocks show it: a time that they skipped becomes a later one."""
    return when if when.tzinfo is None else _instant(when).astimezone(when.tzinfo)
