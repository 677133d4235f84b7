from __future__ import annotations

from datetime import date

import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st

from souvenirs.periods import NAMES
from souvenirs.selection import (
    DEFAULT_RECENT,
    MAX_PERIODS,
    USAGE,
    Selection,
    SelectionError,
    select,
)
from tests.history import at, people, record, unix


def test_select__without_parameters_is_the_last_year_by_month() -> None:
    assert select({}) == Selection(period="month", recent=12)
    assert select({"period": "", "start": "", "end": "", "recent": ""}) == select({})


@pytest.mark.parametrize("period", NAMES)
def test_select__has_a_number_of_periods_for_each_length(period: str) -> None:
    assert select({"period": period}) == Selection(period=period, recent=DEFAULT_RECENT[period])


def test_select__with_a_start_has_all_periods_since_then() -> None:
    given_start = {"start": "2024-01-31", "end": "2024-03-01"}
    assert select(given_start) == Selection(start=date(2024, 1, 31), end=date(2024, 3, 1))
    assert select({**given_start, "recent": "2"}).recent == 2


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"period": "decade"}, "The period is 'decade'"),
        ({"start": "yesterday"}, "start is 'yesterday': write a date"),
        ({"start": "2024-02-30"}, "start is '2024-02-30'"),
        ({"end": "0001-01-01"}, "end is '0001-01-01'"),
        ({"end": "9999-12-31"}, "end is '9999-12-31'"),
        ({"start": "2024-01-02", "end": "2024-01-02"}, "must be earlier than the end"),
        ({"recent": "0"}, "recent is '0': write a number from 1 to 400"),
        ({"recent": "401"}, "recent is '401'"),
        ({"recent": "-1"}, "recent is '-1'"),
        ({"recent": "\u0663"}, "recent is"),
        ({"recent": "9" * 5000}, "recent is"),
    ],
)
def test_select__says_what_is_wrong(params: dict[str, str], message: str) -> None:
    with pytest.raises(SelectionError) as error:
        select(params)
    assert message in str(error.value)


@given(st.dictionaries(st.sampled_from(["period", "start", "end", "recent"]), st.text()))
def test_select__raises_nothing_else(params: dict[str, str]) -> None:
    try:
        selection = select(params)
    except SelectionError:
        return
    assert selection.recent is None or 1 <= selection.recent <= MAX_PERIODS


# What it reads


@pytest.mark.django_db(databases=list(settings.DATABASES))
@pytest.mark.parametrize("params", [{"recent": "3"}, {"start": "1950-01-01", "recent": "3"}])
@pytest.mark.parametrize("period", NAMES)
def test_read__returns_the_end_of_the_whole_report(period: str, params: dict[str, str]) -> None:
    record(people(1)[0], unix(1980, 1, 1), unix(2023, 12, 31, 22), unix(2024, 2, 29))
    with at(unix(2024, 3, 1, 12)):
        selection = select({"period": period, **params})
        assert selection.first_day is not None
        assert selection.first_day.year >= 2020
        start = {"day": date(2024, 2, 1), "week": date(2024, 1, 1)}.get(period, date(2017, 1, 1))
        whole = list(USAGE[period](start))
        assert selection.read(USAGE[period]) == whole[-3:]


@pytest.mark.django_db(databases=list(settings.DATABASES))
def test_read__begins_with_the_record() -> None:
    with at(unix(2024, 3, 1, 12)):
        assert len(select({"period": "day"}).read(USAGE["day"])) == 1
        record(people(1)[0], unix(2024, 2, 28))
        assert len(select({"period": "day"}).read(USAGE["day"])) == 3
