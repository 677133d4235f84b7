"""How much memory a process needs to remember the users it has recorded, however many users it
serves.

Many distinct users, 10,000,000 by default, go through one process. Each comes once, with a separate
session, through the same code path as SouvenirsMiddleware (its `record_session`, which calls
`souvenez`), and also leaves an unknown session. The benchmark measures everything that souvenirs
keeps in the process. So there is no database and no shared cache: the session gives the user at
once, writes only confirm the rate limit's claim as a commit does, and what would be in the shared
cache is in the process, as on a site with a local-memory cache.

The bound is computed from the constants that limit each of these, and from the sizes that Python
reports for dictionaries, keys and values of that length:

    memory.recent_users       2 generations of MAX_USERS users
    memory.recent_sessions    2 generations of MAX_USERS digests
    sessions.unknown_sessions 2 generations of MAX_USERS digests and times
    memory.missing_users      2 generations of MAX_MISSING keys and times
    throttle's local cache    max_entries = MAX_USERS keys, pickled values and times
    the writer's queue        MAX_ENTRIES entries, as while the database is down

While a dictionary grows, the old table exists beside the new one, so the largest table counts
twice. A quarter of the total is added for fragmentation: freed entries leave gaps of their size in
the heap. The keys of users are integers; longer ones (UUIDs, strings) take more.

Memory is the process's resident memory above its level before the first user. Exits with 1 if it
exceeds the bound. "Growth in the second half" shows whether it was still growing then. The queue is
measured in a separate process, after as many entries have been dropped as it holds.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest import mock

from tabulate import tabulate
from tqdm import tqdm

from benchmarks import website

MIB = 1 << 20
STEP = 100_000


def allocated(thing: Any) -> int:
    """The bytes that Python allocates for an object: small sizes are rounded up to 16."""
    return -(-sys.getsizeof(thing) // 16) * 16


def bounds(users: int) -> dict[str, int]:
    """The maximum size of each memory in bytes, with up to `users` (MAX_USERS) in a generation."""
    from souvenirs.recording.memory import MAX_MISSING

    table = sys.getsizeof(dict.fromkeys(range(users)))
    ordered = sys.getsizeof(OrderedDict.fromkeys(range(users)))
    missing = sys.getsizeof(dict.fromkeys(range(MAX_MISSING)))
    key, digest, moment = allocated(10**8), allocated(b"." * 16), allocated(time.time())
    cache_key = allocated(":1:souvenirs.100000000.3600.0.1700000000.0")
    cache_value = allocated(pickle.dumps(time.time(), pickle.HIGHEST_PROTOCOL))
    parts = {
        "memory.recent_users": 2 * (table + users * key),
        "memory.recent_sessions": 2 * (table + users * digest),
        "sessions.unknown_sessions": 2 * (table + users * (digest + moment)),
        "memory.missing_users": 2 * (missing + MAX_MISSING * (key + moment)),
        "throttle's local cache": (ordered + table + users * (cache_key + cache_value + moment)),
        "the writer's queue": queue_bytes(),
        "a table while it grows": ordered,
    }
    return {**parts, "holes in the heap": sum(parts.values()) // 4}


def queue_bytes() -> int:
    """The maximum size of the queue in bytes. Its oldest entries are dropped, so its table is
    fragmented too."""
    from souvenirs.periods import Interval
    from souvenirs.recording.queue import MAX_ENTRIES, Entry

    moment = time.time()
    entry = Entry(10**8, Interval(moment, moment), moment, moment)
    each = sum(map(allocated, (entry, (0, moment), moment, 10**8)))
    return 2 * sys.getsizeof(dict.fromkeys(range(MAX_ENTRIES))) + MAX_ENTRIES * each


def queue_growth() -> int:
    """The growth in bytes caused by a full queue."""
    from souvenirs.periods import Interval
    from souvenirs.recording.queue import MAX_ENTRIES, VisitQueue

    queue, now = VisitQueue(), time.time()
    slot = Interval(now, now)
    before = resident()
    for number in range(2 * MAX_ENTRIES):
        queue.add(10**8 + number, slot, now + number / 1000, has_row=False)
    return resident() - before


def resident() -> int:
    """The process's resident memory now, in bytes. Linux only."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


class Person:
    def __init__(self, pk: int) -> None:
        self.pk = pk


def visit_all(users: int) -> list[int]:
    """The growth in bytes after each STEP users."""
    from django.contrib.sessions.backends.db import SessionStore

    from souvenirs.lastseen import get_store
    from souvenirs.recording import recorder, results, sessions, tasks, windows
    from souvenirs.recording.throttle import throttle
    from souvenirs.recording.writer import writer

    def write(visit: recorder.Recording, claim: Any, check_duplicate: bool) -> str:
        if claim is not None and visit.slot is not None:
            throttle.confirm(claim, visit.slot)
        return results.ADDED

    # Plain functions: mocks would keep all their calls
    def touch(*args: Any, **options: Any) -> None:
        pass

    def session_user(session: Any) -> Person | None:
        return person

    growth = []
    now = time.time()
    slot = windows.containing(now).slot
    person: Person | None = None
    with (
        mock.patch.object(recorder.Recording, "write", write),
        mock.patch.object(get_store(), "touch", touch),
        mock.patch.object(sessions, "session_user", session_user),
    ):
        before = resident()
        for first in tqdm(range(1, users + 1, STEP), unit_scale=STEP, unit="user"):
            for pk in range(first, min(first + STEP, users + 1)):
                digest = pk.to_bytes(16, "big")
                person = Person(pk)
                tasks.record_session(SessionStore, "", digest)
                person = None
                writer.queue.add(pk, slot, now + pk % 7, has_row=False)
                tasks.record_session(SessionStore, "", b"?" + digest[1:])
            growth.append(resident() - before)
    return growth


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "users", type=int, nargs="?", default=10_000_000, help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    website.configure()

    from souvenirs import testing
    from souvenirs.recording.memory import MAX_USERS
    from souvenirs.recording.throttle import throttle

    # One call, so that what Django loads on first use does not count as growth
    visit_all(1)
    throttle.clear()
    testing.forget()
    with ProcessPoolExecutor(1, get_context("fork")) as process:
        alone = process.submit(queue_growth).result()
    growth = visit_all(options.users)

    parts = bounds(MAX_USERS)
    bound = sum(parts.values())
    later = growth[-1] - growth[len(growth) // 2]
    rows = [[f"  {name}", size / MIB] for name, size in parts.items()]
    rows = [["bound", bound / MIB], *rows]
    rows += [
        ["peak growth", max(growth) / MIB],
        ["final growth", growth[-1] / MIB],
        ["growth in the second half", later / MIB],
        ["growth by the writer's queue alone", alone / MIB],
    ]
    print(f"{options.users:,} distinct users in one process; MAX_USERS is {MAX_USERS:,}\n")
    print(tabulate(rows, ["", "MiB"], floatfmt=".1f"))
    if max(growth) > bound:
        print("\nThe bound is passed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
