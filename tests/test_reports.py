from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.conf import settings as site_settings
from django.db import connections
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from souvenirs import periods, reports, timestamps
from souvenirs.history import accounts, maintenance
from souvenirs.models import Souvenir
from souvenirs.reports import registered_users_as_of, usage_for_periods
from tests.people import User, ours, site, with_databases

pytestmark = with_databases

has_date_joined = pytest.mark.where("string" not in site_settings.SHAPE)

PARIS = ZoneInfo("Europe/Paris")
SUBSCRIPTION_START = datetime(2010, 1, 24, 22, tzinfo=PARIS)
NOW = datetime(2017, 4, 4, 12, tzinfo=PARIS)
NOON = [datetime(year, 2, 14, 12, tzinfo=PARIS) for year in range(2010, 2018)]
TIMES = [*NOON, datetime(2015, 10, 17, 12, tzinfo=PARIS)]
DAY = timedelta(days=1)

CUSTOMER = {
    "days": reports.daily_usage,
    "months": reports.customer_monthly_usage,
    "quarters": reports.customer_quarterly_usage,
    "years": reports.customer_yearly_usage,
}
CALENDAR: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "day": reports.calendar_daily_usage,
    "week": reports.calendar_weekly_usage,
    "month": reports.calendar_monthly_usage,
    "quarter": reports.calendar_quarterly_usage,
    "year": reports.calendar_yearly_usage,
}
ITERATORS = {
    "days": periods.iter_days,
    "months": periods.iter_months,
    "quarters": periods.iter_quarters,
    "years": periods.iter_years,
}
ZONES = ["Europe/Paris", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]


@pytest.fixture
def now() -> Iterator[datetime]:
    with time_machine.travel(NOW, tick=False):
        yield NOW


def join(name: str, when: datetime, is_active: bool = True) -> Any:
    """Create a user who joined then, if the user model has a date_joined."""
    user = User(username=name)
    if hasattr(user, "date_joined"):
        user.date_joined, user.is_active = site(when), is_active
    user.save()
    return user


def record(user: Any, *times: datetime) -> None:
    Souvenir.objects.bulk_create(Souvenir(user_id=user.pk, when=site(when)) for when in times)


def make_history(times: Iterable[datetime] = TIMES) -> None:
    """At each time a new user joins, and is not seen again."""
    for i, when in enumerate(times):
        record(join(f"user{i}", when), when)


def at(period: dict[str, Any], name: str) -> datetime:
    return timestamps.aware(period["period"][name])


def active(usages: Iterable[dict[str, Any]]) -> list[int]:
    return [usage["usage"]["active_users"] for usage in usages]


@contextmanager
def capture_queries() -> Iterator[Callable[[], list[str]]]:
    with ExitStack() as stack:
        contexts = [stack.enter_context(CaptureQueriesContext(c)) for c in connections.all()]
        yield lambda: [query["sql"] for context in contexts for query in context]


# Shape and labels


def shown(when: datetime) -> datetime:
    return when if site_settings.USE_TZ else site(when)


@has_date_joined
def test_customer_monthly_usage__dictionaries(now: datetime) -> None:
    make_history()
    usages = list(reports.customer_monthly_usage(SUBSCRIPTION_START))
    assert len(usages) == 7 * 12 + 3
    assert usages[0] == {
        "period": {
            "start": shown(SUBSCRIPTION_START),
            "end": shown(datetime(2010, 2, 24, 22, tzinfo=PARIS)),
            "complete": True,
        },
        "labels": {"year_month": "Y01 M01", "year_quarter": "Y01 Q1", "year": "Y01"},
        "usage": {"registered_users": 1, "activated_users": 1, "active_users": 1},
    }
    assert usages[69] == {
        "period": {
            "start": shown(datetime(2015, 10, 24, 22, tzinfo=PARIS)),
            "end": shown(datetime(2015, 11, 24, 22, tzinfo=PARIS)),
            "complete": True,
        },
        "labels": {"year_month": "Y06 M10", "year_quarter": "Y06 Q4", "year": "Y06"},
        "usage": {"registered_users": 7, "activated_users": 7, "active_users": 0},
    }
    assert usages[-1] == {
        "period": {
            "start": shown(datetime(2017, 3, 24, 22, tzinfo=PARIS)),
            "end": shown(now),
            "complete": False,
        },
        "labels": {"year_month": "Y08 M03", "year_quarter": "Y08 Q1", "year": "Y08"},
        "usage": {"registered_users": 9, "activated_users": 9, "active_users": 0},
    }


