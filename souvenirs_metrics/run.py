"""One run of the readers, which several scrapes may wait for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from souvenirs.logs import LogLimit, cause_of
from souvenirs_metrics.deadline import Deadline
from souvenirs_metrics.families import (
    COLLECTION_DURATION,
    COLLECTION_TIMESTAMP,
    PART_DURATION,
    PART_SUCCESS,
    UP,
)
from souvenirs_metrics.readers.base import Families, PartialRead, ReadContext, Reader

logger = logging.getLogger("souvenirs_metrics")

# Of the run itself
FAMILIES = (UP, PART_SUCCESS, PART_DURATION, COLLECTION_DURATION, COLLECTION_TIMESTAMP)

ABORT_SECONDS = 0.5  # that the thread has to end after an abort
CANCEL_GRACE_SECONDS = 0.1  # that databases have to cancel statements by themselves

# Between two warnings about scrapers that have less time than others. It is how they are set up
HASTY_REPEAT_SECONDS = 86_400


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

    def log(self, limit: LogLimit) -> None:
        """Log everything in one line, with the traceback of the first error."""
        causes = "; ".join(
            f"{', '.join(missing)} out of the metrics: {cause}"
            for cause, (missing, _) in self._by_cause.items()
        )
        if not limit.allows(causes):
            return
        errors = [e for _, e in self._by_cause.values() if not isinstance(e, PartialRead)]
        if errors:
            logger.error("Left %s", causes, exc_info=errors[0])
        else:
            logger.warning("Left %s", causes)


class Part:
    """What has become of a reader in a run."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.families: Families = []
        self.is_complete = False
        self.is_cut_off = False  # it had time when it began, and none when it failed
        self._began = self._ended = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._ended = time.monotonic()

    @property
    def is_running(self) -> bool:
        return self._ended < self._began

    @property
    def seconds(self) -> float:
        """How long it took, or has taken so far; 0 if its turn has not come."""
        return (time.monotonic() if self.is_running else self._ended) - self._began


class CollectionRun:
    """Reads with one reader after the other, as of one instant, then does the `upkeep`.

    Whatever fails is left out and logged, in one line. A reader that the `previous` run had to cut
    off is read last, so that it costs the other parts of the page one collection at most.

    deadline: None inside a transaction of the caller's, whose connections are not ours to limit.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        log_limit: LogLimit,
        deadline: Deadline | None = None,
        upkeep: Callable[[], None] = lambda: None,
        previous: CollectionRun | None = None,
    ) -> None:
        self.started = time.monotonic()
        self.deadline = deadline
        self._now = time.time()
        self._log_limit = log_limit
        self._parts = [Part(reader) for reader in readers]
        # Parts that take turns at the same long work stay last until they have been read
        self._read_last = previous.to_read_last if previous else set()
        self._upkeep = upkeep
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
            for name in self.missing:
                failures.add(name, error)
            self._end(failures)

    @property
    def missing(self) -> list[str]:
        """The names of the parts that have not been read, or not wholly."""
        return [part.reader.name for part in self._parts if not part.is_complete]

    @property
    def cut_off(self) -> set[str]:
        """The names of the parts that took, or are taking, all the time that there was."""
        return {part.reader.name for part in self._parts if part.is_cut_off or part.is_running}

    @property
    def to_read_last(self) -> set[str]:
        """The names of the parts that the next collection reads after all others."""
        return self.cut_off | self._read_last.intersection(self.missing)

    def can_answer(self, max_age: float) -> bool:
        """Whether a scrape may share it: it is running and has time left, or it read everything
        and began at most `max_age` seconds ago."""
        if not self._ended.is_set():
            return self._has_time()
        return not self.missing and time.monotonic() - self.started < max_age

    def _has_time(self) -> bool:
        return self.deadline is None or self.deadline.remaining() > 0

    def abort(self) -> None:
        """End it if it is still running, as its deadline has passed, and give it time to end."""
        if self.deadline and not self._ended.is_set():
            self.deadline.abort()
            self._ended.wait(ABORT_SECONDS)

    def run(self) -> None:
        failures = Failures()
        context: ReadContext = self.deadline.read_context if self.deadline else nullcontext
        try:
            for part in sorted(self._parts, key=lambda part: part.reader.name in self._read_last):
                self._read(part, context, failures)
            try:
                self._upkeep()
            except Exception as error:  # such as a read-only database; the lag shows it
                if error not in failures and not self._is_logged:
                    logger.exception("Rolled up nothing: %s", cause_of(error))
        finally:
            try:
                if self.deadline:
                    self.deadline.close()
            finally:
                self._end(failures)

    def _read(self, part: Part, context: ReadContext, failures: Failures) -> None:
        had_time = self._has_time()
        try:
            with part.measured():
                read = part.reader.read(self._now, context)
        except PartialRead as error:
            failures.add(error.missing, error)
            with self._lock:
                part.families = error.families
        except Exception as error:
            failures.add(part.reader.name, error)
            part.is_cut_off = had_time and not self._has_time()
        else:
            with self._lock:
                part.families, part.is_complete = read, True

    def _end(self, failures: Failures) -> None:
        self._duration = time.monotonic() - self.started
        if failures and self._claim_log():
            failures.log(self._log_limit)
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
                *(family for part in self._parts for family in part.families),
                UP.family(not self.missing),
                PART_SUCCESS.family({p.reader.name: p.is_complete for p in self._parts}),
                PART_DURATION.family({p.reader.name: p.seconds for p in self._parts}),
                COLLECTION_DURATION.family(duration),
                COLLECTION_TIMESTAMP.family(self._now),
            ]

    def _give_up(self, deadline: Deadline, seconds: float) -> None:
        names = ", ".join(self.missing)
        if deadline.remaining() > 0:  # another scrape has more time, and this one what is read
            cause = f"a page that had to be there in {seconds:.1f} s"
            if names and self._log_limit.allows(cause, HASTY_REPEAT_SECONDS):
                logger.warning("Left %s out of %s", names, cause)
            return
        deadline.abort()  # by every scrape that gives up, as it may have connected again since
        left_out = f"Left {names} out of the metrics" if names else "Rolled up nothing"
        if self._claim_log() and self._log_limit.allows(left_out):
            logger.error(
                "%s: the database did not answer within %.1f s",
                left_out,
                time.monotonic() - self.started,
            )
