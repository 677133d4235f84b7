"""Read lines of bounded length from text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from souvenirs.backfill.entries import RejectedLine, rejected

MAX_LINE = 1_000_000  # characters


def bounded_lines(text: TextIO) -> Iterator[str]:
    """Yield the lines of a file. Of a line longer than MAX_LINE, keep only that much in memory at a
    time, and yield its beginning, which readers reject: see `too_long`.

    `text` must not translate line endings: open text files with newline="".
    """
    while line := text.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(("\n", "\r")):
            rest = text.readline(MAX_LINE + 1)
        yield line


def too_long(line: int, text: str) -> RejectedLine | None:
    return rejected(line, "longer than 1 MB", text) if len(text) > MAX_LINE else None
