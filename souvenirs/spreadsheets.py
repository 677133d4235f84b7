"""CSV that a spreadsheet can open without running what users wrote."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

# What a cell begins with that spreadsheets compute (OWASP, CSV Injection)
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


class Echo:
    """A file whose `write` returns what it is given."""

    def write(self, text: str) -> str:
        return text


def safe_cell(value: Any) -> Any:
    """`value`, behind an apostrophe if it is text that a spreadsheet would compute, and without NUL
    characters, which Python 3.10 cannot write. Numbers, also negative ones, stay as they are; None
    is empty."""
    if not isinstance(value, str):
        return value
    text = value.replace("\0", "")
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def csv_lines(headers: Iterable[Any], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """The lines of a CSV file (RFC 4180), one at a time, with the headers first."""
    writer = csv.writer(Echo())
    for row in chain([headers], rows):
        yield writer.writerow([safe_cell(cell) for cell in row])