def test_customer_quarterly_usage__labels(now: datetime) -> None:
    make_history()
    usages = list(reports.customer_quarterly_usage(SUBSCRIPTION_START))
    labels = [usage["labels"] for usage in usages]
    assert labels[:5] == [
        {"year_quarter": "Y01 Q1", "year": "Y01"},
        {"year_quarter": "Y01 Q2", "year": "Y01"},
        {"year_quarter": "Y01 Q3", "year": "Y01"},
        {"year_quarter": "Y01 Q4", "year": "Y01"},
        {"year_quarter": "Y02 Q1", "year": "Y02"},
    ]
    assert labels[-1] == {"year_quarter": "Y08 Q1", "year": "Y08"}
    assert active(usages) == [1, 0, 0, 0] * 5 + [1, 0, 1, 0, 1, 0, 0, 0, 1]


def test_customer_yearly_usage__labels(now: datetime) -> None:
    make_history()
    usages = list(reports.customer_yearly_usage(SUBSCRIPTION_START))
    assert [usage["labels"] for usage in usages] == [{"year": f"Y0{i}"} for i in range(1, 9)]
    assert active(usages) == [1, 1, 1, 1, 1, 2, 1, 1]


def test_daily_usage__has_the_labels_of_the_subscription_month(now: datetime) -> None:
    usages = list(reports.daily_usage(SUBSCRIPTION_START, end=datetime(2010, 3, 8)))
    assert len(usages) == 43
    months = [usage["labels"]["year_month"] for usage in usages]
    assert months == ["Y01 M01"] * 31 + ["Y01 M02"] * 12
    assert usages[0]["labels"] == {"year_month": "Y01 M01", "year_quarter": "Y01 Q1", "year": "Y01"}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        (
            "day",
            {
                "calendar_date": "2021-01-02",
                "calendar_year_month": "2021-01",
                "calendar_year": 2021,
            },
        ),
        ("week", {"calendar_week": "2020-W53"}),
        ("month", {"calendar_year_month": "2021-01", "calendar_year": 2021}),
        ("quarter", {"calendar_year_quarter": "2021-Q1", "calendar_year": 2021}),
        ("year", {"calendar_year": 2021}),
    ],
)
def test_calendar__labels(name: str, labels: dict[str, Any]) -> None:
    [usage] = CALENDAR[name](date(2021, 1, 2), date(2021, 1, 3))
    assert usage["labels"] == labels


@has_date_joined
def test_calendar_monthly_usage__dictionaries(now: datetime) -> None:
    make_history()
    usages = list(reports.calendar_monthly_usage(SUBSCRIPTION_START))
    assert len(usages) == 88
    assert usages[1] == {
        "period": {
            "start": shown(datetime(2010, 2, 1, tzinfo=PARIS)),
            "end": shown(datetime(2010, 3, 1, tzinfo=PARIS)),
            "complete": True,
        },
        "labels": {"calendar_year_month": "2010-02", "calendar_year": 2010},
        "usage": {"registered_users": 1, "activated_users": 1, "active_users": 1},
    }
    assert usages[-1]["period"] == {
        "start": shown(datetime(2017, 4, 1, tzinfo=PARIS)),
        "end": shown(now),
        "complete": False,
    }


# Which periods


def uncounted(pairs: Iterable[tuple[datetime, datetime]]) -> list[dict[str, Any]]:
    return [{"period": {"start": start, "end": end}, "usage": {}} for start, end in pairs]


