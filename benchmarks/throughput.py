"""How many requests per second a site answers with SouvenirsMiddleware, and how many without.

Two sites run side by side under gunicorn (2 sync workers each), alike but for that middleware:
PostgreSQL with sessions in it, the shared cache in Redis, Django's usual middleware. Signed-in
users, 2,000 by default, ask in turn for a page of four queries (session, user, a count, forty
users) and a template, which takes about 5 ms. Four connections ask at once, and never wait.

The load goes to one site for half a second, then to the other, and so on (A B B A), so that
whatever else the machine does meets both. How often a user asks in a minute decides how often there
is something to write: the first visit in a minute, in each of the workers. Here it is as often as
one site alone can answer (--visits sets another number). As two sites share the time, souvenirs
keeps last-seen times not to 60 seconds but to a slot of the clock in which each of them can answer
a minute's requests; its length is chosen by a trial, and when both have answered them the load
pauses until the next slot. One slot makes one pair, and its ratio is the result.

The load comes from this process, on the same machine: it takes a share of the same cores, as do
PostgreSQL and Redis. PostgreSQL runs with fsync off. Rows that are written once an hour are
written before, and are not in the figure (unless an hour begins meanwhile): with 2,000 users they
are 2,000 inserts an hour.

Exits with 1 if the median ratio is below the target.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from benchmarks import website
from demo import serving
from tests import servers

TARGET = 0.97
CONNECTIONS = 4
WORKERS = 2
SLICE_SECONDS = 0.5
TRIAL_SECONDS = 10


class Load:
    """Users of one site, who ask for its page in turn."""

    def __init__(self, address: tuple[str, int], cookies: Sequence[str]) -> None:
        self.address = address
        self.requests = cycle(
            f"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\nCookie: sessionid={cookie}\r\n\r\n".encode()
            for cookie in cookies
        )

    def ask(self) -> None:
        with socket.create_connection(self.address, timeout=30) as connection:
            connection.sendall(next(self.requests))
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        if not answer.startswith(b"HTTP/1.0 200") or b"<h1>Hello user" not in answer:
            raise RuntimeError(f"the site answered {answer[:2000]!r}")

    def ask_until(self, deadline: float) -> int:
        count = 0
        while time.perf_counter() < deadline:
            self.ask()
            count += 1
        return count

    def run(self, pool: ThreadPoolExecutor, seconds: float) -> tuple[int, float]:
        """Keeps all connections busy; returns how many requests were answered in how long."""
        started = time.perf_counter()
        asking = [pool.submit(self.ask_until, started + seconds) for _ in range(CONNECTIONS)]
        count = sum(one.result() for one in asking)
        return count, time.perf_counter() - started


@contextmanager
def serve(log: Path, **arguments: Any) -> Iterator[tuple[str, int]]:
    """A site under gunicorn, on a free port of loopback."""
    environment = {**os.environ, "BENCHMARK": json.dumps(arguments)}
    with serving.listening(0) as listener, log.open("ab") as output:
        address = listener.getsockname()
        command = [
            sys.executable, "-m", "gunicorn", f"--bind=fd://{listener.fileno()}",
            f"--workers={WORKERS}", "--worker-class=sync", "--no-control-socket",
            "benchmarks.website:application()",
        ]  # fmt: skip
        with serving.child(
            command, environment, handle=listener.fileno(), output=output.fileno()
        ) as process:
            listener.close()
            servers.wait_for(lambda: servers.accepts(address[1]), process, log)
            yield address


def requests_per_second(load: Load, pool: ThreadPoolExecutor, seconds: int) -> float:
    count, elapsed = load.run(pool, seconds)
    return count / elapsed


def measure(
    loads: Sequence[Load], pool: ThreadPoolExecutor, slot: int, requests: int
) -> tuple[list[int], list[float]]:
    """Requests answered by each of the two sites in the slot of the clock that comes next, up to
    `requests` each, and in how many seconds."""
    time.sleep(slot - time.time() % slot)
    end = time.time() + slot
    counts, seconds = [0, 0], [0.0, 0.0]
    turns = cycle([0, 1, 1, 0])
    while time.time() < end - SLICE_SECONDS and min(counts) < requests:
        turn = next(turns)
        count, elapsed = loads[turn].run(pool, SLICE_SECONDS)
        counts[turn] += count
        seconds[turn] += elapsed
    return counts, seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=4, help="how many (default: %(default)s)")
    parser.add_argument("--users", type=int, default=2000, help="default: %(default)s")
    parser.add_argument(
        "--visits", type=int, help="of a user in a minute (default: as many as can be answered)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="with a sixth of the users, and so of the time",
    )
    parser.add_argument(
        "--target", type=float, default=TARGET, help="least ratio (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.users //= 6

    with ExitStack() as stack:
        directory = stack.enter_context(servers.directory("throughput"))
        database = stack.enter_context(servers.postgresql())
        redis, _ = stack.enter_context(servers.redis())
        website.configure(database, redis)
        website.migrate()
        cookies = website.sign_in(website.make_users(options.users))

        from django.db import connection

        from souvenirs.models import Souvenir

        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")

        pool = stack.enter_context(ThreadPoolExecutor(CONNECTIONS))
        bar = stack.enter_context(tqdm(total=options.pairs + 1, desc="warming up", unit="pair"))
        site: dict[str, Any] = {"database": database, "redis": redis}
        plain = [name for name in website.MIDDLEWARE if name != website.OURS]
        log = directory / "without.log"
        without = Load(stack.enter_context(serve(log, **site, MIDDLEWARE=plain)), cookies)
        without.run(pool, SLICE_SECONDS)
        rate = requests_per_second(without, pool, TRIAL_SECONDS)
        visits = options.visits or max(1, round(60 * rate / options.users))
        slot = math.ceil(2.2 * options.users * visits / rate)
        site["SOUVENIRS_LAST_SEEN_SECONDS"] = slot
        ours = Load(stack.enter_context(serve(directory / "with.log", **site)), cookies)
        loads = [ours, without]
        ours.run(pool, 8 * options.users / rate)  # every user, in every worker
        written = Souvenir.objects.count()
        bar.update()
        rows = []
        for pair in range(1, options.pairs + 1):
            bar.set_description(f"slots of {slot} s")
            counts, seconds = measure(loads, pool, slot, options.users * visits)
            rates = [count / elapsed for count, elapsed in zip(counts, seconds)]
            rows.append([pair, counts[0] / options.users, *rates, rates[0] / rates[1]])
            bar.update()
        written = Souvenir.objects.count() - written

    ratios = [row[-1] for row in rows]
    median = statistics.median(ratios)
    headers = ["pair", "visits/user", "with, requests/s", "without, requests/s", "ratio"]
    print(tabulate(rows, headers, floatfmt=("", ".1f", ".1f", ".1f", ".4f")))
    print(
        f"\nmedian ratio {median:.4f} (from {min(ratios):.4f} to {max(ratios):.4f}),"
        f" target {options.target}; {options.users} users, {WORKERS} workers, slots of {slot} s;"
        f" {written} rows of souvenirs written meanwhile"
    )
    if min(row[1] for row in rows) < 0.9 * visits:
        print(
            "The machine slowed down after the trial, so users asked less often than they should,"
            " and a greater share of requests had something to write."
        )
    if median < options.target:
        print("The target is missed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
