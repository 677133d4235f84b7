"""Counters of this process, incremented by the signals of souvenirs."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from prometheus_client import REGISTRY, Counter

from souvenirs.recording.results import flush_hits
from souvenirs.recording.writer import writer
from souvenirs.signals import souvenir_recorded, visits_queued, write_failed
from souvenirs_metrics import families
from souvenirs_metrics.allocation import allocation

# In the default registry, like every process metric. In multiprocess mode prometheus_client keeps
# it in a file of the process, and adds up the files of all processes.
RECORDS = Counter(families.RECORDS_NAME, families.RECORDS_DOCUMENTATION, labelnames=["result"])


@cache
def writer_counters() -> tuple[Counter, Counter]:
    """The counters of queued visits and of write errors.

    They are created on first use, because a counter without labels creates the process's file at
    once.
    """
    return (
        Counter(families.QUEUED_NAME, families.QUEUED_DOCUMENTATION),
        Counter(families.WRITE_ERRORS_NAME, families.WRITE_ERRORS_DOCUMENTATION),
    )


def connect() -> None:
    """Start counting."""
    if has_directory():
        souvenir_recorded.connect(count_record, dispatch_uid="souvenirs_metrics.instruments")
        visits_queued.connect(count_queued, dispatch_uid="souvenirs_metrics.instruments")
        write_failed.connect(count_write_error, dispatch_uid="souvenirs_metrics.instruments")
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            # Not in multiprocess mode, where commands that count nothing would leave a file behind
            initialize_results()


def has_directory() -> bool:
    """Return False if multiprocess mode is on but its directory does not exist, which a system
    check reports."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return directory is None or os.path.isdir(directory)


def can_count() -> bool:
    """Return False while this process may not write to its multiprocess files."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return directory is None or allocation.is_granted(directory)


def initialize_results() -> None:
    """Create the series of every result, at 0: rates need a starting value."""
    for result in families.RECORDS_RESULTS:
        RECORDS.labels(result)
    writer_counters()


def count_record(result: str, count: int, **kwargs: Any) -> None:
    if can_count():
        RECORDS.labels(result.replace("-", "_")).inc(count)


def count_queued(count: int, **kwargs: Any) -> None:
    if can_count():
        writer_counters()[0].inc(count)


def count_write_error(**kwargs: Any) -> None:
    if can_count():
        writer_counters()[1].inc()


def hide_process_counters() -> None:
    """Remove the counters from the page of a process that handles no visits, such as the exporter.

    There they would always be 0, which looks as if no visits were recorded. In multiprocess mode
    they stay, because the page adds up the counters of the site's processes.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        for counter in (RECORDS, *writer_counters()):
            REGISTRY.unregister(counter)


def flush() -> None:
    """Count the visits that this process has answered from memory, or queued, since the last call.

    Other processes add theirs with the next visit that their memory cannot answer.
    """
    flush_hits()
    writer.send_queued()
    if has_directory() and can_count():
        initialize_results()
