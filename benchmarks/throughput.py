"""How many requests per second a site answers with SouvenirsMiddleware, and how many without.

Two sites run side by side under gunicorn (2 sync workers each) that differ only in that middleware.
They use PostgreSQL, also for sessions, Redis for the shared cache, and Django's usual middleware.
Signed-in users request in turn a page of four queries (session, user, a count, twenty users) and a
template, which takes about 5 ms. Four connections are kept busy.

How often a user comes in a minute (--visits) decides how often there is something to write: the
first visit in a minute. So there are as many users as a site can answer at that pace, which is
found in a trial. Souvenirs, which are written once an hour, are written beforehand and are not in
the figure (unless an hour begins meanwhile): benchmarks.cpu measures them.

The load goes to one site for some seconds, then to the other, and so on (A B B A), so that anything
else the machine does affects both. Two adjacent slices make a pair. The result is the median of the
pairs' ratios, with its confidence interval (95 %, bootstrapped). Visits are written in the
background half a second later, so a slice counts from when that has begun, and the other site's
slice begins when it has ended.

The load comes from this process, on the same machine: it takes a share of the same cores, as do
PostgreSQL and Redis. PostgreSQL runs with fsync off.

Exits with 1 if the median ratio is below its target, or the lower end of the interval is below
another.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from benchmarks import website
from benchmarks.serving import CONNECTIONS, WORKERS, Load, make_request, serve
from tests import servers

TARGET = 0.97
LEAST = 0.95
LEAD_IN_SECONDS = 0.8  # longer than visits wait to be written
SLICE_SECONDS = 4
TRIAL_SECONDS = 5
RESAMPLES = 10_000
# The share of the elapsed time in which a site is under load
SHARE = (LEAD_IN_SECONDS + SLICE_SECONDS) / (
    2 * (LEAD_IN_SECONDS + SLICE_SECONDS + LEAD_IN_SECONDS)
)


def measure(load: Load) -> float:
    """The requests per second of a slice. Returns when all its visits have been written."""
    rate = load.run(SLICE_SECONDS, lead_in=LEAD_IN_SECONDS)
    time.sleep(LEAD_IN_SECONDS)
    return rate


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """The interval with 95 % of the medians of resamples; deterministic for the same values."""
    draw = random.Random(0)
    medians = sorted(
        statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES)
    )
    return medians[RESAMPLES // 40], medians[-RESAMPLES // 40]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs", type=int, default=14, help="number of pairs (default: %(default)s)"
    )
    parser.add_argument(
        "--visits", type=float, default=1, help="visits per user and minute (default: %(default)s)"
    )
    parser.add_argument(
        "--flush-seconds",
        type=float,
        default=0.5,
        help="SOUVENIRS_FLUSH_SECONDS: 0 writes in the request (default: %(default)s)",
    )
    parser.add_argument(
        "--target", type=float, default=TARGET, help="least median (default: %(default)s)"
    )
    parser.add_argument(
        "--least", type=float, default=LEAST, help="end of the interval (default: %(default)s)"
    )
    options = parser.parse_args(arguments)

    with ExitStack() as stack:
        directory = stack.enter_context(servers.directory("throughput"))
        database = stack.enter_context(servers.postgresql())
        redis, _ = stack.enter_context(servers.redis())
        website.configure(database, redis)
        website.migrate()

        from django.db import connection

        from souvenirs.models import Souvenir

        pool = stack.enter_context(ThreadPoolExecutor(CONNECTIONS))
        bar = stack.enter_context(tqdm(total=options.pairs, desc="warming up", unit="pair"))
        site: dict[str, Any] = {"database": database, "redis": redis}
        plain = [name for name in website.MIDDLEWARE if name != website.OURS]
        flush = {"SOUVENIRS_FLUSH_SECONDS": options.flush_seconds}
        ours = stack.enter_context(serve(directory / "with.log", **site, **flush))
        without = stack.enter_context(serve(directory / "without.log", **site, MIDDLEWARE=plain))

        # A trial, as if there were no other users
        few = pages(website.make_users(1000))
        Load(ours, few, pool).run(TRIAL_SECONDS)  # by then all workers have started
        rate = Load(without, few, pool).run(TRIAL_SECONDS, lead_in=LEAD_IN_SECONDS)
        users = round(rate * SHARE * 60 / options.visits)
        requests = pages(website.make_users(users, first=1001))
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
        loads = [Load(each, requests, pool) for each in (ours, without)]
        visits = [make_request(f"/visit/{pk}/") for pk in range(1001, 1001 + users)]
        for _ in range(2):  # so that most are known in each worker
            Load(ours, visits, pool).run_once(rate=10_000)
        for load in loads:
            measure(load)
        written = Souvenir.objects.count()
        rows = []
        bar.set_description(f"{users} users")
        for pair in range(options.pairs):
            turns = [0, 1] if pair % 2 else [1, 0]
            rates = dict(sorted((turn, measure(loads[turn])) for turn in turns))
            per_minute = rates[0] * SHARE * 60 / users
            rows.append([pair + 1, per_minute, *rates.values(), rates[0] / rates[1]])
            bar.update()
        written = Souvenir.objects.count() - written

    ratios = [row[-1] for row in rows]
    median = statistics.median(ratios)
    low, high = interval_of_median(ratios)
    headers = ["pair", "visits/minute", "with, requests/s", "without, requests/s", "ratio"]
    print(tabulate(rows, headers, floatfmt=("", ".2f", ".1f", ".1f", ".4f")))
    print(
        f"\nmedian ratio {median:.4f} (95 %: {low:.4f} to {high:.4f}),"
        f" target {options.target} ({options.least}); {users} users, {WORKERS} workers,"
        f" SOUVENIRS_FLUSH_SECONDS {options.flush_seconds:g};"
        f" {written} rows of souvenirs written meanwhile"
    )
    if median < options.target or low < options.least:
        print("The target is missed", file=sys.stderr)
        return 1
    return 0


def pages(users: Sequence[Any]) -> list[bytes]:
    """A request of each user, all signed in."""
    cookies = website.sign_in(list(users))
    return [make_request("/", Cookie=f"sessionid={cookie}") for cookie in cookies]


if __name__ == "__main__":
    raise SystemExit(main())
