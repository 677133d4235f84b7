"""The output of show_usage: charts and tables."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from souvenirs.management import charts
from souvenirs.management.tables import Table, to_csv
from tests.history import Terminal

GROWTH = Table(
    ["week", "start", "end"],
    ["active", "new", "retained", "resurrected", "churned"],
    [
        (["W3", "01-15", "01-22", 4, 1, 2, 1, 10], False),
        (["W2", "01-08", "01-15", 12, 5, 7, 0, 0], True),
        (["W1", "01-01", "01-08", 7, None, None, None, None], True),
    ],
)
RETENTION = Table(
    ["week", "start", "end"],
    ["users", "age 1", "age 2"],
    [
        (["W1", "01-01", "01-08", 200, 1, 100], True),
        (["W2", "01-08", "01-15", 5, 5], True),
        (["W3", "", "", 0], True),
    ],
)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_growth_bars__grow_from_an_axis() -> None:
    assert charts.growth_bars(GROWTH, width=34, color=False) == (
        "- churned  = retained  ~ resurrected  + new\n"
        "\n"
        "W3 01-15  ----------|==~+\n"
        "W2 01-08            |=======+++++\n"
        "W1 01-01            | not known\n"
        "\n"
        "Partial: W3 (not over yet, or cut by --before)"
    )


def test_growth_bars__say_not_known_where_new_users_are_unknown() -> None:
    table = GROWTH._replace(rows=[(["W1", "01-01", "01-08", 7, None, 3, None, 2], True)])
    assert "| not known" in charts.growth_bars(table, width=34, color=False)


def test_growth_bars__have_the_same_lengths_in_color() -> None:
    blocks = re.sub("[-=~+](?=[-=~+|\n ]|$)", " ", charts.growth_bars(GROWTH, 34, color=False))
    colored = charts.growth_bars(GROWTH, 34, color=True)
    assert plain(colored).splitlines()[2:5] == blocks.splitlines()[2:5]
    assert colored.count("\x1b[48") == colored.count("\x1b[0m") == 4 + 4 + 2


def test_growth_bars__fit_the_width() -> None:
    lines = charts.growth_bars(GROWTH, width=60, color=False).splitlines()[2:5]
    assert max(map(len, lines)) in range(50, 61)


def test_triangle__has_percents_and_shades() -> None:
    assert charts.triangle(RETENTION, color=False, shades=charts.SHADES) == (
        "          users     +1   +2\n"
        "W1 01-01    200     0%░ 50%▓\n"
        "W2 01-08      5   100%█\n"
        "W3            0"
    )
    text = charts.triangle(RETENTION, color=False, shades=charts.PLAIN_SHADES)
    assert text.isascii()


def test_triangle__in_color_has_the_same_numbers() -> None:
    text = charts.triangle(RETENTION, color=True, shades=charts.SHADES)
    assert plain(text).split() == (
        [
            "users",
            "+1",
            "+2",
            "W1",
            "01-01",
            "200",
            "0%",
            "50%",
            "W2",
            "01-08",
            "5",
            "100%",
            "W3",
            "0",
        ]
    )
    numbers = re.findall(r"48;5;(\d+)", text)
    assert len(set(numbers)) == 3  # 1%, 50% and 100% have different shades


@pytest.mark.parametrize(
    ("stream", "environ", "options", "expected"),
    [
        (Terminal(), {}, {}, True),
        (io.StringIO(), {}, {}, False),
        (io.StringIO(), {}, {"force_color": True}, True),
        (Terminal(), {}, {"no_color": True}, False),
        (Terminal(), {"NO_COLOR": "1"}, {}, False),
        (Terminal(), {"NO_COLOR": ""}, {}, True),
    ],
)
def test_has_color(
    stream: Any,
    environ: dict[str, str],
    options: dict[str, bool],
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert charts.has_color(stream, options) is expected


def test_csv__has_no_cell_that_a_spreadsheet_would_evaluate() -> None:
    table = Table(["organization"], ["active"], [(["=HYPERLINK(1)", 2], True)])
    assert list(to_csv(table)) == ["organization,active,complete\r\n", "'=HYPERLINK(1),2,true\r\n"]
