"""The cost of the last-seen stores: the table on PostgreSQL, Redis, and a Redis Cluster of three
nodes, side by side in one run.

The scrape: all windows (1h, 1d, 7d, 30d) and periods to date (day, week, month, quarter, year), and
the newest time, as the collector reads them. Users were last seen over the last 90 days, with more
of them in recent days. The table is measured after VACUUM, and again after each of its rows was
updated once without a vacuum, as on a site that autovacuum does not keep up with.

Recording: a user's first visit in a minute, and in an hour, with Redis as the cache of the rate
limit. The stores alternate, each with its own users, 300 per turn. A turn is over when everything
is in Redis, too. PostgreSQL runs with fsync off.

Exits with 1 if a scrape of the most users from Redis takes 5 ms or longer, or more than twice as
long as a scrape of the fewest, or if recording takes longer with Redis than with the table (by more
than 5%, which allows for noise).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest import mock

from tabulate import tabulate
from tqdm import tqdm

from benchmarks import website
from benchmarks.recording import HOUR, Clock
from souvenirs.lastseen import use_store
from tests import servers

SCRAPE_TARGET = 5.0  # milliseconds
GROWTH_TARGET = 2.0
NOISE = 1.05
VISITORS = 300
FIRST_HOUR, FIRST_MINUTE = "the first in an hour", "the first in a minute"
ACTIVE = "all in five minutes of an hour"


def fill(users: int) -> None:
    """Fill the tables of a site with this many users; the indexes are as small as they get."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE auth_user, souvenirs_lastseen RESTART IDENTITY CASCADE")
        cursor.execute(
            "INSERT INTO auth_user (username, password, first_name, last_name, email, is_superuser,"
            " is_staff, is_active, date_joined)"
            " SELECT 'user' || n, '!', '', '', '', false, false, true, now() - interval '100 days'"
            " FROM generate_series(1, %s) n",
            [users],
        )
        cursor.execute(
            "INSERT INTO souvenirs_lastseen (user_id, seen)"
            " SELECT id, date_trunc('second', now() - power(random(), 3) * interval '90 days')"
            " FROM auth_user ORDER BY id"
        )
        cursor.execute("ALTER TABLE souvenirs_lastseen SET (autovacuum_enabled = false)")
        cursor.execute("VACUUM ANALYZE auth_user, souvenirs_lastseen")


def update_all() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("UPDATE souvenirs_lastseen SET seen = seen + interval '1 second'")


def memory_of(store: Any) -> int:
    """The size of the sorted sets in bytes, as Redis reports it."""
    client = store.shards.client
    return sum(client.memory_usage(key, samples=0) or 0 for key in store.shards.keys)


def scrapes(stores: dict[str, Any], rounds: int, bar: Any) -> dict[str, list[float]]:
    """Milliseconds to read the active users from each of the stores in turn."""
    from souvenirs_metrics.readers.active_users import ActiveUsers

    reader = ActiveUsers()
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds + 1):
        for name, store in stores.items():
            use_store(store)
            started = time.perf_counter()
            read = reader.read(time.time(), lambda alias: nullcontext())
            found[name].append((time.perf_counter() - started) * 1000)
            assert len(read) == 4
            assert len(read[0].samples) == 4
        bar.update()
    return {name: times[1:] for name, times in found.items()}  # the first read connects


def record(store: Any, users: Sequence[Any]) -> None:
    from souvenirs.control import souvenez
    from souvenirs.lastseen.redis import RedisStore

    for user in users:
        souvenez(user)
    if isinstance(store, RedisStore):
        store.flush()


def visits(stores: dict[str, Any], rounds: int, bar: Any) -> dict[tuple[str, str], float]:
    """Microseconds for a visit that writes, by kind and store."""
    from django.contrib.auth import get_user_model

    users = list(get_user_model().objects.order_by("pk")[: VISITORS * len(stores)])
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    clock = Clock()
    with (
        mock.patch.object(time, "time", clock),
        mock.patch.object(time, "time_ns", clock.nanoseconds),
    ):
        for turn in range(rounds + 1):
            for ahead, kind in (HOUR, FIRST_HOUR), (60, FIRST_MINUTE):
                clock.set_forward(ahead)
                numbered = list(enumerate(stores.items()))
                first = turn % len(numbered)
                for number, (name, store) in numbered[first:] + numbered[:first]:
                    use_store(store)
                    own = users[number * VISITORS : (number + 1) * VISITORS]
                    took = seconds(lambda: record(store, own)) / len(own) * 1e6  # noqa: B023
                    if turn:
                        times[kind, name].append(took)
            bar.update()
    medians = {key: statistics.median(found) for key, found in times.items()}
    for name in stores:
        medians[ACTIVE, name] = medians[FIRST_HOUR, name] + 4 * medians[FIRST_MINUTE, name]
    return medians


