"""Text charts, in color if the terminal supports it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from souvenirs.management.tables import Table

# For each kind of change: the character without colors, and the color (of 256) of a block with them
CHANGES = {"new": ("+", 77), "resurrected": ("~", 80), "retained": ("=", 69), "churned": ("-", 203)}
# Shades for a share of users, from none to all: from 256 colors, and as characters
COLORS = (235, 17, 18, 19, 20, 26, 32, 38, 44, 50, 86)
DARK = 6  # the colors up to this index are dark enough for white text
SHADES, PLAIN_SHADES = " ░▒▓█", " .:+#"


def has_color(stream: Any, options: Mapping[str, Any]) -> bool:
    """Return True to print colors: on a terminal, unless NO_COLOR or --no-color is set."""
    if options.get("no_color") or os.environ.get("NO_COLOR"):
        return False
    return bool(options.get("force_color") or stream.isatty())


def encodes(stream: Any, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def bars(table: Table, width: int) -> str:
    """Draw bars of active users: `#` for complete periods, `:` for partial ones."""
    rows = list(table.rows)
    names = [table.name(row) for row, _ in rows]
    counts = [row[-1] for row, _ in rows]
    margin = max(map(len, names), default=0)
    digits = max((len(str(count)) for count in counts), default=0)
    room = max(width - margin - digits - 4, 10)
    most = max(counts, default=0) or 1
    lines = [f"{table.counts[-1].capitalize()} users"]
    for name, count, (_, complete) in zip(names, counts, rows):
        bar = ("#" if complete else ":") * _length(count, most, room)
        lines.append(f"{name:<{margin}}  {count:>{digits}}  {bar}".rstrip())
    return "\n".join(lines) + table.note(rows)


def growth_bars(table: Table, width: int, color: bool) -> str:
    """Draw churned users to the left; retained, resurrected and new ones to the right."""
    first = len(table.text)
    columns = {name: first + table.counts.index(name) for name in CHANGES}
    rows = list(table.rows)
    names = [table.name(row) for row, _ in rows]
    changes = [{name: row[at] or 0 for name, at in columns.items()} for row, _ in rows]
    margin = max(map(len, names), default=0)
    left = max((each["churned"] for each in changes), default=0)
    right = max((sum(each.values()) - each["churned"] for each in changes), default=0)
    room = max(width - margin - 4, 20)
    most = left + right or 1
    left_room = _length(left, most, room)
    lines = ["  ".join(_block(name, 1, color) + " " + name for name in reversed(CHANGES)), ""]
    for name, (row, _), each in zip(names, rows, changes):
        if any(row[at] is None for at in columns.values()):
            lines.append(f"{name:<{margin}}  {' ' * left_room}| not known")
            continue
        churned = _length(each["churned"], most, room)
        bar = "".join(
            _block(change, _length(each[change], most, room), color)
            for change in ("retained", "resurrected", "new")
        )
        indent = " " * (left_room - churned)
        lines.append(f"{name:<{margin}}  {indent}{_block('churned', churned, color)}|{bar}")
    return "\n".join(lines) + table.note(rows)


def triangle(table: Table, color: bool, shades: str) -> str:
    """Draw the percentage of each cohort that was active at each age, shaded accordingly."""
    rows = list(table.rows)
    names = [table.name(row) for row, _ in rows]
    margin = max(map(len, names), default=0)
    size = table.counts[0]
    digits = max([len(size), *(len(str(row[len(table.text)])) for row, _ in rows)])
    ages = "".join(f"{f'+{age}':>5}" for age in range(1, len(table.counts)))
    lines = [f"{'':<{margin}}  {size:>{digits}}  {ages}".rstrip()]
    for name, (row, _) in zip(names, rows):
        users, *retained = row[len(table.text) :]
        cells = "".join(_cell(number / users if users else 0, color, shades) for number in retained)
        lines.append(f"{name:<{margin}}  {users:>{digits}}   {cells}".rstrip())
    return "\n".join(lines) + table.note(rows)


def _cell(share: float, color: bool, shades: str) -> str:
    text = f"{share:4.0%}"
    if not color:
        return f"{text}{shades[_step(share, shades)]}"
    step = _step(share, COLORS)
    foreground = 15 if step <= DARK else 16
    return f"\x1b[38;5;{foreground};48;5;{COLORS[step]}m{text} \x1b[0m"


def _step(share: float, steps: Sequence[Any]) -> int:
    """Return the index of a share among these steps; the first one is for 0 only."""
    return min(len(steps) - 1, 1 + int(share * (len(steps) - 1))) if share else 0


def _block(change: str, length: int, color: bool) -> str:
    character, number = CHANGES[change]
    if not color:
        return character * length
    return f"\x1b[48;5;{number}m{' ' * length}\x1b[0m" if length else ""


def _length(count: int, most: int, room: int) -> int:
    return max(round(count * room / most), 1) if count else 0
