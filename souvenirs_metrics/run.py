"""One run of the readers, which several scrapes may wait for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from souvenirs.logs import cause_of
from souvenirs_metrics.deadline import Deadline
from souvenirs_metrics.families import COLLECTION_DURATION, COLLECTION_TIMESTAMP, UP
from souvenirs_metrics.readers.base import Families, PartialRead, ReadContext, Reader

logger = logging.getLogger("souvenirs_metrics")

FAMILIES = (UP, COLLECTION_DURATION, COLLECTION_TIMESTAMP)  # of the run itself

CANCEL_GRACE_SECONDS = 0.1  # that databases have to cancel statements by themselves


class Failures:
    """What could not be read, by cause: a database that is away is one cause for many readers."""

    def __init__(self) -> None:
        self._by_cause: dict[str, tuple[list[str], Exception]] = {}

    def add(self, missing: str, error: Exception) -> None:
        cause = str(error) if isinstance(error, PartialRead) else cause_of(error)
        self._by_cause.setdefault(cause, ([], error))[0].append(missing)

    def __contains__(self, error: Exception) -> bool:
        return cause_of(error) in self._by_cause

    def __bool__(self) -> bool:
        return bool(self._by_cause)

    def log(self) -> None:
        """Log everything in one line, with the traceback of the first error."""
        causes = "; ".join(
            f"{', '.join(missing)} out of the metrics: {cause}"
            for cause, (missing, _) in self._by_cause.items()
        )
        errors = [e for _, e in self._by_cause.values() if not isinstance(e, PartialRead)]
        if errors:
            logger.error("Left %s", causes, exc_info=errors[0])
        else:
            logger.warning("Left %s", causes)


class CollectionRun:
    """Reads with one reader after the other, as of one instant, then does `maintain`.

    Whatever fails is left out and logged, in one line.

    deadline: None inside a transaction of the caller's, whose connections are not ours to limit.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        deadline: Deadline | None = None,
        maintain: Callable[[], None] = lambda: None,
    ) -> None:
        self.started = time.monotonic()
        self.deadline = deadline
        self._now = time.time()
        self._readers = readers
        self._missing = {reader.name: reader for reader in readers}
        self._families: Families = []
        self._maintain = maintain
        self._ended = threading.Event()
        self._lock = threading.Lock()  # of what both a waiting scrape and the thread change
        self._is_logged = False
        self._duration = 0.0

    def start(self) -> None:
        """Run in a thread, which the process does not wait for at its end."""
        try:
            threading.Thread(target=self.run, name="souvenirs-collection", daemon=True).start()
        except RuntimeError as error:  # the system allows no more threads
            failures = Failures()
            for name in self._missing:
                failures.add(name, error)
            self._end(failures)

    def can_answer(self, max_age: float) -> bool:
        """Whether a scrape may share it: it is running, or began at most so many seconds ago."""
        return not self._ended.is_set() or time.monotonic() - self.started < max_age

    def run(self) -> None:
        failures = Failures()
        context: ReadContext = self.deadline.read_context if self.deadline else nullcontext
        try:
            for reader in self._readers:
                self._read(reader, context, failures)
            try:
                self._maintain()
            except Exception as error:  # such as a read-only database; the lag shows it
                if error not in failures and not self._is_logged:
                    logger.exception("Rolled up nothing: %s", cause_of(error))
        finally:
            try:
                if self.deadline:
                    self.deadline.close()
            finally:
                self._end(failures)

    def _read(self, reader: Reader, context: ReadContext, failures: Failures) -> None:
        try:
            read = reader.read(self._now, context)
        except PartialRead as error:
            failures.add(error.missing, error)
            with self._lock:
                self._families += error.families
        except Exception as error:
            failures.add(reader.name, error)
        else:
            with self._lock:
                self._families += read
                del self._missing[reader.name]

    def _end(self, failures: Failures) -> None:
        self._duration = time.monotonic() - self.started
        if failures and self._claim_log():
            failures.log()
        self._ended.set()

    def _claim_log(self) -> bool:
        """Whether the caller is the first to log what was left out."""
        with self._lock:
            was_logged, self._is_logged = self._is_logged, True
        return not was_logged

    def result(self, seconds: float) -> Families:
        """The families; if it takes longer than `seconds`, those that have been read by then."""
        if self.deadline:
            left = min(seconds, self.deadline.remaining()) + CANCEL_GRACE_SECONDS
            if not self._ended.wait(max(0, left)):
                self._give_up(self.deadline, seconds)
        with self._lock:
            is_ended = self._ended.is_set()
            duration = self._duration if is_ended else time.monotonic() - self.started
            return [
                *self._families,
                UP.family(not self._missing),
                COLLECTION_DURATION.family(duration),
                COLLECTION_TIMESTAMP.family(self._now),
            ]

    def _give_up(self, deadline: Deadline, seconds: float) -> None:
        names = ", ".join(self._missing)
        if deadline.remaining() > 0:  # another scrape has more time
            if names:
                logger.warning("Left %s out of a page that had to be there in %s s", names, seconds)
            return
        deadline.abort()  # by every scrape that gives up, as it may have connected again since
        if self._claim_log():
            left_out = f"Left {names} out of the metrics" if names else "Rolled up nothing"
            logger.error(
                "%s: the database did not answer within %.1f s",
                left_out,
                time.monotonic() - self.started,
            )