@pytest.mark.parametrize("name", CUSTOMER)
@pytest.mark.parametrize(("start", "end"), [(None, None), (2013, None), (None, 2013), (2013, 2013)])
def test_customer__numbering_counts_from_the_subscription_start(
    name: str, start: int | None, end: int | None, now: datetime
) -> None:
    after, before = (year and datetime(year, 2, 24, 22, tzinfo=PARIS) for year in (start, end))
    # This test is about periods and labels: the thousands of days need no counts
    function = f"{__name__}.uncounted" if name == "days" else None
    with override_settings(SOUVENIRS_USAGE_REPORTS_FUNCTION=function):
        whole = [
            (begin, finish, usage["labels"])
            for usage, (begin, finish) in zip(
                CUSTOMER[name](SUBSCRIPTION_START), ITERATORS[name](SUBSCRIPTION_START)
            )
        ]
        usages = list(CUSTOMER[name](SUBSCRIPTION_START, after, before))
    assert [(at(usage, "start"), usage["labels"]) for usage in usages] == [
        (begin, labels)
        for begin, finish, labels in whole
        if (before is None or begin < before)
        and (after is None or min(finish, before or NOW) > after)
    ]


def test_customer_yearly_usage__how_many(now: datetime) -> None:
    when = datetime(2013, 2, 24, 22, tzinfo=PARIS)
    assert len(list(reports.customer_yearly_usage(SUBSCRIPTION_START, start=when))) == 5
    assert len(list(reports.customer_yearly_usage(SUBSCRIPTION_START, end=when))) == 4
    assert list(reports.customer_yearly_usage(SUBSCRIPTION_START, start=when, end=when)) == []


def test_calendar_monthly_usage__how_many() -> None:
    start, end = datetime(2013, 2, 1, tzinfo=PARIS), datetime(2013, 5, 1, tzinfo=PARIS)
    assert len(list(reports.calendar_monthly_usage(start, end))) == 3
    assert list(reports.calendar_monthly_usage(start, start)) == []


def test_daily_usage__start_is_honoured_within_a_month(now: datetime) -> None:
    start = datetime(2017, 4, 1, 22, tzinfo=PARIS)
    usages = list(reports.daily_usage(SUBSCRIPTION_START, start=start))
    assert [at(usage, "start") for usage in usages] == [start, start + DAY, start + 2 * DAY]


def test_report__the_end_of_the_last_period_is_end_itself() -> None:
    end = datetime(2011, 3, 1, 12, 34, 56, 789, tzinfo=ZoneInfo("Asia/Kolkata"))
    for report in CUSTOMER.values():
        assert list(report(SUBSCRIPTION_START, end=end))[-1]["period"]["end"] == shown(end)
    for report in CALENDAR.values():
        assert list(report(SUBSCRIPTION_START, end))[-1]["period"]["end"] == shown(end)


@pytest.mark.parametrize("name", CALENDAR)
def test_calendar__begins_with_the_first_souvenir(name: str, now: datetime) -> None:
    record(join("ada", NOW), NOW - 400 * DAY)
    first, *_ = usages = list(CALENDAR[name]())
    assert at(first, "start") <= NOW - 400 * DAY < at(first, "end")
    assert at(usages[-1], "end") == NOW


@pytest.mark.parametrize("name", CALENDAR)
def test_calendar__without_souvenirs_is_the_current_period(name: str, now: datetime) -> None:
    [usage] = CALENDAR[name]()
    assert at(usage, "start") < NOW == at(usage, "end")
    assert usage["usage"]["active_users"] == 0


@pytest.mark.parametrize("report", [*CUSTOMER.values(), *CALENDAR.values()])
def test_report__recent_is_the_latest_periods(
    report: Callable[..., Iterator[dict[str, Any]]], now: datetime
) -> None:
    make_history()
    start = NOW - 400 * DAY
    whole = list(report(start))
    for count in (1, 2, 5):
        assert list(report(start, recent=count)) == whole[-count:]


# Overview


