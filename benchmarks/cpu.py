"""The processor time that a site and its servers spend on a visit that has to be written.

All of it counts, wherever it is spent: in the request, in a thread that writes later, or in the
database. A user's first visit in a minute updates the last-seen time; the first in an hour also
writes a souvenir. Both are measured with the default write-behind (SOUVENIRS_FLUSH_SECONDS is 0.5)
and with writes in the request (0).

Each case has its own site and database: gunicorn with 2 sync workers, one PostgreSQL server for all
of them, and the shared cache in Redis. Another site runs without souvenirs. The page authenticates
its user without a query, and there is no other middleware, so that the measured cost does not
disappear in the rest of the request. The sites are measured in turns ("slices"). In each slice a
site gets one visit from every user, evenly spread over time (--rate), and then rests until
everything is written. The processor time of a slice is that of its site's gunicorn, of PostgreSQL
and of Redis, as the kernel counts it. Subtracting the slice without souvenirs and dividing by the
number of visits gives the cost of one visit.

To make every visit of a slice a first one, the slots of last-seen times, and of the rate limit
where a souvenir is due, are as long as one round of all slices. After each slice, the benchmark
checks that all its visits have been written.

The table has the medians of the slices, and the share that the site's processes spend. Exits with 1
if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

from tabulate import tabulate
from tqdm import tqdm

from benchmarks import website
from benchmarks.processes import cpu_seconds
from benchmarks.serving import CONNECTIONS, Load, ask, make_request, serve
from tests import servers
from tests.failing import in_postgresql, postgresql_pid

DAY = 86_400
FLUSH_SECONDS = 0.5
REST = 2 * FLUSH_SECONDS + 0.3  # until everything is written, including the last batch
WARM_UP = 2  # unmeasured rounds
TARGETS = {"minute": 100, "hour": 200}  # microseconds


class Case(NamedTuple):
    """Whether the measured visits are a user's first in a minute or in an hour, and when they are
    written."""

    first_in: str
    flush_seconds: float


WITHOUT = None  # the site without souvenirs
CASES = [Case(first_in, flush) for first_in in TARGETS for flush in (FLUSH_SECONDS, 0)]


class Spent(NamedTuple):
    """Processor seconds."""

    site: float
    servers: float


class Bench:
    """One site for each case, and one without souvenirs."""

    def __init__(self, stack: ExitStack, users: int, rate: float, *, use_redis: bool) -> None:
        self.users, self.rate = users, rate
        self.slot = math.ceil((len(CASES) + 1) * (users / rate + REST) * 1.2 + 3)
        directory = stack.enter_context(servers.directory("cpu"))
        database = stack.enter_context(servers.postgresql())
        redis, redis_process = stack.enter_context(servers.redis())
        run_site_process(database, users)
        self.server_pids = [postgresql_pid(database), redis_process.pid]
        pool = stack.enter_context(ThreadPoolExecutor(CONNECTIONS))
        requests = [make_request(f"/visit/{pk}/") for pk in range(1, users + 1)]
        self.loads: dict[Case | None, Load] = {}
        for number, case in enumerate([WITHOUT, *CASES]):
            name = f"site{number}"
            with in_postgresql(database, "template1") as session:
                session.execute(f"CREATE DATABASE {name} TEMPLATE {database['NAME']}")
            url = f"{redis.rpartition('/')[0]}/{number}"
            changes: dict[str, Any] = {"MIDDLEWARE": [] if case is WITHOUT else [website.OURS]}
            if case is not WITHOUT:
                changes |= {
                    "SOUVENIRS_FLUSH_SECONDS": case.flush_seconds,
                    "SOUVENIRS_LAST_SEEN_SECONDS": self.slot,
                    "SOUVENIRS_RATELIMIT_SECONDS": DAY if case.first_in == "minute" else self.slot,
                }
                if use_redis:
                    store = {"BACKEND": "souvenirs.lastseen.redis.RedisStore", "LOCATION": url}
                    changes["SOUVENIRS_LAST_SEEN_STORE"] = store
            log = directory / f"{name}.log"
            arguments = {"database": {**database, "NAME": name}, "redis": url, **changes}
            self.loads[case] = Load(stack.enter_context(serve(log, **arguments)), requests, pool)

    def measure_all(self, turn: int, *, is_warm_up: bool) -> dict[Case | None, Spent]:
        """Measure one slice of each site, all within one slot."""
        time.sleep(self.slot - time.time() % self.slot)
        start = time.time()
        cases = list(self.loads)
        turn %= len(cases)
        spent = {case: self.measure(self.loads[case]) for case in cases[turn:] + cases[:turn]}
        if is_warm_up:
            return spent
        if time.time() // self.slot != start // self.slot:
            raise RuntimeError(f"the slices took longer than {self.slot} s: set --rate lower")
        for case in CASES:
            self.require_written(case, math.floor(start))
        return spent

    def measure(self, load: Load) -> Spent:
        before = self.spent(load)
        load.run_once(self.rate)
        time.sleep(REST)
        after = self.spent(load)
        return Spent(after.site - before.site, after.servers - before.servers)

    def spent(self, load: Load) -> Spent:
        return Spent(cpu_seconds([load.site.pid]), cpu_seconds(self.server_pids))

    def require_written(self, case: Case, since: int) -> None:
        """Raise RuntimeError unless the site has recorded each user since then."""
        answer = ask(self.loads[case].site, make_request(f"/written/{since}/"))
        found = json.loads(answer)
        names = ["seen", "souvenirs"] if case.first_in == "hour" else ["seen"]
        if any(found[name] != self.users for name in names):
            raise RuntimeError(f"{self.users} visits of {case} were made, but written are: {found}")


def run_site_process(database: dict[str, Any], users: int) -> None:
    """Create the tables, and users with the keys 1, 2, 3..."""
    from django.db import connection

    website.configure(database)
    website.migrate()
    website.make_users(users)
    connection.close()


def rows_of(rounds: Sequence[dict[Case | None, Spent]], users: int) -> list[list[Any]]:
    """(first visits in, flush seconds, microseconds, from, to, microseconds in the site's
    processes)."""
    rows = []
    for case in CASES:
        site = [(each[case].site - each[WITHOUT].site) * 1e6 / users for each in rounds]
        total = [sum(each[case]) * 1e6 / users for each in rounds]
        without = [sum(each[WITHOUT]) * 1e6 / users for each in rounds]
        cost = [one - other for one, other in zip(total, without)]
        rows.append([*case, statistics.median(cost), min(cost), max(cost), statistics.median(site)])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=800, help="default: %(default)s")
    parser.add_argument(
        "--slices", type=int, default=10, help="slices of each site (default: %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=800, help="visits per second (default: %(default)s)"
    )
    parser.add_argument(
        "--redis", action="store_true", help="keep last-seen times in Redis instead of the table"
    )
    options = parser.parse_args(arguments)

    rounds = []
    with ExitStack() as stack:
        bench = Bench(stack, options.users, options.rate, use_redis=options.redis)
        for turn in tqdm(range(-WARM_UP, options.slices), desc=f"{bench.slot} s each"):
            found = bench.measure_all(turn, is_warm_up=turn < 0)
            if turn >= 0:
                rounds.append(found)
    rows = rows_of(rounds, options.users)
    headers = ["first in", "flush seconds", "microseconds", "from", "to", "in the site's processes"]
    print(f"Last-seen times in {'Redis' if options.redis else 'the table'}; ", end="")
    print(f"{options.users} visits per slice, {options.rate:g} per second\n")
    print(tabulate(rows, headers, floatfmt=("", "g", ".0f", ".0f", ".0f", ".0f")))
    slow = [
        f"a first visit in {'an' if first_in == 'hour' else 'a'} {first_in}: {micro:.0f} "
        f"microseconds, more than {TARGETS[first_in]}"
        for first_in, flush, micro, *_ in rows
        if flush and micro > TARGETS[first_in]
    ]
    if slow:
        print("\nThe target is missed:", *slow, sep="\n", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
