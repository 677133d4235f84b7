"""A process remembers a bounded amount, however many users it serves.

`python -m benchmarks.memory` does the same with millions of users, and derives the bound.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

BOUND_MIB = 90

# What souvenez and the middleware remember about new users, without a database involved
RECORD = """
import time
from souvenirs.conf import conf
from souvenirs.periods import slot_containing
from souvenirs.recording import memory, queue, sessions
from souvenirs.recording.memory import MAX_USERS
from souvenirs.recording.throttle import throttle

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

now = time.time()
slot = slot_containing(now, conf.ratelimit_seconds, conf.zone)
handled = memory.interned(slot.start, slot.end, slot.start, slot.end)

def record(users):
    for user_pk in users:
        throttle.confirm(throttle.claim(user_pk, slot, conf.ratelimit_seconds), slot)
        memory.recent_users[user_pk] = handled
        memory.recent_sessions[user_pk.to_bytes(16, "big")] = handled
        sessions.unknown_sessions[user_pk.to_bytes(16, "little")] = now + user_pk
        memory.missing_users[-user_pk] = now - user_pk
        visits.add(user_pk, slot, now + user_pk, has_row=False)

for each in (memory.recent_users, memory.recent_sessions, sessions.unknown_sessions):
    each.size //= SHARE
throttle._local._max_entries //= SHARE
queue.MAX_ENTRIES //= SHARE
visits = queue.VisitQueue()
record([0])
before = resident()
record(range(1, 6 * MAX_USERS // SHARE))
print((resident() - before) / 2**20)
"""


@pytest.mark.own_site
@pytest.mark.parametrize("share", [10, pytest.param(1, marks=pytest.mark.soak)])
def test_memory__of_any_number_of_users_is_below_the_bound(
    share: int, run_site: Callable[..., str]
) -> None:
    """`share`: the part of the maximum to fill, a tenth here and all of it for a release."""
    growth = float(run_site(RECORD.replace("SHARE", str(share)))) * share
    assert 10 < growth < BOUND_MIB  # below 10 it would not have measured anything