@pytest.mark.parametrize("function", [None, "with_pages"])
@pytest.mark.parametrize("name", CALENDAR)
def test_calendar_overview__equals_the_reports(
    name: str, function: str | None, now: datetime
) -> None:
    for n in range(9):
        when = NOW - (80 - 9 * n) * DAY
        record(join(f"user{n}", when), *(when + days * DAY for days in {0, 1, 8, n}))
    path = function and f"{__name__}.{function}"
    with override_settings(SOUVENIRS_USAGE_REPORTS_FUNCTION=path):
        for options in ({}, {"recent": 3}, {"end": NOW - 3 * DAY}):
            usages = CALENDAR[name](NOW - 70 * DAY, **options)
            growths = reports.growth(name, NOW - 70 * DAY, **options)
            cohorts = reports.retention(name, NOW - 70 * DAY, ages=2, **options)
            expected = [{**a, **b, **c} for a, b, c in zip(cohorts, growths, usages, strict=True)]
            found = reports.calendar_overview(name, NOW - 70 * DAY, ages=2, **options)
            assert list(found) == expected
        assert sum(active(expected)) > 0
        for each in reports.calendar_overview(name, NOW - 70 * DAY, ages=None):
            assert set(each) == {"period", "labels", "usage", "growth"}


def test_calendar_overview__reads_the_history_once(now: datetime) -> None:
    record(join("ada", NOW - 60 * DAY), *(NOW - days * DAY for days in range(60)))
    maintenance.roll_up()

    def reads(report: Iterable[Any]) -> int:
        with CaptureQueriesContext(ours()) as queries:
            assert list(report)
        names = "souvenirs_souvenir", "souvenirs_rollup"
        return sum(any(name in query["sql"] for name in names) for query in queries)

    alone = reads(reports.retention("week", NOW - 50 * DAY))
    assert 0 < alone == reads(reports.calendar_overview("week", NOW - 50 * DAY))
    assert reads(reports.calendar_weekly_usage(NOW - 50 * DAY)) > 0


# Complete or not


def test_complete__only_once_the_whole_period_has_passed() -> None:
    end_of_month = datetime(2010, 2, 24, 22, tzinfo=PARIS)
    for seconds, expected in [(-1, False), (0, True), (1, True)]:
        with time_machine.travel(end_of_month + timedelta(seconds=seconds), tick=False):
            first, *_ = reports.customer_monthly_usage(SUBSCRIPTION_START)
        assert first["period"]["complete"] is expected


def test_complete__not_if_end_has_cut_a_past_period(now: datetime) -> None:
    usages = reports.calendar_monthly_usage(date(2016, 1, 1), date(2016, 3, 15))
    assert [usage["period"]["complete"] for usage in usages] == [True, True, False]


def test_end__later_than_now_is_now(now: datetime) -> None:
    start, later = date(2017, 3, 1), date(2017, 6, 1)
    usages = list(reports.calendar_monthly_usage(start, later))
    assert usages == list(reports.calendar_monthly_usage(start))
    assert [usage["period"]["complete"] for usage in usages] == [True, False]


def test_usage_for_periods__is_complete_when_its_end_has_passed(now: datetime) -> None:
    pairs = [(NOW - DAY, NOW), (NOW - DAY, NOW + DAY)]
    assert [u["period"]["complete"] for u in usage_for_periods(pairs)] == [True, False]


# Zones


def test_customer__periods_keep_their_local_time() -> None:
    start = datetime(2024, 1, 31, 22, tzinfo=ZoneInfo("America/New_York"))
    usages = list(reports.customer_monthly_usage(start, end=start + 150 * DAY))
    assert [at(u, "start").astimezone(start.tzinfo).strftime("%m-%d %H") for u in usages] == [
        "01-31 22",
        "02-29 22",
        "03-31 22",
        "04-30 22",
        "05-31 22",
    ]


def test_customer__utc_start_from_the_database_is_converted_to_the_sites_zone() -> None:
    start = datetime(2024, 1, 31, tzinfo=PARIS).astimezone(timezone.utc)
    usages = list(reports.customer_monthly_usage(start, end=date(2024, 6, 1)))
    assert [at(u, "start").astimezone(PARIS).strftime("%m-%d %H") for u in usages] == [
        "01-31 00",
        "02-29 00",
        "03-31 00",
        "04-30 00",
        "05-31 00",
    ]


def test_calendar__periods_are_in_the_sites_zone_for_any_zone_of_start() -> None:
    start = datetime(2024, 2, 29, 23, 30, tzinfo=timezone.utc)  # 1 March in Paris
    usages = list(reports.calendar_monthly_usage(start, date(2024, 5, 1)))
    assert [usage["labels"]["calendar_year_month"] for usage in usages] == ["2024-03", "2024-04"]
    assert at(usages[0], "start") == datetime(2024, 3, 1, tzinfo=PARIS)
    assert at(usages[1], "start") == datetime(2024, 4, 1, tzinfo=PARIS)


