"""Tables that commands print, for people and for machines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from tabulate import tabulate


class Table(NamedTuple):
    """A row for each period. The columns of `text` say which period, those of `counts` count; a
    row may end before the last of them.

    partial: why rows are not complete, for people.
    """

    text: list[str]
    counts: list[str]
    rows: list[list[Any]]
    complete: list[bool]
    partial: str = "not over yet, or cut by --before"

    @property
    def headers(self) -> list[str]:
        return [*self.text, *self.counts]

    @property
    def names(self) -> list[str]:
        """What each row is called where there is little room."""
        return [" ".join(map(str, row[: min(len(self.text), 2)])) for row in self.rows]


def to_csv(table: Table) -> str:
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow([*table.headers, "complete"])
    for row, complete in zip(table.rows, table.complete):
        blank = [""] * (len(table.headers) - len(row))
        writer.writerow([*row, *blank, str(complete).lower()])
    return lines.getvalue()


def to_json(table: Table) -> str:
    rows = zip(table.rows, table.complete)
    return json.dumps(
        [{**dict(zip(table.headers, row)), "complete": complete} for row, complete in rows],
        indent=2,
    )


def to_text(table: Table, style: str = "simple") -> str:
    # "2016" is a label, no number (and tabulate cannot be told of columns where it has no rows)
    labels = list(range(len(table.text))) if table.rows else False
    lines = tabulate(table.rows, table.headers, tablefmt=style, disable_numparse=labels)
    return lines + note(table)


def to_markdown(table: Table) -> str:
    return to_text(table, "pipe")


def note(table: Table) -> str:
    partial = [str(row[0]) for row, complete in zip(table.rows, table.complete) if not complete]
    if not partial:
        return ""
    names = partial[0] if len(partial) == 1 else f"{partial[0]} to {partial[-1]}"
    return f"\n\nPartial: {names} ({table.partial})"


FORMATS: dict[str, Callable[[Table], str]] = {
    "table": to_text,
    "csv": to_csv,
    "json": to_json,
    "markdown": to_markdown,
}
