from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.conf import settings as site_settings
from django.core.management import ManagementUtility, call_command
from django.core.management.base import CommandError

from souvenirs.models import Souvenir
from tests.history import Terminal
from tests.people import User, site, with_databases

has_date_joined = pytest.mark.where("string" not in site_settings.SHAPE)
pytestmark = with_databases

PARIS = ZoneInfo("Europe/Paris")
NOW = datetime(2017, 4, 4, 12, tzinfo=PARIS)
START = "--subscription-start=2010-01-24T22:00:00+01:00"
TIMES = [datetime(year, 2, 14, 12, tzinfo=PARIS) for year in range(2010, 2018)]
TIMES.append(datetime(2015, 10, 17, 12, tzinfo=PARIS))


@pytest.fixture(autouse=True)
def history() -> Iterator[None]:
    """At each of the TIMES a new user joins, is seen, and never again."""
    for i, when in enumerate(TIMES):
        user = User(username=f"user{i}")
        if hasattr(user, "date_joined"):
            user.date_joined = site(when)
        user.save()
        Souvenir.objects.create(user_id=user.pk, when=site(when))
    with time_machine.travel(NOW, tick=False):
        yield


def show(*args: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("show_usage", *args, stdout=out, **options)
    return out.getvalue()


def rows(*args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(show(*args, "--format=json"))
    return found


def first_column(*args: str) -> list[str]:
    return [next(iter(row.values())) for row in rows(*args)]


# Tables


@has_date_joined
def test_daily__prints_the_day_itself() -> None:
    assert show("--daily", START, "--after=2010-02-12T22:00", "--before=2010-02-17T22:00") == (
        "date          registered    activated    active\n"
        "----------  ------------  -----------  --------\n"
        "2010-02-16             1            1         0\n"
        "2010-02-15             1            1         0\n"
        "2010-02-14             1            1         0\n"
        "2010-02-13             1            1         1\n"
        "2010-02-12             0            0         0\n"
    )


@has_date_joined
def test_monthly__is_the_default() -> None:
    expected = (
        "month    start       end           registered    activated    active\n"
        "-------  ----------  ----------  ------------  -----------  --------\n"
        "Y06 M12  2015-12-24  2015-12-25             7            7         0\n"
        "Y06 M11  2015-11-24  2015-12-24             7            7         0\n"
        "Y06 M10  2015-10-24  2015-11-24             7            7         0\n"
        "Y06 M09  2015-09-24  2015-10-24             7            7         1\n"
        "Y06 M08  2015-08-24  2015-09-24             6            6         0\n"
        "\n"
        "Partial: Y06 M12 (not over yet, or cut by --before)\n"
    )
    options = START, "--after=9/8/2015", "--before=12/25/2015"
    assert show(*options) == expected
    assert show("--monthly", *options) == expected


@has_date_joined
def test_quarterly() -> None:
    assert show("--quarterly", "--subscription-start=01/24/2010", "--recent=3") == (
        "quarter    start       end           registered    activated    active\n"
        "---------  ----------  ----------  ------------  -----------  --------\n"
        "Y08 Q1     2017-01-24  2017-04-04             9            9         1\n"
        "Y07 Q4     2016-10-24  2017-01-24             8            8         0\n"
        "Y07 Q3     2016-07-24  2016-10-24             8            8         0\n"
        "\n"
        "Partial: Y08 Q1 (not over yet, or cut by --before)\n"
    )


@has_date_joined
def test_yearly__ascending() -> None:
    assert show("--yearly", "--subscription-start=01/24/2010", "--ascending") == (
        "year    start       end           registered    activated    active\n"
        "------  ----------  ----------  ------------  -----------  --------\n"
        "Y01     2010-01-24  2011-01-24             1            1         1\n"
        "Y02     2011-01-24  2012-01-24             2            2         1\n"
        "Y03     2012-01-24  2013-01-24             3            3         1\n"
        "Y04     2013-01-24  2014-01-24             4            4         1\n"
        "Y05     2014-01-24  2015-01-24             5            5         1\n"
        "Y06     2015-01-24  2016-01-24             7            7         2\n"
        "Y07     2016-01-24  2017-01-24             8            8         1\n"
        "Y08     2017-01-24  2017-04-04             9            9         1\n"
        "\n"
        "Partial: Y08 (not over yet, or cut by --before)\n"
    )


@pytest.mark.where("string" in site_settings.SHAPE)
def test_table__accounts_are_blank_for_users_without_date_joined() -> None:
    assert show("--yearly", START, "--before=2011-01-25") == (
        "year    start       end         registered    activated      active\n"
        "------  ----------  ----------  ------------  -----------  --------\n"
        "Y02     2011-01-24  2011-01-25                                    0\n"
        "Y01     2010-01-24  2011-01-24                                    1\n"
        "\n"
        "Partial: Y02 (not over yet, or cut by --before)\n"
    )


def test_table__without_periods_has_its_headers() -> None:
    assert show("--yearly", "--subscription-start=2030-01-01") == (
        "year    start    end    registered    activated    active\n"
        "------  -------  -----  ------------  -----------  --------\n"
    )


# The calendar


def test_calendar__is_the_default_without_a_subscription() -> None:
    assert first_column("--recent=2") == ["2017-04", "2017-03"]
    assert show() == show("--calendar") == show("--calendar", "--monthly")
    for length in ["--daily", "--weekly", "--quarterly", "--yearly"]:
        assert show(length, "--recent=3") == show("--calendar", length, "--recent=3")


@pytest.mark.parametrize(
    ("length", "labels"),
    [
        ("--daily", ["2017-04-04", "2017-04-03"]),
        ("--weekly", ["2017-W14", "2017-W13"]),
        ("--monthly", ["2017-04", "2017-03"]),
        ("--quarterly", ["2017-Q2", "2017-Q1"]),
        ("--yearly", [2017, 2016]),
    ],
)
def test_calendar__labels(length: str, labels: list[Any]) -> None:
    assert first_column("--calendar", length, "--recent=2") == labels


def test_calendar__begins_with_the_first_record() -> None:
    assert first_column("--calendar", "--yearly") == list(range(2017, 2009, -1))


@has_date_joined
def test_calendar__table() -> None:
    assert show("--calendar", "--yearly", "--recent=2", "--datefmt=%d.%m.%Y") == (
        "year    start       end           registered    activated    active\n"
        "------  ----------  ----------  ------------  -----------  --------\n"
        "2017    01.01.2017  04.04.2017             9            9         1\n"
        "2016    01.01.2016  01.01.2017             8            8         1\n"
        "\n"
        "Partial: 2017 (not over yet, or cut by --before)\n"
    )


def test_calendar__after_and_before() -> None:
    options = "--calendar", "--after=2015-06-15", "--before=2015-09-01"
    assert first_column(*options) == ["2015-08", "2015-07", "2015-06"]


# Other formats


@has_date_joined
@pytest.mark.parametrize("option", ["--csv", "--format=csv"])
def test_csv(option: str) -> None:
    assert show("--yearly", START, "--after=2016-01-01", option) == (
        "year,start,end,registered,activated,active,complete\r\n"
        "Y08,2017-01-24,2017-04-04,9,9,1,false\r\n"
        "Y07,2016-01-24,2017-01-24,8,8,1,true\r\n"
        "Y06,2015-01-24,2016-01-24,7,7,2,true\r\n"
    )


@has_date_joined
def test_json() -> None:
    assert json.loads(show("--yearly", START, "--recent=2", "--format=json")) == [
        {
            "year": "Y08",
            "start": "2017-01-24",
            "end": "2017-04-04",
            "registered": 9,
            "activated": 9,
            "active": 1,
            "complete": False,
        },
        {
            "year": "Y07",
            "start": "2016-01-24",
            "end": "2017-01-24",
            "registered": 8,
            "activated": 8,
            "active": 1,
            "complete": True,
        },
    ]


@has_date_joined
def test_markdown() -> None:
    assert show("--yearly", START, "--recent=2", "--format=markdown") == (
        "| year   | start      | end        |   registered |   activated |   active |\n"
        "|:-------|:-----------|:-----------|-------------:|------------:|---------:|\n"
        "| Y08    | 2017-01-24 | 2017-04-04 |            9 |           9 |        1 |\n"
        "| Y07    | 2016-01-24 | 2017-01-24 |            8 |           8 |        1 |\n"
        "\n"
        "Partial: Y08 (not over yet, or cut by --before)\n"
    )


def test_formats__have_the_same_rows() -> None:
    options = "--calendar", "--daily", "--recent=30"
    as_json = [{key: str(value) for key, value in row.items()} for row in rows(*options)]
    as_csv = list(csv.DictReader(io.StringIO(show(*options, "--csv"), newline="")))
    for row in [*as_json, *as_csv]:
        row["complete"] = row["complete"].lower()
        row.update({key: "" for key, value in row.items() if value == "None"})
    assert as_json == as_csv
    assert len(as_csv) == 30


def test_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "41")
    assert show("--calendar", "--yearly", "--after=2014-01-01", "--plot") == (
        "Active users\n"
        "2017 2017-01-01  1  ::::::::::\n"
        "2016 2016-01-01  1  ##########\n"
        "2015 2015-01-01  2  #####################\n"
        "2014 2014-01-01  1  ##########\n"
        "\n"
        "Partial: 2017 (not over yet, or cut by --before)\n"
    )


@pytest.mark.parametrize("columns", [20, 60, 200])
def test_plot__is_as_wide_as_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = show("--calendar", "--daily", "--after=2017-02-13", "--plot").splitlines()
    bars = [line for line in lines if "#" in line]
    assert [len(bar) for bar in bars] == [max(columns, len("2017-02-14  1  ") + 10)]
    assert "2017-04-03  0" in lines


def test_plot__without_users() -> None:
    Souvenir.objects.all().delete()
    assert show("--calendar", "--daily", "--plot") == (
        "Active users\n2017-04-04  0\n\nPartial: 2017-04-04 (not over yet, or cut by --before)\n"
    )


# Options


def test_recent__without_a_number_is_one() -> None:
    assert first_column(START, "--recent") == ["Y08 M03"]


def test_after__is_honoured_within_a_month() -> None:
    found = first_column("--daily", START, "--after=2017-04-02T22:00", "--ascending")
    assert found == ["2017-04-02", "2017-04-03"]


def test_partial__names_a_period_that_has_not_ended() -> None:
    complete = {row["month"]: row["complete"] for row in rows(START, "--recent=2")}
    assert complete == {"Y08 M03": False, "Y08 M02": True}


def test_before__later_than_now_is_now() -> None:
    table = show("--calendar", "--after=2017-03-01", "--before=2017-07-01")
    assert table == show("--calendar", "--after=2017-03-01")


@pytest.mark.parametrize(
    "text",
    [
        "2015-12-24",
        "12/24/2015",
        "24 December 2015",
        "2015-12-24T00:00",
        "2015-12-24T00:00:00+01:00",
        "2015-12-23T23:00Z",
        "2015-12-23 18:00 -0500",
    ],
)
def test_dates__are_read_leniently(text: str) -> None:
    [row] = rows("--calendar", "--daily", f"--after={text}", "--before=2015-12-25")
    assert row["date"] == "2015-12-24"
    period = rows("--yearly", f"--subscription-start={text}", "--datefmt=%Y-%m-%d %H:%M:%S")[-1]
    assert period["start"] == "2015-12-24 00:00:00"


def test_dates__missing_month_or_day_is_the_first() -> None:
    assert first_column("--calendar", "--daily", "--after=January 2017")[-1] == "2017-01-01"
    assert first_column("--calendar", "--daily", "--after=2017")[-1] == "2017-01-01"


def test_dates__may_be_datetimes_from_python() -> None:
    after = site(NOW - timedelta(hours=1))
    out = show("--calendar", "--daily", "--format=json", after=after)
    assert [row["date"] for row in json.loads(out)] == ["2017-04-04"]


# Errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--weekly", START],
            "--weekly reports on calendar periods: omit --subscription-start, and use --after to"
            " set the start",
        ),
        (
            ["--calendar", START],
            "--subscription-start and --calendar exclude each other: calendar periods have no"
            " subscription; use --after to set the start",
        ),
        (
            ["--calendar", "--after=2015-13-45"],
            "--after is '2015-13-45', which cannot be read as a date: write it like 2010-01-24,"
            " 1/24/2010 or 2010-01-24T22:00+01:00, or now",
        ),
        (
            ["--subscription-start="],
            "--subscription-start is '', which cannot be read as a date: write it like 2010-01-24,"
            " 1/24/2010 or 2010-01-24T22:00+01:00, or now",
        ),
        (
            ["--calendar", "--before=2015-01-24 10:00 XYZ"],
            "--before is '2015-01-24 10:00 XYZ', which cannot be read as a date: write it like"
            " 2010-01-24, 1/24/2010 or 2010-01-24T22:00+01:00, or now",
        ),
        (
            [START, "--after=2015-01-24", "--before=1/24/2015"],
            "--after, 2015-01-24, must be earlier than --before, 1/24/2015: there is nothing"
            " between them",
        ),
        ([START, "--recent=0"], "--recent must be a positive number of periods, not 0"),
        (
            [START, "--daily", "--yearly"],
            "Error: argument --yearly: not allowed with argument --daily",
        ),
        ([START, "--csv", "--plot"], "Error: argument --plot: not allowed with argument --csv"),
    ],
)
def test_errors__name_the_value_and_the_remedy(args: list[str], message: str) -> None:
    with pytest.raises(CommandError) as caught:
        show(*args)
    assert str(caught.value) == message


