"""The base class of readers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from prometheus_client import Metric

from souvenirs.lastseen.base import ReadContext
from souvenirs_metrics.families import Family

__all__ = ["Families", "PartialRead", "ReadContext", "Reader"]

Families = list[Metric]


class Reader(ABC):
    """Reads one subject of the page.

    The collection handles deadlines, failures and logging, so `read` may raise any error. Instances
    live as long as the collector, so they can cache results between a process's collections.

    name: the reader's name in the log, and the value of the label `part`.
    order: readers run, and appear on the page, in ascending order. It should rise with the cost:
        if a reader takes too long, the ones after it are left out, until it is moved to the end
        (see run.CollectionRun).
    families: everything that `read` may return.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    families: ClassVar[tuple[Family, ...]]

    @abstractmethod
    def read(self, now: float, context: ReadContext) -> Families:
        """Return the families as of `now` (unix seconds).

        Run database queries inside `context(alias)`, which limits how long they take. Raise
        PartialRead if only some of the values can be read.
        """


class PartialRead(Exception):
    """A reader could read these families, but not what `missing` names."""

    def __init__(self, families: Families, missing: str, cause: str) -> None:
        super().__init__(cause)
        self.families, self.missing = families, missing
