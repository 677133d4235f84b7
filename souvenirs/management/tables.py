"""Tables that commands print, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from souvenirs.spreadsheets import csv_lines

Row = tuple[list[Any], bool]  # cells, and whether the row is complete


class Table(NamedTuple):
    """A row for each period, or for each value in a period. The columns of `text` identify it,
    those of `counts` contain numbers; a row may end before the last column.

    rows: may be an iterator, for reports that do not fit in memory.
    partial: why rows are not complete, for people.
    """

    text: Sequence[str]
    counts: Sequence[str]
    rows: Iterable[Row]
    partial: str = "not over yet, or cut by --before"

    @property
    def headers(self) -> list[str]:
        return [*self.text, *self.counts]

    def name(self, row: list[Any]) -> str:
        """Return a short name for a row."""
        return " ".join(map(str, row[: min(len(self.text), 2)]))

    def note(self, rows: Iterable[Row]) -> str:
        """Return a sentence that names the rows that are not complete; empty if all are."""
        partial = list(dict.fromkeys(str(row[0]) for row, complete in rows if not complete))
        if not partial:
            return ""
        names = partial[0] if len(partial) == 1 else f"{partial[0]} to {partial[-1]}"
        return f"\n\nPartial: {names} ({self.partial})"


def to_csv(table: Table) -> Iterator[str]:
    width = len(table.headers)
    rows = (
        [*row, *[""] * (width - len(row)), str(complete).lower()] for row, complete in table.rows
    )
    return csv_lines([*table.headers, "complete"], rows)


def to_json(table: Table) -> Iterator[str]:
    rows = [{**dict(zip(table.headers, row)), "complete": complete} for row, complete in table.rows]
    yield json.dumps(rows, indent=2, default=str)


def to_text(table: Table, style: str = "simple") -> Iterator[str]:
    rows = list(table.rows)
    # "2016" is a label, not a number (tabulate rejects a list of columns if there are no rows)
    labels = list(range(len(table.text))) if rows else False
    lines = tabulate(
        [row for row, _ in rows], table.headers, tablefmt=style, disable_numparse=labels
    )
    yield lines + table.note(rows)


def to_markdown(table: Table) -> Iterator[str]:
    return to_text(table, "pipe")


FORMATS: dict[str, Callable[[Table], Iterator[str]]] = {
    "table": to_text,
    "csv": to_csv,
    "json": to_json,
    "markdown": to_markdown,
}
