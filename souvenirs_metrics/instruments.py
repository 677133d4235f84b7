"""Process counters, fed by the signals of souvenirs."""

from __future__ import annotations

import logging
import os
from typing import Any

from prometheus_client import Counter

from souvenirs.recording.results import flush_hits
from souvenirs.signals import souvenir_recorded
from souvenirs_metrics import families

logger = logging.getLogger("souvenirs_metrics")

# In the default registry, as every process metric: in multiprocess mode prometheus_client keeps it
# in the process's file, and adds the files of all processes up.
RECORDS = Counter(families.RECORDS_NAME, families.RECORDS_DOCUMENTATION, labelnames=["result"])


def connect() -> None:
    """Starts counting."""
    if can_count():
        souvenir_recorded.connect(count_record, dispatch_uid="souvenirs_metrics.instruments")
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            show_results()  # else a management command that counts nothing would leave a file


def can_count() -> bool:
    """Whether counters have a place to be, in multiprocess mode; else a system check says so."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return directory is None or os.path.isdir(directory)


def show_results() -> None:
    """Puts every result on the page, at 0 if there was none: rates need a beginning."""
    for result in families.RECORDS_RESULTS:
        RECORDS.labels(result)


def count_record(result: str, count: int, **kwargs: Any) -> None:
    RECORDS.labels(result.replace("-", "_")).inc(count)


def flush() -> None:
    """Counts this process's visits that process memory has answered since it last told of any.

    Other processes tell of theirs with the next visit that their memory cannot answer.
    """
    flush_hits()
    if can_count():
        try:
            show_results()
        except OSError as error:  # it may not write there, or the disk is full
            logger.exception("Counted nothing: %r", error)
