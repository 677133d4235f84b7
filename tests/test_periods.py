from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from functools import cache
from types import GeneratorType
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from souvenirs import periods
from souvenirs.periods import Interval, parse_duration

MINUTE, HOUR, DAY = 60, 3_600, 86_400

# The first year in which the tests look at a zone. Since then, all its offsets are whole minutes.
ZONES = {
    "America/New_York": 1940,
    "Asia/Kolkata": 1940,
    "Australia/Lord_Howe": 1940,  # half an hour of daylight saving
    "Pacific/Apia": 1940,  # had no 30 December 2011
    "America/St_Johns": 1940,  # clocks were set back at 00:01, across midnight, until 2011
    "America/Toronto": 1900,  # clocks jumped from 23:30 to 00:30 on 30 March 1919
    "America/Havana": 1940,  # clocks jump from 00:00 to 01:00 and from 01:00 to 00:00
    "Asia/Beirut": 1940,  # clocks jump from 00:00 to 01:00 and from 00:00 to 23:00
    "UTC": 1940,
}
LAST_YEAR = 2037

# What all dates of one calendar period have in common, and no date of another one has
KEYS: dict[str, Callable[[date], object]] = {
    "day": lambda day: day,
    "week": lambda day: day.strftime("%G-W%V"),
    "month": lambda day: day.strftime("%Y-%m"),
    "quarter": lambda day: (day.year, "111222333444"[day.month - 1]),
    "year": lambda day: day.year,
}


def unix(*args: int) -> int:
    return int(datetime(*args, tzinfo=timezone.utc).timestamp())  # type: ignore[arg-type,misc]