@pytest.mark.parametrize("start", [date(2024, 3, 30), datetime(2024, 3, 30)])
def test_report__dates_and_naive_bounds_are_in_the_sites_zone(start: date) -> None:
    for usages in [
        list(reports.daily_usage(start, start, date(2024, 4, 2))),
        list(reports.calendar_daily_usage(start, date(2024, 4, 2))),
    ]:
        starts = [at(usage, "start") for usage in usages]
        assert starts == [datetime(2024, 3, day, tzinfo=PARIS) for day in (30, 31)] + [
            datetime(2024, 4, 1, tzinfo=PARIS)
        ]
        lengths = [at(u, "end").timestamp() - at(u, "start").timestamp() for u in usages]
        assert lengths == [86_400, 82_800, 86_400]


def test_report__datetimes_are_aware_or_naive_like_the_sites() -> None:
    for report in [*CUSTOMER.values(), *CALENDAR.values()]:
        usages = list(report(SUBSCRIPTION_START, end=SUBSCRIPTION_START + 40 * DAY))
        for usage in usages:
            for name in ("start", "end"):
                assert (usage["period"][name].tzinfo is not None) == site_settings.USE_TZ


def test_calendar__has_no_day_for_a_skipped_date() -> None:
    with override_settings(TIME_ZONE="Pacific/Apia"):
        usages = list(reports.calendar_daily_usage(date(2011, 12, 29), date(2012, 1, 1)))
    assert [u["labels"]["calendar_date"] for u in usages] == ["2011-12-29", "2011-12-31"]


# Counts, against brute force

HOUR = 3_600
FIRST = int(datetime(2023, 10, 1, tzinfo=timezone.utc).timestamp())
seconds = st.integers(FIRST, FIRST + 400 * 24 * HOUR) | st.integers(
    FIRST + 28 * 24 * HOUR, FIRST + 30 * 24 * HOUR
)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, bool, list[int]]]:
    """For each user: when they joined, whether they are active, and when they were seen."""
    person = st.tuples(seconds, st.booleans(), st.lists(seconds, max_size=12))
    return draw(st.lists(person, max_size=6))


def make(history: list[tuple[int, bool, list[int]]]) -> None:
    Souvenir.objects.all().delete()
    User.objects.all().delete()
    for i, (joined, is_active, seen) in enumerate(history):
        user = join(f"user{i}", timestamps.EPOCH + timedelta(seconds=joined), is_active)
        record(user, *[timestamps.EPOCH + timedelta(seconds=t) for t in seen])


def brute_force(
    history: list[tuple[int, bool, list[int]]], start: datetime, end: datetime
) -> dict[str, int | None]:
    def of(t: int) -> datetime:
        return timestamps.to_datetime(t)

    joined = [is_active for joined, is_active, _ in history if of(joined) < site(end)]
    has_accounts = "string" not in site_settings.SHAPE
    return {
        "registered_users": len(joined) if has_accounts else None,
        "activated_users": sum(joined) if has_accounts else None,
        "active_users": sum(
            any(site(start) <= of(t) < site(end) for t in seen) for _, _, seen in history
        ),
    }


@pytest.mark.parametrize("name", CUSTOMER)
@given(
    history=histories(),
    zone=st.sampled_from(ZONES),
    subscription_start=seconds,
    start=st.none() | seconds,
    end=seconds,
)
def test_customer__equals_brute_force(
    name: str,
    history: list[tuple[int, bool, list[int]]],
    zone: str,
    subscription_start: int,
    start: int | None,
    end: int,
) -> None:
    make(history)
    anchor = datetime.fromtimestamp(subscription_start, ZoneInfo(zone))
    after = None if start is None else timestamps.EPOCH + timedelta(seconds=start)
    before = timestamps.EPOCH + timedelta(seconds=end)
    expected = [
        (site(begin), site(finish))
        for begin, finish in ITERATORS[name](anchor, before)
        if start is None or finish.timestamp() > start
    ]
    usages = list(CUSTOMER[name](anchor, after, before))
    assert [(site(at(u, "start")), site(at(u, "end"))) for u in usages] == expected
    for usage in usages:
        assert usage["usage"] == brute_force(history, at(usage, "start"), at(usage, "end"))


