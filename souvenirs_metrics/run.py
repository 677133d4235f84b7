"""One run of the readers, whose result several scrapes may share."""

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

# Families about the run itself
FAMILIES = (UP, PART_SUCCESS, PART_DURATION, COLLECTION_DURATION, COLLECTION_TIMESTAMP)

ABORT_SECONDS = 0.5  # how long the thread may take to end after an abort
CANCEL_GRACE_SECONDS = 0.1  # how long databases may take to cancel statements by themselves

# Between warnings about a scraper with a shorter timeout than others: it is configured that way
SHORT_TIMEOUT_WARNING_SECONDS = 86_400


class Failures:
    """What could not be read, by cause: many readers may fail for the same one, such as a database
    that is down."""

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
        """Log all failures in one line, with the traceback of the first error."""
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
    """The state of one reader in a run."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.families: Families = []
        self.is_complete = False
        self.is_cut_off = False  # there was time left when it began, and none when it failed
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
        """How long the reader took, or has taken so far; 0 if its turn has not come."""
        return (time.monotonic() if self.is_running else self._ended) - self._began


class CollectionRun:
    """Calls one reader after the other, as of one instant, and then does the `upkeep`.

    Values that could not be read are left out, and all failures are logged in one line. Readers
    that were cut off in the `previous` run are called last, so that they cost the other parts of
    the page one collection at most.

    deadline: None inside a transaction of the caller, whose connections are not ours to limit.
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
        # Parts that take turns doing the same slow work stay last until they have been read
        self._read_last = previous.to_read_last if previous else set()
        self._upkeep = upkeep
        self._ended = threading.Event()
        self._lock = threading.Lock()  # guards what both the thread and waiting scrapes change
        self._is_logged = False
        self._duration = 0.0

    def start(self) -> None:
        """Run in a daemon thread: the process does not wait for it on exit."""
        try:
            threading.Thread(target=self.run, name="souvenirs-collection", daemon=True).start()
        except RuntimeError as error:  # the system's limit of threads is reached
            failures = Failures()
            for name in self.missing:
                failures.add(name, error)
            self._end(failures)

    @property
    def missing(self) -> list[str]:
        """The names of the parts that have not been read, or not completely."""
        return [part.reader.name for part in self._parts if not part.is_complete]

    @property
    def cut_off(self) -> set[str]:
        """The names of the parts that used up the time that was left, or are still running."""
        return {part.reader.name for part in self._parts if part.is_cut_off or part.is_running}

    @property
    def to_read_last(self) -> set[str]:
        """The names of the parts that the next collection should read after all others."""
        return self.cut_off | self._read_last.intersection(self.missing)

    def can_answer(self, max_age: float) -> bool:
        """Return True if another scrape may share this run: it is running and has time left, or it
        read everything and began less than `max_age` seconds ago."""
        if not self._ended.is_set():
            return self._has_time()
        return not self.missing and time.monotonic() - self.started < max_age

    def _has_time(self) -> bool:
        return self.deadline is None or self.deadline.remaining() > 0

    def abort(self) -> None:
        """Abort the run if it is still running after its deadline, and wait briefly for its end."""
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
            except Exception as error:  # for example a read-only database; the lag metric shows it
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
        """Return True if nobody has logged the failures of this run yet; the caller then does."""
        with self._lock:
            was_logged, self._is_logged = self._is_logged, True
        return not was_logged

    def result(self, seconds: float) -> Families:
        """The families; if the run takes longer than `seconds`, those that were read by then."""
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
        if deadline.remaining() > 0:  # another scrape has more time: the run goes on
            cause = f"a page that was due within {seconds:.1f} s"
            if names and self._log_limit.allows(cause, SHORT_TIMEOUT_WARNING_SECONDS):
                logger.warning("Left %s out of %s", names, cause)
            return
        deadline.abort()  # on each scrape that gives up, as there may be a new connection since
        left_out = f"Left {names} out of the metrics" if names else "Rolled up nothing"
        if self._claim_log() and self._log_limit.allows(left_out):
            logger.error(
                "%s: the database did not answer within %.1f s",
                left_out,
                time.monotonic() - self.started,
            )