def seconds(do: Callable[[], object]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=101, help="default: %(default)s")
    parser.add_argument(
        "--users", type=int, nargs=2, default=[10_000, 1_000_000], help="default: %(default)s"
    )
    options = parser.parse_args(arguments)

    with ExitStack() as stack:
        database = stack.enter_context(servers.postgresql())
        cache, _ = stack.enter_context(servers.redis())
        single, _ = stack.enter_context(servers.redis())
        cluster = stack.enter_context(servers.redis_cluster())
        website.configure(database, cache, SOUVENIRS_RATELIMIT_SECONDS=3600)
        website.migrate()

        from souvenirs.lastseen.database import DatabaseStore
        from souvenirs.lastseen.redis import RedisStore

        redis_options = {"socket_timeout": 30}
        on_redis = {
            "Redis": RedisStore({"LOCATION": single, "OPTIONS": redis_options}),
            "Redis Cluster": RedisStore(
                {"LOCATION": cluster.urls, "CLUSTER": True, "OPTIONS": redis_options}
            ),
        }
        stores: dict[str, Any] = {"table": DatabaseStore({}), **on_redis}
        bar = stack.enter_context(tqdm(total=6 * options.rounds, unit="round"))
        found: dict[tuple[str, int], float] = {}
        rows: list[list[Any]] = []
        facts: list[list[Any]] = []
        for users in options.users:
            fill(users)
            for name, store in on_redis.items():
                for key in store.shards.keys:
                    store.shards.client.delete(key)
                took = seconds(store.resync)
                # Pretend that it was filled as long ago as it takes to be exact
                for key in store.shards.keys:
                    ((mark, _),) = store.shards.client.zrange(key, 0, 0, withscores=True)
                    store.shards.client.zadd(key, {mark: -(10**15)})
                facts.append([users, name, took, memory_of(store) / users])
            times = scrapes(stores, options.rounds, bar)
            update_all()
            times["table, not vacuumed"] = scrapes({"table": stores["table"]}, options.rounds, bar)[
                "table"
            ]
            for name, each in times.items():
                found[name, users] = statistics.median(each)
                rows.append([users, name, found[name, users], statistics.quantiles(each, n=20)[-1]])
        recording = visits(stores, options.rounds // 2, bar)

    print("Scrapes\n\n" + tabulate(rows, ["users", "", "median, ms", "95%, ms"], floatfmt=".2f"))
    headers = ["users", "", "to fill it, s", "bytes per user"]
    print("\nRedis\n\n" + tabulate(facts, headers, floatfmt=("", "", ".1f", ".0f")))
    visit_rows = [
        [kind, name, micro, micro / recording[kind, "table"]]
        for (kind, name), micro in recording.items()
    ]
    headers = ["visit", "", "microseconds", "of the table's"]
    print("\nRecording\n\n" + tabulate(visit_rows, headers, floatfmt=("", "", ".0f", ".2f")))
    few, many = options.users
    missed = []
    if found["Redis", many] >= SCRAPE_TARGET:
        missed.append(f"Redis: a scrape takes {found['Redis', many]:.2f} ms")
    if (growth := found["Redis", many] / found["Redis", few]) > GROWTH_TARGET:
        missed.append(f"Redis: a scrape takes {growth:.1f} times as long as of few users")
    missed += [
        f"Redis: {kind} takes longer than with the table"
        for kind in (FIRST_HOUR, FIRST_MINUTE, ACTIVE)
        if recording[kind, "Redis"] > NOISE * recording[kind, "table"]
    ]
    if missed:
        print("\nThe target is missed:", *missed, sep="\n", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