@pytest.mark.parametrize("args", [["--recent=0", START], ["--after=never", "--calendar"]])
def test_errors__exit_with_a_code(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ManagementUtility(["manage.py", "show_usage", *args]).execute()
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("CommandError: --")


# Growth, retention, active days


def test_growth__prints_changes_and_leaves_unknown_ones_blank() -> None:
    assert show("--growth", "--yearly", "--before=2016-01-01") == (
        "year    start       end           active    new    retained    resurrected    churned\n"
        "------  ----------  ----------  --------  -----  ----------  -------------  ---------\n"
        "2015    2015-01-01  2016-01-01         2      2           0              0          1\n"
        "2014    2014-01-01  2015-01-01         1      1           0              0          1\n"
        "2013    2013-01-01  2014-01-01         1      1           0              0          1\n"
        "2012    2012-01-01  2013-01-01         1      1           0              0          1\n"
        "2011    2011-01-01  2012-01-01         1\n"
        "2010    2010-01-01  2011-01-01         1\n"
    )


def test_growth__in_formats_for_programs() -> None:
    assert show("--growth", "--recent=2", "--csv").splitlines() == [
        "month,start,end,active,new,retained,resurrected,churned,complete",
        "2017-04,2017-04-01,2017-04-04,0,0,0,0,0,false",
        "2017-03,2017-03-01,2017-04-01,0,0,0,0,1,true",
    ]
    [row] = rows("--growth", "--daily", "--after=2017-02-14", "--before=2017-02-15")
    assert row == {
        "date": "2017-02-14",
        "active": 1,
        "new": 1,
        "retained": 0,
        "resurrected": 0,
        "churned": 0,
        "complete": True,
    }


def test_retention__prints_complete_ages_only() -> None:
    user = User.objects.get(username="user5")
    Souvenir.objects.create(user_id=user.pk, when=site(TIMES[5] + timedelta(days=58)))
    options = "--retention", "--after=2015-02-01", "--before=2015-05-10", "--ascending"
    assert rows(*options) == [
        {
            **{"month": "2015-02", "start": "2015-02-01", "end": "2015-03-01"},
            **{"users": 1, "age 1": 0, "age 2": 1, "complete": True},
        },
        {
            **{"month": "2015-03", "start": "2015-03-01", "end": "2015-04-01"},
            **{"users": 0, "age 1": 0, "complete": True},
        },
        {
            **{"month": "2015-04", "start": "2015-04-01", "end": "2015-05-01"},
            **{"users": 0, "complete": True},
        },
    ]


class Utf8Terminal(Terminal):
    encoding = "utf-8"  # type: ignore[assignment]


def test_retention__is_a_triangle_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    options = "--retention", "--after=2015-02-01", "--before=2015-04-01"

    def printed(terminal: io.StringIO, *more: str) -> str:
        call_command("show_usage", *options, *more, stdout=terminal)
        return terminal.getvalue()

    assert "\x1b[" in printed(Utf8Terminal())
    assert "\x1b[" not in printed(Utf8Terminal(), "--no-color")
    assert "\x1b[" not in printed(Utf8Terminal(), "--format=json")
    assert "\x1b[" not in show(*options, "--plot")
    assert "+1" in show(*options, "--plot")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in printed(Utf8Terminal())


def test_active_days__counts_users_by_days() -> None:
    [first, *others] = rows("--active-days", "--before=2017-02-20")
    assert first == {"active days": 1, "active": 1, "complete": True}
    assert [row["active"] for row in others] == [0] * 27
    table = show("--active-days", "--before=2010-02-16")
    assert table.endswith("\n\nPartial: 1 to 28 (the record begins within these days)\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--growth", START], "omit --subscription-start"),
        (["--active-days", START], "omit --subscription-start"),
        (["--active-days", "--weekly"], "omit --after, --recent and"),
        (["--active-days", "--after=2016-01-01"], "omit --after, --recent and"),
        (["--growth", "--retention"], "not allowed with argument"),
    ],
)
def test_growth__with_options_that_exclude_each_other(options: list[str], words: str) -> None:
    with pytest.raises(CommandError, match=words):
        show(*options)
