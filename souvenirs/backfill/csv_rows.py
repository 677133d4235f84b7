"""Lines of delimited values -> rows, where quotes may be missing."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from souvenirs.backfill.lines import MAX_LINE

Line = tuple[int, str]  # its number and its text

DELIMITERS = "\t;|,"


class Row(NamedTuple):
    """line, text: of the line that it begins on. values: None if one of them is too long."""

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
    """The rows of the lines, without those that are blank.

    A quoted value may go on over several lines, to MAX_LINE characters. If its end is missing, or
    a line that is a complete row by itself comes before it, a quote is stray: then the value ends
    with its line.
    """
    pending: deque[Line] = deque()  # lines that were read in search of a quote's end
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
    """A line, and those after it as far as its quoted value may go on."""

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
