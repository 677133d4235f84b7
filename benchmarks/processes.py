"""The processor time of servers, from the kernel's clocks. Linux only."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
CPUCLOCK_SCHED = 2


def cpu_seconds(pids: Iterable[int]) -> float:
    """The processor time of these processes and their descendants, including ended ones."""
    return sum(
        _of_process(pid) + _of_ended_children(pid) for root in pids for pid in _with_children(root)
    )


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from _with_children(int(child))


def _of_process(pid: int) -> float:
    """Of all its threads, to the nanosecond: clock_getcpuclockid(3) derives this clock id from a
    pid."""
    try:
        return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)
    except OSError:  # it has just ended, and its time counts with its parent's children
        return 0


def _of_ended_children(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cutime, cstime = map(int, fields[13:15])
    return (cutime + cstime) / TICKS
