"""Process counters, fed by the signals of souvenirs."""

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

# In the default registry, as every process metric: in multiprocess mode prometheus_client keeps it
# in the process's file, and adds the files of all processes up.
RECORDS = Counter(families.RECORDS_NAME, families.RECORDS_DOCUMENTATION, labelnames=["result"])


@cache
def writer_counters() -> tuple[Counter, Counter]:
    """Visits queued, and write errors. They are made on first use: without labels, they make the
    process's file at once."""
    return (
        Counter(families.QUEUED_NAME, families.QUEUED_DOCUMENTATION),
        Counter(families.WRITE_ERRORS_NAME, families.WRITE_ERRORS_DOCUMENTATION),
    )


def connect() -> None:
    """Starts counting."""
    if has_place():
        souvenir_recorded.connect(count_record, dispatch_uid="souvenirs_metrics.instruments")
        visits_queued.connect(count_queued, dispatch_uid="souvenirs_metrics.instruments")
        write_failed.connect(count_write_error, dispatch_uid="souvenirs_metrics.instruments")
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            show_results()  # else a management command that counts nothing would leave a file


def has_place() -> bool:
    """Return False if multiprocess mode has no directory. A system check reports that."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return directory is None or os.path.isdir(directory)


def can_count() -> bool:
    """Return False while this process must not write to its multiprocess files."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return directory is None or allocation.is_granted(directory)


def show_results() -> None:
    """Puts every result on the page, at 0 if there was none: rates need a beginning."""
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
    """Leave the counters off the pages of a process that serves no visits, such as the exporter.

    They would be 0 there, which reads as "nobody is recorded". In multiprocess mode the page adds
    up the counters of the site's processes, so it stays right.
    """
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        for counter in (RECORDS, *writer_counters()):
            REGISTRY.unregister(counter)


def flush() -> None:
    """Counts this process's visits that process memory has answered since it last told of any.

    Other processes tell of theirs with the next visit that their memory cannot answer.
    """
    flush_hits()
    writer.send_queued()
    if has_place() and can_count():
        show_results()
