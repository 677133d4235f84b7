"""Draw numbers as bar charts in SVG. Pure.

A chart is two drawings side by side: the axis, of a fixed width, and the plot, which takes the
rest. In the plot, x is in percent and y in pixels, so text and lines keep their size on a phone.
Colours are classes of a style sheet, to support themes, and because a Content-Security-Policy may
forbid anything else. Screen readers read only the title and the description of a plot: the numbers
are in a table next to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

HEIGHT = 200  # pixels, of the bars
TOP, BOTTOM = 12, 24  # pixels, for half a line of text and for the names of columns
MAX_TICKS = 5
MAX_NAMES = 5  # of columns, so that they fit on a phone
CHARACTER = 7  # width of a digit, in pixels
GAP = 0.2  # between columns, as a share of a column


class Bar(NamedTuple):
    """A part of a column; `name` is the CSS class with its colour."""

    name: str
    value: int


@dataclass(frozen=True, kw_only=True)
class Column:
    """Stacked bars, above the zero line and below it.

    name: shown on the axis, if there is room. hint: shown by the pointer.
    partial: whether the bars belong to a period that is not over.
    """

    name: str
    hint: str
    above: tuple[Bar, ...] = ()
    below: tuple[Bar, ...] = ()
    partial: bool = False


class Chart(NamedTuple):
    axis: str
    plot: str


def draw(
    columns: Sequence[Column],
    *,
    name: str,
    title: str,
    description: str,
    number: Callable[[int], str] = str,
) -> Chart:
    """Draw a chart of columns, as the markup of two <svg>.

    name: prefix of the ids in it, so it must differ between the charts of a page.
    number: formats the numbers of the axis.
    """
    highest = max((sum(bar.value for bar in each.above) for each in columns), default=0)
    lowest = max((sum(bar.value for bar in each.below) for each in columns), default=0)
    ticks = ticks_between(-lowest, highest)
    scale = Scale(ticks[0], ticks[-1])
    return Chart(
        _axis(ticks, scale, number), _plot(columns, ticks, scale, name, title, description)
    )


class Scale(NamedTuple):
    """Convert values to pixels from the top."""

    lowest: int
    highest: int

    def y(self, value: float) -> float:
        return TOP + HEIGHT * (self.highest - value) / (self.highest - self.lowest)


def ticks_between(lowest: int, highest: int) -> list[int]:
    """Return at most MAX_TICKS + 2 round whole numbers, from `lowest` or less (at most 0) to
    `highest` or more, including 0."""
    reach = max(highest - lowest, 1)
    step = next(n for n in round_numbers() if n * MAX_TICKS >= reach)
    first, last = lowest // step, -(-highest // step)
    return [step * n for n in range(first, max(last, first + 1) + 1)]


def round_numbers() -> Iterator[int]:
    """1, 2, 5, 10, 20, 50..."""
    return (digit * 10**power for power in count() for digit in (1, 2, 5))


def _axis(ticks: Sequence[int], scale: Scale, number: Callable[[int], str]) -> str:
    names = [number(abs(tick)) for tick in ticks]
    width = CHARACTER * max(map(len, names)) + 8
    svg = _svg(width=str(width), attributes={"class": "axis", "aria-hidden": "true"})
    for tick, name in zip(ticks, names):
        where = {"x": str(width - 6), "y": _pixels(scale.y(tick) + 4), "text-anchor": "end"}
        SubElement(svg, "text", where).text = name
    return _markup(svg)


def _plot(
    columns: Sequence[Column],
    ticks: Sequence[int],
    scale: Scale,
    name: str,
    title: str,
    description: str,
) -> str:
    labels = {"role": "img", "aria-labelledby": f"{name}-title {name}-description"}
    svg = _svg(width="100%", attributes={"class": "plot", **labels})
    SubElement(svg, "title", {"id": f"{name}-title"}).text = title
    SubElement(svg, "desc", {"id": f"{name}-description"}).text = description
    for tick in ticks:
        y = _pixels(scale.y(tick))
        line = {"x1": "0", "x2": "100%", "y1": y, "y2": y, "class": "grid" if tick else "zero"}
        SubElement(svg, "line", line)
    width = 100 / max(len(columns), 1)
    for n, column in enumerate(columns):
        _draw_column(svg, column, scale, n * width, width)
    for n in named_columns(len(columns)):
        where = {"x": f"{(n + 0.5) * width:.3f}%", "y": str(TOP + HEIGHT + BOTTOM - 6)}
        anchor = "middle"
        if len(columns) > 2 * MAX_NAMES:  # a name is wider than its column
            anchor = {0: "start", len(columns) - 1: "end"}.get(n, "middle")
            where["x"] = {"start": "0", "end": "100%"}.get(anchor, where["x"])
        SubElement(svg, "text", {**where, "text-anchor": anchor}).text = columns[n].name
    return _markup(svg)


def _draw_column(svg: Element, column: Column, scale: Scale, x: float, width: float) -> None:
    group = SubElement(svg, "g", {"class": "column partial" if column.partial else "column"})
    SubElement(group, "title").text = column.hint
    # The hint is shown over the full height of the column, even if no users were active
    _rectangle(group, "hint", x, width, TOP, TOP + HEIGHT)
    for bars, sign in ((column.above, 1), (column.below, -1)):
        base = 0
        for bar in bars:
            ends = scale.y(sign * base), scale.y(sign * (base + bar.value))
            if bar.value:
                inner = width * (1 - GAP)
                _rectangle(group, bar.name, x + width * GAP / 2, inner, min(ends), max(ends))
            base += bar.value


def _rectangle(
    group: Element, name: str, x: float, width: float, top: float, bottom: float
) -> None:
    SubElement(
        group,
        "rect",
        {
            "class": name,
            "x": f"{x:.3f}%",
            "width": f"{width:.3f}%",
            "y": _pixels(top),
            "height": _pixels(bottom - top),
        },
    )


def named_columns(number: int) -> list[int]:
    """Return which of so many columns have a name below them: at most MAX_NAMES, evenly spaced,
    including the last one."""
    step = -(-number // MAX_NAMES) or 1
    return list(range(number - 1, -1, -step))[::-1]


def _svg(width: str, attributes: dict[str, str]) -> Element:
    height = str(TOP + HEIGHT + BOTTOM)
    return Element("svg", {"width": width, "height": height, "focusable": "false", **attributes})


def _pixels(value: float) -> str:
    return f"{value:.1f}"


def _markup(svg: Element) -> str:
    return ElementTree.tostring(svg, encoding="unicode", short_empty_elements=True)
