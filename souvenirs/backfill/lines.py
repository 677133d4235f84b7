"""Text -> lines of bounded length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from souvenirs.backfill.entries import Bad, rejected

MAX_LINE = 1_000_000  # characters


def bounded_lines(text: TextIO) -> Iterator[str]:
    """The lines of a file. Of one that is longer than MAX_LINE only so much is in memory at a time,
    and its beginning is yielded, which readers then refuse: see `too_long`.

    `text` must not translate line endings, as text files do that are opened with newline="".
    """
    while line := text.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(("\n", "\r")):
            rest = text.readline(MAX_LINE + 1)
        yield line


def too_long(line: int, text: str) -> Bad | None:
    return rejected(line, "longer than 1 MB", text) if len(text) > MAX_LINE else None
