"""Process counters, fed by the signals of souvenirs."""

from __future__ import annotations

import os
from typing import Any

from prometheus_client import Counter

from souvenirs.control import tell_hits
from souvenirs.signals import souvenir_recorded
from souvenirs_metrics import families

# In the default registry, as every process metric: in multiprocess mode prometheus_client keeps it
# in the process's file, and adds the files of all processes up.
RECORDS = Counter(families.RECORDS_NAME, families.RECORDS_DOCUMENTATION, labelnames=["result"])


def connect() -> None:
    """Starts counting. Every result is on the page from the start, at 0: rates need a beginning."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if directory is not None and not os.path.isdir(directory):
        return  # there is nowhere to count, and a system check says so
    souvenir_recorded.connect(count_record, dispatch_uid="souvenirs_metrics.instruments")
    for result in families.RECORDS_RESULTS:
        RECORDS.labels(result)


def count_record(result: str, count: int, **kwargs: Any) -> None:
    RECORDS.labels(result.replace("-", "_")).inc(count)


def flush() -> None:
    """Counts this process's visits that process memory has answered since it last told of any.

    Other processes tell of theirs with the next visit that their memory cannot answer.
    """
    tell_hits()
