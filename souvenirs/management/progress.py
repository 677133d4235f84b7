"""Progress bars for long work, on a terminal."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from django.core.management.base import OutputWrapper
from tqdm import tqdm

untyped: Any = tqdm

DELAY_SECONDS = 1  # shorter work shows no bar
WHOLE = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f}{unit} [{elapsed}<{remaining}]"


class Progress(untyped):  # type: ignore[misc]
    """A progress bar on stderr, if that is a terminal, for work that takes over a second.

    It bypasses Django's wrapper of stderr, which would print each state of the bar as a red line.

    unit: what is counted, in the plural. Further options are tqdm's.
    """

    def __init__(
        self, stderr: OutputWrapper, iterable: Any = None, *, unit: str, **options: Any
    ) -> None:
        options.setdefault("total", len(iterable) if hasattr(iterable, "__len__") else None)
        if options["total"] and not options.get("unit_scale"):
            options["bar_format"] = WHOLE
        super().__init__(
            iterable,
            unit=f" {unit}",
            file=stderr._out,
            disable=None,  # if stderr is not a terminal
            delay=DELAY_SECONDS,
            **options,
        )

    def display(self, *args: Any, **options: Any) -> Any:
        # tqdm forgets the delay when other output interrupts the bar
        is_due = not self.delay or self._time() >= self.start_t + self.delay
        return super().display(*args, **options) if is_due else None


def interrupted(stderr: OutputWrapper) -> AbstractContextManager[None]:
    """Clear all bars, so that the block can write other output, and redraw them after it."""
    context: AbstractContextManager[None] = untyped.external_write_mode(file=stderr._out)
    return context
