"""Allocates disk space for the files of prometheus_client's multiprocess mode in advance.

prometheus_client creates sparse files and writes to them through a memory map. If the disk is full
at the time of such a write, the kernel kills the process (SIGBUS), and no exception can be caught.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from pathlib import Path

from souvenirs.logs import CauseLogger

logger = logging.getLogger("souvenirs_metrics")

FILE_BYTES = 1 << 16  # the size at which prometheus_client creates a file
RETRY_SECONDS = 60


class Allocation:
    """Decides whether this process may write to its files: checked before each write, and cheap
    once granted."""

    def __init__(self) -> None:
        self._failure = CauseLogger(
            logger, "Cannot write to PROMETHEUS_MULTIPROC_DIR, so visits are not counted"
        )
        self._granted_to = 0
        self._retry_at = 0.0

    def is_granted(self, directory: str) -> bool:
        """Return True if the files have been allocated.

        The first call in a process allocates them. After a failure, try again once a minute.
        """
        pid = os.getpid()  # after a fork, the child has separate files
        if self._granted_to == pid:
            return True
        if time.monotonic() < self._retry_at:
            return False
        try:
            for kind in kinds(directory):
                allocate(Path(directory, f"{kind}_{pid}.db"))
        except OSError as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._failure.failure(error)
            return False
        self._granted_to = pid
        self._failure.success()
        return True


def kinds(directory: str) -> set[str]:
    """The kinds of metrics, one file each, that this process may write: counters, such as ours,
    and every kind that has a file. After a fork, prometheus_client opens all of the parent's kinds
    again in the child."""
    return {"counter", *(path.stem.rpartition("_")[0] for path in Path(directory).glob("*_*.db"))}


def allocate(path: Path) -> None:
    """Allocate the part of the file that is in use, and FILE_BYTES more.

    Raise OSError if the disk has no room.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        used = struct.unpack("i", os.pread(file, 4, 0) or bytes(4))[0]
        os.posix_fallocate(file, 0, used + FILE_BYTES)
    except OSError:
        if not os.fstat(file).st_size:  # the collector cannot read an empty file
            path.unlink()
        raise
    finally:
        os.close(file)


allocation = Allocation()