KEYS: dict[str, Callable[[date], object]] = {
    "day": lambda day: day.isoformat(),
    "week": lambda day: f"{day.isocalendar().year}-W{day.isocalendar().week:02}",
    "month": lambda day: day.isoformat()[:7],
    "quarter": lambda day: f"{day.year}-Q{'111222333444'[day.month - 1]}",
    "year": lambda day: day.year,
}


@pytest.mark.parametrize("name", CALENDAR)
@given(history=histories(), zone=st.sampled_from(ZONES), start=seconds, end=seconds)
def test_calendar__equals_brute_force(
    name: str, history: list[tuple[int, bool, list[int]]], zone: str, start: int, end: int
) -> None:
    def day_of(t: float) -> date:
        return datetime.fromtimestamp(t, ZoneInfo(zone)).date()

    # If USE_TZ is False, the zone stays: the database session's zone would be another one than that
    # of these tests
    zone = zone if site_settings.USE_TZ else site_settings.TIME_ZONE
    key = KEYS[name]
    with override_settings(TIME_ZONE=zone):
        make(history)
        usages = list(
            CALENDAR[name](
                timestamps.EPOCH + timedelta(seconds=start),
                timestamps.EPOCH + timedelta(seconds=end),
            )
        )
        last = timestamps.to_datetime(end)
        days = sorted({day_of(t) for t in range(start, end, 6 * HOUR)} | {day_of(end - 1)})
        keys = list(dict.fromkeys(key(day) for day in days))
        if end <= start:  # `start` is moved back to the beginning of its period
            keys = [key(day_of(start))] if key(day_of(start)) == key(day_of(end - 1)) else []
        assert [next(iter(usage["labels"].values())) for usage in usages] == keys
        for usage in usages:
            assert usage["usage"] == brute_force(history, at(usage, "start"), at(usage, "end"))
            label = next(iter(usage["labels"].values()))
            assert usage["usage"]["active_users"] == sum(
                # (without time zones, nothing distinguishes the two passes of a repeated hour)
                any(key(day_of(t)) == label and timestamps.to_datetime(t) < last for t in seen)
                for _, _, seen in history
            )


@given(history=histories(), pairs=st.lists(st.tuples(seconds, seconds), max_size=8))
def test_usage_for_periods__equals_brute_force(
    history: list[tuple[int, bool, list[int]]], pairs: list[tuple[int, int]]
) -> None:
    make(history)
    spans = [(timestamps.to_datetime(start), timestamps.to_datetime(end)) for start, end in pairs]
    usages = list(usage_for_periods(iter(spans)))
    assert [(u["period"]["start"], u["period"]["end"]) for u in usages] == spans
    for usage, (start, end) in zip(usages, spans):
        assert usage["usage"] == brute_force(history, start, end)
        accounts = usage["usage"]["registered_users"], usage["usage"]["activated_users"]
        assert registered_users_as_of(end) == accounts
    assert all(set(usage) == {"period", "usage"} for usage in usages)


# Cost


def count_queries(report: Callable[[int], Iterator[dict[str, Any]]]) -> list[int]:
    """The number of queries of the report of one year and of three years, which have more days than
    SQLite allows parameters."""
    make_history()
    maintenance.roll_up()
    counts = []
    for years in (1, 3):
        with capture_queries() as queries:
            assert len(list(report(years))) >= years
        counts.append(len([sql for sql in queries() if "SELECT" in sql[:9]]))
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("name", CUSTOMER)
def test_customer__takes_as_many_queries_for_any_number_of_periods(
    name: str, now: datetime
) -> None:
    few, many = count_queries(
        lambda years: CUSTOMER[name](SUBSCRIPTION_START, NOW - years * 365 * DAY)
    )
    assert few == many


@pytest.mark.slow
@pytest.mark.parametrize("name", CALENDAR)
def test_calendar__takes_as_many_queries_for_any_number_of_periods(
    name: str, now: datetime
) -> None:
    few, many = count_queries(lambda years: CALENDAR[name](NOW - years * 365 * DAY))
    assert few == many


