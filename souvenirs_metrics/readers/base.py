"""What a reader is."""

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

    The collector handles its deadline, its failures and the log; so `read` raises whatever goes
    wrong. What an instance keeps, it keeps between the collections of one process.

    name: what the log calls it, and the label of its part of the collection in metrics.
    order: readers are read, and shown on the page, from the lowest to the highest. It should rise
        with the cost: what comes after a reader that takes too long is left out, until that one is
        read last (see run.CollectionRun).
    families: everything that `read` may return.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    families: ClassVar[tuple[Family, ...]]

    @abstractmethod
    def read(self, now: float, context: ReadContext) -> Families:
        """The families as of `now` (unix seconds).

        Queries of a database belong inside `context(alias)`, which limits how long they take.
        Raises PartialRead if only some can be read.
        """


class PartialRead(Exception):
    """A reader could read these families, but not `missing`."""

    def __init__(self, families: Families, missing: str, cause: str) -> None:
        super().__init__(cause)
        self.families, self.missing = families, missing
