"""Disk space for the files of prometheus_client's multiprocess mode, before it is written to.

prometheus_client makes sparse files and writes to them through a memory map. If the disk turns out
to be full only then, the kernel ends the process (SIGBUS): nothing can be caught.
"""

from __future__ import annotations

import logging
import os
import struct
import time
from pathlib import Path

from souvenirs.logs import CauseLogger

logger = logging.getLogger("souvenirs_metrics")

FILE_BYTES = 1 << 16  # what prometheus_client makes a new file
RETRY_SECONDS = 60


class Allocation:
    """Whether this process may write to its files. Asked before each write; cheap if granted."""

    def __init__(self) -> None:
        self._failure = CauseLogger(
            logger, "Cannot write to PROMETHEUS_MULTIPROC_DIR, so not counted"
        )
        self._granted_to = 0
        self._retry_at = 0.0

    def is_granted(self, directory: str) -> bool:
        """Allocate the files on the first call in a process; after a failure, once a minute."""
        pid = os.getpid()  # the child of a fork has files of its own
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
    """The kinds of metrics, one file each, that this process may write: counters, which ours are,
    and after a fork, when all are set up again, those that its parent had."""
    return {"counter", *(path.stem.rpartition("_")[0] for path in Path(directory).glob("*_*.db"))}


def allocate(path: Path) -> None:
    """Reserve what is written of the file, and room for more. Raises OSError if there is none."""
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
