"""What the demo shows in the terminal."""

from __future__ import annotations

import re

import pytest

from demo.events import describe
from demo.page import sparkline, table

pytestmark = pytest.mark.own_site
DAY = 86_400.0


def test_sparkline__has_bars_as_high_as_the_values() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([700, 0, 350]) == "█▁▅"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""


def test_describe__says_who_joined_and_who_came_back() -> None:
    before = {"ada": 100 * DAY, "bob": 100 * DAY, "eve": None, "zoe": None}
    after = {"ada": 131.5 * DAY, "bob": 106.9 * DAY, "eve": 131 * DAY, "zoe": None, "joe": None}
    assert describe(before, after) == [
        "ada came back after 31 days",
        "eve came for the first time",
        "joe joined",
    ]
    assert describe(after, after) == []


def test_table__has_trends_and_news() -> None:
    samples = {("souvenirs_calendar_active_users", "day"): 7.0}
    text = table(samples, {"day": [1, 2]}, ["12:00:00  ada joined"])
    assert re.search(r"active users, this +day +7 +▅█", text)
    assert text.endswith("\n\n12:00:00  ada joined")
    assert re.search(r"active users, last +1h +-", text)
