"""One reading of the store, which several scrapes may wait for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

from prometheus_client import Metric

from souvenirs.lastseen.base import ReadContext
from souvenirs_metrics import families
from souvenirs_metrics.deadline import Deadline

logger = logging.getLogger("souvenirs_metrics")

Families = list[Metric]
# Reads some families, as of an instant (unix seconds)
Part = Callable[[float, ReadContext], Families]

PATIENCE_SECONDS = 0.1  # that the databases have to end statements by themselves


class Partly(Exception):
    """A part could read these families, but not `what`."""

    def __init__(self, families: Families, what: str, cause: str) -> None:
        super().__init__(cause)
        self.families, self.what = families, what


def cause_of(error: Exception) -> str:
    """In a line, without what a database adds of the statement."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


class Collection:
    """The parts are read one after the other, as of one instant. What fails is left out and logged,
    in one line.

    deadline: None if it runs in the caller's transaction, whose connections are not ours to limit.
    keep_up: rolls up a little, after all are read.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        deadline: Deadline | None = None,
        keep_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.started = time.monotonic()
        self.deadline = deadline
        self._now = time.time()
        self._left = {part.__name__: part for part in parts}
        self._families: Families = []
        self._keep_up = keep_up
        self._ended = threading.Event()
        self._lock = threading.Lock()  # of what a waiter and the thread both settle
        self._is_told = False
        self._took = 0.0

    def start(self) -> None:
        """Runs it in a thread of its own, which the process does not wait for at its end."""
        try:
            threading.Thread(target=self.run, name="souvenirs-collection", daemon=True).start()
        except RuntimeError as error:  # the system has no more
            self._end({cause_of(error): (list(self._left), error)})

    def answers(self, max_age: float) -> bool:
        """Whether it will do for who asks now: it runs, or began so many seconds ago at most."""
        return not self._ended.is_set() or time.monotonic() - self.started < max_age

    def run(self) -> None:
        failures: dict[str, tuple[list[str], Exception]] = {}
        reading: ReadContext = self.deadline.reading if self.deadline else nullcontext
        try:
            for name, part in list(self._left.items()):
                try:
                    read = part(self._now, reading)
                except Partly as partly:
                    failures.setdefault(str(partly), ([], partly))[0].append(partly.what)
                    with self._lock:
                        self._families += partly.families
                except Exception as error:
                    failures.setdefault(cause_of(error), ([], error))[0].append(name)
                else:
                    with self._lock:
                        self._families += read
                        del self._left[name]
            try:
                self._keep_up()
            except Exception as error:  # such as on a database that is read only: the lag shows it
                if cause_of(error) not in failures and not self._is_told:
                    logger.exception("Rolled up nothing: %s", cause_of(error))
        finally:
            try:
                if self.deadline:
                    self.deadline.close()
            finally:
                self._end(failures)

    def _end(self, failures: dict[str, tuple[list[str], Exception]]) -> None:
        self._took = time.monotonic() - self.started
        if failures and self._is_to_be_told():
            causes = "; ".join(
                f"{', '.join(names)} out of the metrics: {cause}"
                for cause, (names, _) in failures.items()
            )
            errors = [error for _, error in failures.values() if not isinstance(error, Partly)]
            if errors:
                logger.error("Left %s", causes, exc_info=errors[0])
            else:
                logger.warning("Left %s", causes)
        self._ended.set()

    def _is_to_be_told(self) -> bool:
        """Whether nobody has told yet what was left out."""
        with self._lock:
            was_told, self._is_told = self._is_told, True
        return not was_told

    def result(self, seconds: float) -> Families:
        """The families, after so many seconds at most: then those that are read by then."""
        if self.deadline:
            left = min(seconds, self.deadline.remaining()) + PATIENCE_SECONDS
            if not self._ended.wait(max(0, left)):
                self._go_without(self.deadline, seconds)
        with self._lock:
            took = self._took if self._ended.is_set() else time.monotonic() - self.started
            return [
                *self._families,
                families.UP.family(not self._left),
                families.COLLECTION_DURATION.family(took),
                families.COLLECTION_TIMESTAMP.family(self._now),
            ]

    def _go_without(self, deadline: Deadline, seconds: float) -> None:
        names = ", ".join(self._left)
        if deadline.remaining() > 0:  # somebody else has more time
            if names:
                logger.warning("Left %s out of a page that had to be there in %s s", names, seconds)
            return
        deadline.sever()  # each time, also of what was connecting the last time
        if self._is_to_be_told():
            what = f"Left {names} out of the metrics" if names else "Rolled up nothing"
            logger.error(
                "%s: the database did not answer within %.1f s",
                what,
                time.monotonic() - self.started,
            )