def wall(t: float, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(t, zone)


@cache
def transitions(name: str) -> list[int]:
    """The times at which the zone's clocks change, found by checking every day, then every
    minute."""
    zone = ZoneInfo(name)
    found = []
    for day in range(unix(ZONES[name], 1, 1), unix(LAST_YEAR, 1, 1), DAY):
        before = wall(day, zone).utcoffset()
        if before != wall(day + DAY, zone).utcoffset():
            minutes = range(day, day + DAY + 1, MINUTE)
            found.append(next(t for t in minutes if wall(t, zone).utcoffset() != before))
    return found


@cache
def local_day(minute: int, zone: ZoneInfo) -> date:
    """The latest date that the zone's clocks have shown by this minute: that day has begun.

    Clocks are never set back by as much as 26 hours, so the last 26 hours suffice.
    """
    return max(wall(minute - past, zone).date() for past in range(0, 26 * HOUR, MINUTE))


def day_of(t: float, zone: ZoneInfo) -> date:
    return local_day(int(t // MINUTE * MINUTE), zone)


@st.composite
def zones_and_instants(draw: st.DrawFn) -> tuple[ZoneInfo, float]:
    """A zone and a time in it: anywhere, near a change of its clocks, or near a midnight."""
    name = draw(st.sampled_from(list(ZONES)))
    zone = ZoneInfo(name)
    places = [st.integers(unix(ZONES[name], 1, 3), unix(LAST_YEAR, 1, 1))]
    if transitions(name):
        places.append(st.sampled_from(transitions(name)))
    place = draw(st.one_of(places))
    if draw(st.booleans()):
        place = int(
            wall(place, zone).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
        )
    near = [
        st.sampled_from([0, 1, -1, MINUTE, -MINUTE, HOUR // 2, -HOUR // 2, HOUR, -HOUR, DAY, -DAY]),
        st.integers(-2 * DAY, 2 * DAY),
    ]
    return zone, place + draw(st.one_of(near)) + draw(st.sampled_from([0, 0, 0.5, 0.999]))


def days_around(t: float, zone: ZoneInfo, radius: int = 2) -> Iterator[date]:
    today = wall(t, zone).date()
    return (today + timedelta(days=n) for n in range(-radius, radius + 1))


APIA = ZoneInfo("Pacific/Apia")
ST_JOHNS = ZoneInfo("America/St_Johns")
TORONTO = ZoneInfo("America/Toronto")
odd_midnights = [
    example((APIA, unix(2011, 12, 30, 10))),
    example((ST_JOHNS, unix(2010, 11, 7, 2, 31))),
    example((TORONTO, unix(1919, 3, 31, 4, 30))),
]


def on_odd_midnights(test: Callable[..., None]) -> Callable[..., None]:
    for decorate in odd_midnights:
        test = decorate(test)
    return test


# Days


@on_odd_midnights
@given(zones_and_instants())
def test_midnight__is_the_first_minute_at_which_clocks_show_the_date_or_a_later_one(
    place: tuple[ZoneInfo, float],
) -> None:
    zone, t = place
    for day in days_around(t, zone, radius=1):
        midnight = periods.midnight(day, zone)
        assert midnight % MINUTE == 0
        assert local_day(midnight, zone) >= day
        assert local_day(midnight - MINUTE, zone) < day
        assert wall(midnight - 1, zone).date() < day


@on_odd_midnights
@given(zones_and_instants())
def test_day_containing__is_the_latest_date_that_clocks_have_shown(
    place: tuple[ZoneInfo, float],
) -> None:
    zone, t = place
    assert periods.day_containing(t, zone) == day_of(t, zone)


@on_odd_midnights
@given(zones_and_instants())
def test_day_containing__days_follow_each_other_without_gap_or_overlap(
    place: tuple[ZoneInfo, float],
) -> None:
    zone, t = place
    holding = []
    for day in days_around(t, zone):
        start = periods.midnight(day, zone)
        end = periods.midnight(day + timedelta(days=1), zone)
        assert start <= end
        if start <= t < end:
            holding.append(day)
        for inside in range(start, end, 5 * HOUR):
            assert periods.day_containing(inside, zone) == day
        if start < end:
            assert periods.day_containing(end - 0.5, zone) == day
    assert holding == [periods.day_containing(t, zone)]


def length_of_day(day: date, zone: ZoneInfo) -> float:
    return periods.midnight(day + timedelta(days=1), zone) - periods.midnight(day, zone)


@pytest.mark.parametrize(
    ("name", "day", "hours"),
    [
        ("America/New_York", date(2024, 3, 10), 23),
        ("America/New_York", date(2024, 11, 3), 25),
        ("Australia/Lord_Howe", date(2024, 4, 7), 24.5),
        ("Australia/Lord_Howe", date(2024, 10, 6), 23.5),
        ("Asia/Kolkata", date(2024, 3, 10), 24),
        ("America/Havana", date(2024, 3, 10), 23),
        ("America/Havana", date(2024, 11, 3), 25),
        ("Asia/Beirut", date(2022, 3, 27), 23),
        ("America/St_Johns", date(2010, 11, 6), 24),  # 00:00 came, then 23:01 to 23:59 again
        ("America/St_Johns", date(2010, 11, 7), 25),
        ("America/Toronto", date(1919, 3, 30), 23.5),
        ("America/Toronto", date(1919, 3, 31), 23.5),
        ("Pacific/Apia", date(2011, 12, 29), 24),
        ("Pacific/Apia", date(2011, 12, 30), 0),
        ("Pacific/Apia", date(2011, 12, 31), 24),
    ],
)
def test_midnight__length_of_a_day(name: str, day: date, hours: float) -> None:
    assert length_of_day(day, ZoneInfo(name)) == hours * HOUR


def test_midnight__where_clocks_went_from_2330_to_0030_the_day_begins_with_the_jump() -> None:
    jump = unix(1919, 3, 31, 4, 30)
    assert wall(jump - 1, TORONTO).strftime("%d %H:%M:%S") == "30 23:29:59"
    assert wall(jump, TORONTO).strftime("%d %H:%M:%S") == "31 00:30:00"
    assert periods.midnight(date(1919, 3, 31), TORONTO) == jump


def test_day_containing__hour_repeated_before_midnight_belongs_to_the_new_day() -> None:
    again = unix(2010, 11, 7, 2, 31)
    assert wall(again, ST_JOHNS).strftime("%d %H:%M:%S") == "06 23:01:00"
    assert periods.day_containing(again, ST_JOHNS) == date(2010, 11, 7)


def test_midnight__offset_of_odd_seconds() -> None:
    # St. John's was 3:30:52 behind Greenwich until 1935
    assert periods.midnight(date(1930, 1, 15), ST_JOHNS) == unix(1930, 1, 15, 3, 30, 52)


# Slots

lengths = st.one_of(
    st.sampled_from([1, 7, MINUTE, 900, HOUR, 5_000, 2 * HOUR, DAY, 3 * DAY, 0.5, 90.25]),
    st.integers(1, 2 * DAY),
)


@given(zones_and_instants(), lengths)
def test_slot_containing__contains_the_instant_and_is_at_most_as_long_as_requested(
    place: tuple[ZoneInfo, float], seconds: float
) -> None:
    zone, t = place
    slot = periods.slot_containing(t, seconds, zone)
    assert slot.start <= t < slot.end
    assert slot.end - slot.start <= seconds


@given(zones_and_instants(), lengths, st.one_of(st.floats(-2, 2), st.floats(-DAY, DAY)))
def test_slot_containing__is_the_same_for_the_same_step_of_the_clock_on_the_same_day(
    place: tuple[ZoneInfo, float], seconds: float, distance: float
) -> None:
    zone, t = place
    other = t + distance
    is_same_slot = periods.slot_containing(t, seconds, zone) == periods.slot_containing(
        other, seconds, zone
    )
    is_same_step = t // seconds == other // seconds
    assert is_same_slot == (is_same_step and day_of(t, zone) == day_of(other, zone))


@given(zones_and_instants(), lengths)
def test_slot_containing__spans_no_midnight(place: tuple[ZoneInfo, float], seconds: float) -> None:
    zone, t = place
    slot = periods.slot_containing(t, seconds, zone)
    days = {day_of(instant, zone) for instant in (slot.start, t, slot.end - 0.01)}
    assert days == {day_of(t, zone)}


@given(zones_and_instants(), lengths)
def test_slot_containing__slots_follow_each_other_without_gap_or_overlap(
    place: tuple[ZoneInfo, float], seconds: float
) -> None:
    zone, t = place
    slot = periods.slot_containing(t, seconds, zone)
    assert periods.slot_containing(slot.start, seconds, zone) == slot
    assert periods.slot_containing(slot.end, seconds, zone).start == slot.end


def test_slot_containing__hour_is_cut_at_midnight_of_a_half_hour_zone() -> None:
    kolkata = ZoneInfo("Asia/Kolkata")
    midnight = unix(2024, 5, 1, 18, 30)
    hour = Interval(midnight - HOUR // 2, midnight + HOUR // 2)
    assert periods.slot_containing(midnight - 1, HOUR, kolkata) == (hour.start, midnight)
    assert periods.slot_containing(midnight, HOUR, kolkata) == (midnight, hour.end)


# Calendar periods


@pytest.mark.parametrize("name", periods.NAMES)
@on_odd_midnights
@given(place=zones_and_instants())
def test_calendar_period__consists_of_the_days_with_the_same_key(
    name: str, place: tuple[ZoneInfo, float]
) -> None:
    zone, t = place
    key = KEYS[name]
    period = periods.calendar_period(name, t, zone)
    assert period.start <= t < period.end
    now = key(day_of(t, zone))
    assert key(day_of(period.start, zone)) == now
    assert key(day_of(period.end - 1, zone)) == now
    assert key(day_of(period.start - 1, zone)) != now
    assert key(day_of(period.end, zone)) != now


@pytest.mark.parametrize("name", periods.NAMES)
@on_odd_midnights
@given(place=zones_and_instants())
def test_previous_calendar_period__ends_where_the_current_begins_and_is_not_empty(
    name: str, place: tuple[ZoneInfo, float]
) -> None:
    zone, t = place
    key = KEYS[name]
    current = periods.calendar_period(name, t, zone)
    previous = periods.previous_calendar_period(name, t, zone)
    assert previous.end == current.start
    assert previous.start < previous.end
    before = key(day_of(current.start - 1, zone))
    assert key(day_of(previous.start, zone)) == before
    assert key(day_of(previous.start - 1, zone)) != before


@pytest.mark.parametrize(
    ("name", "first", "after"),
    [
        ("day", (2024, 2, 29), (2024, 3, 1)),
        ("week", (2024, 2, 26), (2024, 3, 4)),  # from Monday to Monday
        ("month", (2024, 2, 1), (2024, 3, 1)),
        ("quarter", (2024, 1, 1), (2024, 4, 1)),
        ("year", (2024, 1, 1), (2025, 1, 1)),
    ],
)
def test_calendar_period__of_a_leap_day(
    name: str, first: tuple[int, ...], after: tuple[int, ...]
) -> None:
    noon = unix(2024, 2, 29, 12)
    assert periods.calendar_period(name, noon, ZoneInfo("UTC")) == (unix(*first), unix(*after))


@pytest.mark.parametrize("day", [(2020, 12, 28), (2020, 12, 31), (2021, 1, 1), (2021, 1, 3)])
def test_calendar_period__iso_week_53_continues_in_the_new_year(day: tuple[int, ...]) -> None:
    week = periods.calendar_period("week", unix(*day), ZoneInfo("UTC"))
    assert week == (unix(2020, 12, 28), unix(2021, 1, 4))


def test_previous_calendar_period__omits_a_skipped_date() -> None:
    new_years_eve = periods.midnight(date(2011, 12, 31), APIA)
    previous = periods.previous_calendar_period("day", new_years_eve, APIA)
    assert previous == (new_years_eve - DAY, new_years_eve)
    assert periods.day_containing(previous.start, APIA) == date(2011, 12, 29)


@pytest.mark.parametrize("name", ["", "days", "Day", "hour", "decade"])
@pytest.mark.parametrize("period", [periods.calendar_period, periods.previous_calendar_period])
def test_calendar_period__unknown_name_is_an_error_that_lists_the_known_ones(
    period: Callable[..., Interval], name: str
) -> None:
    with pytest.raises(ValueError, match="day, week, month, quarter, year"):
        period(name, 0, ZoneInfo("UTC"))


# Periods counted from a start

ITERATORS: dict[str, Callable[..., Iterator[tuple[datetime, datetime]]]] = {
    "days": periods.iter_days,
    "weeks": periods.iter_weeks,
    "months": periods.iter_months,
    "quarters": periods.iter_quarters,
    "years": periods.iter_years,
}


def renewals(name: str, start: date) -> Iterator[date]:
    """The dates on which periods begin, found by checking each day."""
    step = {"days": 1, "weeks": 7, "months": 1, "quarters": 3, "years": 12}[name]
    day, days, months = start, 0, 0
    while True:
        yield day
        while True:
            day, days = day + timedelta(days=1), days + 1
            if name in ("days", "weeks"):
                if days % step == 0:
                    break
                continue
            is_last = (day + timedelta(days=1)).day == 1
            if day.day == start.day or (is_last and day.day < start.day):
                months += 1
                if months % step == 0:
                    break


def first_showing(clock: datetime, zone: ZoneInfo) -> int:
    """The first minute at which the zone's clocks show this; if they skip it, as long after the
    jump as it is after the time they jumped from."""
    around = int(clock.replace(tzinfo=timezone.utc).timestamp())
    minutes = range(around - 16 * HOUR, around + 16 * HOUR, MINUTE)
    shown = {minute: wall(minute, zone).replace(tzinfo=None, fold=0) for minute in minutes}
    for minute in minutes:
        if shown[minute] == clock:
            return minute
    before = max(minute for minute in minutes if shown[minute] < clock)
    return before + int((clock - shown[before]).total_seconds())


@pytest.mark.parametrize("name", ITERATORS)
@given(
    place=zones_and_instants(),
    day=st.sampled_from([None, None, 1, 28, 29, 30, 31]),
    count=st.integers(1, 14),
    rest=st.floats(0, 1),
)
def test_iter__begins_at_the_same_local_time(
    name: str, place: tuple[ZoneInfo, float], day: int | None, count: int, rest: float
) -> None:
    zone, t = place
    start = wall(t // MINUTE * MINUTE, zone)
    last_day = (start.replace(day=28, fold=0) + timedelta(days=4)).replace(day=1) - timedelta(
        days=1
    )
    if day is not None:
        moved = start.replace(day=min(day, last_day.day), tzinfo=None, fold=0)
        start = wall(first_showing(moved, zone), zone)
    clock = start.timetz().replace(tzinfo=None, fold=0)
    dates = renewals(name, start.date())
    expected = [int(start.timestamp())]
    next(dates)
    while len(expected) <= count:
        boundary = first_showing(datetime.combine(next(dates), clock), zone)
        if boundary > expected[-1]:  # a skipped date has no period
            expected.append(boundary)
    end = datetime.fromtimestamp(
        expected[-2] + max(1, int(rest * (expected[-1] - expected[-2]))), timezone.utc
    )
    found = list(ITERATORS[name](start, end))
    assert [int(begin.timestamp()) for begin, _ in found] == expected[:-1]
    assert [int(after.timestamp()) for _, after in found] == [*expected[1:-1], end.timestamp()]
    assert found[0][0] is start
    assert {begin.tzinfo for begin, _ in found} == {zone}


@pytest.mark.parametrize("name", ITERATORS)
def test_iter__without_an_end_is_an_infinite_generator(name: str) -> None:
    found = ITERATORS[name](datetime(2024, 1, 31))
    assert isinstance(found, GeneratorType)
    assert len([next(found) for _ in range(1_000)]) == 1_000


@pytest.mark.parametrize("name", ITERATORS)
@pytest.mark.parametrize("end", [datetime(2024, 1, 31, 22), datetime(2023, 1, 1)])
def test_iter__has_nothing_before_its_start(name: str, end: datetime) -> None:
    assert list(ITERATORS[name](datetime(2024, 1, 31, 22), end)) == []


def starts(name: str, start: datetime, count: int) -> list[str]:
    found = ITERATORS[name](start)
    return [f"{next(found)[0]:%Y-%m-%d %H:%M}" for _ in range(count)]


def test_iter_months__from_the_31st() -> None:
    assert starts("months", datetime(2023, 12, 31, 1, 2), 6) == [
        "2023-12-31 01:02",
        "2024-01-31 01:02",
        "2024-02-29 01:02",
        "2024-03-31 01:02",
        "2024-04-30 01:02",
        "2024-05-31 01:02",
    ]


def test_iter_quarters__from_the_30th_of_november() -> None:
    assert starts("quarters", datetime(2015, 11, 30), 6) == [
        "2015-11-30 00:00",
        "2016-02-29 00:00",
        "2016-05-30 00:00",
        "2016-08-30 00:00",
        "2016-11-30 00:00",
        "2017-02-28 00:00",
    ]


def test_iter_years__from_29_february_returns_to_it_in_leap_years() -> None:
    assert starts("years", datetime(2016, 2, 29), 5) == [
        "2016-02-29 00:00",
        "2017-02-28 00:00",
        "2018-02-28 00:00",
        "2019-02-28 00:00",
        "2020-02-29 00:00",
    ]


def test_iter__cuts_the_last_one_at_the_end() -> None:
    start, end = datetime(2024, 1, 31), datetime(2024, 3, 10)
    *_, last = periods.iter_months(start, end)
    assert last == (datetime(2024, 2, 29), end)
    assert last[1] is end


def test_iter_days__through_daylight_saving() -> None:
    new_york = ZoneInfo("America/New_York")
    days = periods.iter_days(datetime(2024, 3, 8, 22, tzinfo=new_york))
    spans = [next(days) for _ in range(3)]
    assert [f"{start:%d %H:%M}" for start, _ in spans] == ["08 22:00", "09 22:00", "10 22:00"]
    lengths = [end.timestamp() - start.timestamp() for start, end in spans]
    assert lengths == [24 * HOUR, 23 * HOUR, 24 * HOUR]


def test_iter_days__skipped_time_is_later_on_that_day_only() -> None:
    new_york = ZoneInfo("America/New_York")
    assert starts("days", datetime(2024, 3, 9, 2, 30, tzinfo=new_york), 3) == [
        "2024-03-09 02:30",
        "2024-03-10 03:30",
        "2024-03-11 02:30",
    ]


def test_iter_days__cut_in_the_repeated_hour() -> None:
    new_york = ZoneInfo("America/New_York")
    start = datetime(2024, 11, 3, 1, 30, tzinfo=new_york)
    end = datetime(2024, 11, 3, 1, 15, tzinfo=new_york, fold=1)  # 45 minutes later
    [(begin, after)] = periods.iter_days(start, end)
    assert after.timestamp() - begin.timestamp() == 45 * MINUTE


def test_iter_days__has_none_for_a_skipped_date() -> None:
    assert starts("days", datetime(2011, 12, 29, 12, tzinfo=APIA), 3) == [
        "2011-12-29 12:00",
        "2011-12-31 12:00",
        "2012-01-01 12:00",
    ]


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("30m", 30 * 60),
        ("2h", 2 * 3600),
        ("1h30m", 5400),
        ("90m", 5400),
        ("1d", 86_400),
        ("7d", 604_800),
        ("1w", 604_800),
        ("1y", 365 * 86_400),
        ("1y2w3d4h5m6s", ((365 + 14 + 3) * 24 + 4) * 3600 + 5 * 60 + 6),
        ("007d", 604_800),
        ("0d1h", 3600),
        ("292y", 292 * 365 * 86_400),
    ],
)
def test_parse_duration__accepts(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "", "0", "0s", "0d0h", "1", "h", "1 h", " 1h", "1h ", "1h\n", "-1h", "+1h", "1.5h", "1H",
        "30m1h", "1h1h", "1day", "100ms", "\u0661h", "293y", "9" * 30 + "y", "9" * 5000 + "s",
        3600, 1.5, None, b"1h", ["1h"], True,
    ],
)  # fmt: skip
def test_parse_duration__refuses(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_duration(value)


@pytest.mark.parametrize("value", ["soon", 3600])
def test_parse_duration__names_the_bad_value(value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{value!r} is not a duration; write it like '30m'"):
        parse_duration(value)


@given(st.text(alphabet="0123456789ywdhms .-", max_size=12))
def test_parse_duration__gives_positive_seconds_or_raises_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert seconds > 0
    assert text.isalnum()
