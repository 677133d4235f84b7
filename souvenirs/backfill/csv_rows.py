"""Parse lines of delimited values as rows; quotes may be missing."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from souvenirs.backfill.lines import MAX_LINE

Line = tuple[int, str]  # number and text

DELIMITERS = "\t;|,"


class Row(NamedTuple):
    """line, text: of the line on which the row begins. values: None if one of them is too long."""

    line: int
    text: str
    values: list[str] | None


def split(text: str, delimiter: str) -> list[str] | None:
    try:
        return next(csv.reader([text], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # a value that is longer than csv.field_size_limit
        return None


def iter_rows(
    lines: Iterator[Line], delimiter: str, is_complete: Callable[[list[str] | None], bool]
) -> Iterator[Row]:
    """Yield the rows of the lines, except for blank lines.

    A quoted value may span several lines, up to MAX_LINE characters. If the closing quote is
    missing, or comes after a line that is a complete row, the opening quote is stray: then the
    value ends with its line.
    """
    pending: deque[Line] = deque()  # lines that were read in search of a closing quote
    while first := pending.popleft() if pending else next(lines, None):
        number, text = first
        if text.isspace():
            continue
        if '"' not in text or len(text) > MAX_LINE:
            yield Row(number, text, split(text, delimiter))
            continue
        ahead = _Ahead(text, pending, lines, lambda more: is_complete(split(more, delimiter)))
        row = csv.reader(ahead, delimiter=delimiter, skipinitialspace=True, strict=True)
        values: list[str] | None = None
        with suppress(csv.Error):
            values = next(row)
        if values is None or (ahead.taken and not is_complete(values)):
            pending.extendleft(reversed(ahead.taken))
            values = split(text, delimiter)
        yield Row(number, text, values)


class _Ahead:
    """Iterate over a line and the lines after it that its quoted value may continue on."""

    def __init__(
        self,
        text: str,
        pending: deque[Line],
        lines: Iterator[Line],
        is_complete: Callable[[str], bool],
    ) -> None:
        self.taken: list[Line] = []
        self._text, self._pending, self._lines = text, pending, lines
        self._is_complete = is_complete

    def __iter__(self) -> Iterator[str]:
        yield self._text
        length = len(self._text)
        while line := self._pending.popleft() if self._pending else next(self._lines, None):
            self.taken.append(line)
            length += len(line[1])
            if length > MAX_LINE or self._is_complete(line[1]):
                return
            yield line[1]