def test_report__does_not_count_omitted_periods(now: datetime) -> None:
    counted: list[int] = []

    def count(pairs: list[tuple[datetime, datetime]]) -> Iterator[dict[str, Any]]:
        counted.append(len(pairs))
        return usage_for_periods(pairs)

    with override_settings(SOUVENIRS_USAGE_REPORTS_FUNCTION=put(count)):
        list(reports.daily_usage(SUBSCRIPTION_START, NOW - 3 * DAY))
        list(reports.daily_usage(SUBSCRIPTION_START, recent=5))
    assert counted == [4, 5]


def test_report__is_a_lazy_generator() -> None:
    with capture_queries() as queries:
        for report in [*CUSTOMER.values(), *CALENDAR.values()]:
            report(SUBSCRIPTION_START)
    assert queries() == []


# Accounts


@has_date_joined
def test_registered_users_as_of__counts_users_who_had_joined() -> None:
    join("ada", NOW - DAY)
    join("grace", NOW - DAY, is_active=False)
    join("mary", NOW)
    assert registered_users_as_of(NOW) == (2, 1)
    assert registered_users_as_of(NOW + DAY) == (3, 2)
    assert registered_users_as_of(NOW - DAY) == (0, 0)


@has_date_joined
def test_registered_users_as_of__a_date_is_the_sites_midnight() -> None:
    join("ada", datetime(2024, 5, 1, tzinfo=PARIS) - timedelta(seconds=1))
    join("grace", datetime(2024, 5, 1, tzinfo=PARIS))
    assert registered_users_as_of(date(2024, 5, 1)) == (1, 1)


@pytest.mark.where("string" in site_settings.SHAPE)
def test_registered_users_as_of__without_date_joined_is_unknown_and_not_queried() -> None:
    join("ada", NOW)
    with capture_queries() as queries:
        assert registered_users_as_of(NOW) == (None, None)
        [usage] = usage_for_periods([(NOW - DAY, NOW)])
    assert usage["usage"] == {
        "registered_users": None,
        "activated_users": None,
        "active_users": 0,
    }
    assert not [sql for sql in queries() if User._meta.db_table in sql]


@has_date_joined
def test_accounts__without_is_active_count_everybody_as_active(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    join("ada", NOW - DAY)
    join("grace", NOW - DAY, is_active=False)
    column = accounts.column
    monkeypatch.setattr(
        accounts, "column", lambda name: None if name == "is_active" else column(name)
    )
    assert registered_users_as_of(NOW) == (2, 2)
    [usage] = usage_for_periods([(NOW - DAY, NOW)])
    assert usage["usage"]["activated_users"] == 2


# SOUVENIRS_USAGE_REPORTS_FUNCTION


def put(function: Callable[..., Any]) -> str:
    """Make the function available; return its dotted path."""
    globals()["function_of_the_site"] = function
    return f"{__name__}.function_of_the_site"


def with_pages(pairs: Iterable[tuple[datetime, datetime]]) -> Iterator[dict[str, Any]]:
    for usage in reports._usage_for_periods(pairs):
        del usage["period"]["complete"]  # 1.0.2 did not have it
        usage["usage"]["pages"] = 42
        yield usage


def test_usage_reports_function__all_reports_call_it(now: datetime) -> None:
    with override_settings(SOUVENIRS_USAGE_REPORTS_FUNCTION=f"{__name__}.with_pages"):
        for report in [*CUSTOMER.values(), *CALENDAR.values()]:
            usages = list(report(NOW - 40.5 * DAY))
            assert {usage["usage"]["pages"] for usage in usages} == {42}
            assert usages[-1]["period"]["complete"] is False
            assert usages[-1]["labels"]


def no_dictionaries(pairs: Iterable[tuple[datetime, datetime]]) -> list[dict[str, Any]]:
    return []


def test_usage_reports_function__must_not_leave_out_periods(now: datetime) -> None:
    with (
        override_settings(SOUVENIRS_USAGE_REPORTS_FUNCTION=f"{__name__}.no_dictionaries"),
        pytest.raises(ValueError, match="returned 0 dictionaries for 1 periods"),
    ):
        list(reports.calendar_yearly_usage(NOW))
