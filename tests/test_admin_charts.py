from __future__ import annotations

from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from souvenirs.charts import (
    HEIGHT,
    MAX_NAMES,
    MAX_TICKS,
    TOP,
    Bar,
    Column,
    draw,
    named_columns,
    ticks_between,
)

numbers = st.integers(0, 10**9)


def plot(columns: list[Column]) -> Any:
    chart = draw(columns, name="c", title="T", description="D")
    return ElementTree.fromstring(chart.plot)


def column(*above: int, below: int = 0, hint: str = "") -> Column:
    bars = tuple(Bar(f"a{n}", value) for n, value in enumerate(above))
    return Column(name="n", hint=hint, above=bars, below=(Bar("b", below),))


def heights(svg: Any, name: str) -> list[float]:
    return [float(bar.get("height")) for bar in svg.iter("rect") if bar.get("class") == name]


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=20))
def test_draw__bars_are_as_high_as_their_values(values: list[tuple[int, int, int]]) -> None:
    svg = plot([column(a, b, below=c) for a, b, c in values])
    lowest, highest = -max(c for *_, c in values), max(a + b for a, b, _ in values)
    ticks = ticks_between(lowest, highest)
    pixel = (ticks[-1] - ticks[0]) / HEIGHT
    for name, wanted in zip(("a0", "a1", "b"), zip(*values)):
        drawn = heights(svg, name)
        assert len(drawn) == sum(value > 0 for value in wanted)
        for height, value in zip(drawn, filter(None, wanted)):
            assert height * pixel == pytest.approx(value, abs=pixel * 0.11)
    for bar in svg.iter("rect"):
        top, height = float(bar.get("y")), float(bar.get("height"))
        assert TOP - 0.1 <= top <= top + height <= TOP + HEIGHT + 0.2
        left, width = (float(bar.get(name).rstrip("%")) for name in ("x", "width"))
        assert 0 <= left <= left + width <= 100.01


@given(st.integers(-(10**9), 0), st.integers(0, 10**9))
def test_ticks__are_few_and_round_and_cover_all_values(lowest: int, highest: int) -> None:
    ticks = ticks_between(lowest, highest)
    steps = {b - a for a, b in pairwise(ticks)}
    assert len(steps) == 1
    assert str(steps.pop()).rstrip("0") in ("1", "2", "5")
    assert ticks[0] <= lowest <= highest <= ticks[-1]
    assert 0 in ticks
    assert 2 <= len(ticks) <= MAX_TICKS + 3


@given(st.integers(0, 500))
def test_names__are_few_and_include_the_last_one(number: int) -> None:
    named = named_columns(number)
    assert len(named) <= MAX_NAMES
    assert named == sorted(set(named))
    assert (named[-1:] == [number - 1]) == bool(number)


def test_draw__is_named_and_described_and_hides_the_rest_from_screen_readers() -> None:
    svg = plot([column(3)])
    assert svg.get("role") == "img"
    texts = {each.get("id"): each.text for each in svg if each.get("id")}
    assert svg.get("aria-labelledby").split() == list(texts)
    assert list(texts.values()) == ["T", "D"]
    axis = ElementTree.fromstring(draw([column(3)], name="c", title="T", description="D").axis)
    assert axis.get("aria-hidden") == "true"


def test_draw__has_no_style_and_no_script_and_escapes_text() -> None:
    chart = draw(
        [column(3, hint="<script>alert(1)</script>")], name="c", title="a & b", description='"'
    )
    assert "<script" not in chart.plot
    assert "a &amp; b" in chart.plot
    assert "style=" not in chart.plot + chart.axis


def test_draw__of_nothing_is_empty() -> None:
    assert list(plot([]).iter("rect")) == []
    assert heights(plot([column(0)]), "a0") == []
