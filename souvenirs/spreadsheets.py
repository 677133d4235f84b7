"""CSV that a spreadsheet can open without evaluating text from users as formulas."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

# Spreadsheets evaluate cells that begin with one of these (OWASP, CSV Injection)
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


class Echo:
    """A file whose `write` returns its argument."""

    def write(self, text: str) -> str:
        return text


def safe_cell(value: Any) -> Any:
    """Return `value`; text that a spreadsheet would evaluate gets an apostrophe in front, and NUL
    characters, which Python 3.10 cannot write, are removed. Numbers are unchanged, even negative
    ones; None is written as an empty cell."""
    if not isinstance(value, str):
        return value
    text = value.replace("\0", "")
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def csv_lines(headers: Iterable[Any], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """Yield the lines of a CSV file (RFC 4180), headers first."""
    writer = csv.writer(Echo())
    for row in chain([headers], rows):
        yield writer.writerow([safe_cell(cell) for cell in row])
