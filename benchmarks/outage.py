"""Load-test a site whose Redis Cluster of three nodes fails in three ways: a master is killed and
comes back empty, a node freezes, and all nodes are flushed.

A site of two processes (gunicorn) on PostgreSQL, with a separate exporter, serves users who come
and go. To see everything within a minute, a souvenir is written every ten seconds (instead of every
hour), and last-seen times have a resolution of one second. The visitors keep a record of what users
really did, and each number of each scrape is compared with it by brute force, to the second. The
exception: where a window reaches back to when `souvenirs_up` was 0, and while it is 0, the window
may be longer by ten seconds. Windows shorter than twenty seconds must be left out while it is 0.
For SETTLE seconds after a failure begins or ends, nothing is compared, because the site's processes
may not have noticed it, or not have written what they kept.

At the end, all souvenirs and counts of past ranges are compared. Exits with 1 if a request failed,
a number was wrong, or there were fewer correct scrapes after a failure than there should be.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from tests import servers
from tests.failing import frozen
from tests.site import serving

SLOT = 10
WINDOWS = {"10s": 10, "20s": 20, "30s": 30, "1d": 86_400}
USERS = 150
THREADS = 6
SETTLE = 8.0  # a breaker's five seconds, plus the time of probes and until Redis itself notices
SCRAPE_SECONDS = 1.0
LATE = 0.5  # the longest delay of a visit on its way to Redis, on a busy machine
EXPORTER = [sys.executable, "-W", "error", "-m", "django", "souvenirs_exporter"]


class Visit(NamedTuple):
    user: int
    start: float
    end: float


@dataclass
class Crowd:
    """Visit the site until stopped; users come and go."""

    site: serving.Site
    visits: list[Visit] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    longest: float = 0

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._cookies = {}
        for user in range(1, USERS + 1):
            start = time.time()
            self._cookies[user] = self.site.sign_in(user)
            self.visits.append(Visit(user, start, time.time()))
        self._threads = [threading.Thread(target=self._run) for _ in range(THREADS)]

    def _run(self) -> None:
        with serving.client() as session:
            while not self._stopped.wait(random.uniform(0, 0.02)):
                start = time.time()
                user = (int(start * 2) + random.randrange(20)) % USERS + 1
                headers = {"Cookie": self._cookies[user]}
                try:
                    response = session.get(f"{self.site.url}/who/", headers=headers, timeout=30)
                    answer = f"{response.status_code} {response.text}"
                except Exception as error:
                    answer = repr(error)
                end = time.time()
                self.longest = max(self.longest, end - start)
                self.visits.append(Visit(user, start, end))
                if answer != f"200 user{user}":
                    self.failures.append(answer)

    @contextmanager
    def visiting(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in self._threads:
                thread.join()


@dataclass
class Scrape:
    """A metrics page, and what it should contain."""

    start: float
    end: float
    values: dict[str, float]
    up: bool
    wrong: list[str] = field(default_factory=list)


def scrape(url: str, crowd: Crowd, down_at: float) -> Scrape:
    """Scrape the page and compare it. down_at: when souvenirs_up was last 0."""
    start = time.time()
    with serving.client() as session:
        page = session.get(url, timeout=30).text
    end = time.time()
    values = dict(re.findall(r'^souvenirs_active_users\{window="(.+)"\} (\S+)', page, re.M))
    facts = dict(re.findall(r"^(souvenirs_\w+) (\S+)$", page, re.M))
    up = float(facts["souvenirs_up"]) == 1
    made = Scrape(start, end, {name: float(value) for name, value in values.items()}, up)
    now = float(facts["souvenirs_collection_timestamp_seconds"])
    visits = crowd.visits.copy()
    for name, seconds in WINDOWS.items():
        if not up and seconds < 2 * SLOT:
            if name in values:
                made.wrong.append(f"{name} is there")
            continue
        cut = (now - seconds) // 1
        behind = 0 if up and cut > down_at else SLOT
        least = {v.user for v in visits if v.start // 1 >= cut and v.end <= start - LATE}
        most = {v.user for v in visits if v.end // 1 >= cut - behind and v.start <= end}
        value = made.values.get(name, -1)
        if not len(least) <= value <= len(most):
            made.wrong.append(f"{name} is {value:g}, not {len(least)} to {len(most)}")
    return made


class Run:
    """Scrape once a second; between scrapes, perform the requested failures."""

    def __init__(self, url: str, crowd: Crowd) -> None:
        self.url, self.crowd = url, crowd
        self.rows: list[list[Any]] = []
        self.problems: list[str] = []
        self.down_at = 0.0

    def phase(self, name: str, seconds: float, *, settle: float = 0, ends_up: bool = False) -> None:
        """Scrape for this long. `ends_up`: the last two scrapes must have all windows."""
        until = time.monotonic() + seconds
        settled = time.monotonic() + settle
        made: list[Scrape] = []
        passed_by = 0
        while time.monotonic() < until:
            is_settled = time.monotonic() >= settled
            each = scrape(self.url, self.crowd, self.down_at)
            if not each.up:
                self.down_at = each.end
            if is_settled:
                made.append(each)
                self.problems += [f"{name}: {wrong}" for wrong in each.wrong]
            else:
                passed_by += 1
            time.sleep(SCRAPE_SECONDS)
        if ends_up and not all(each.up for each in made[-2:]):
            self.problems.append(f"{name}: it does not end with souvenirs_up 1")
        wrong = sum(bool(each.wrong) for each in made)
        slowest = max((each.end - each.start for each in made), default=0)
        up = sum(each.up for each in made)
        self.rows.append([name, passed_by, len(made), up, wrong, slowest])


def compare_history(environment: dict[str, str], crowd: Crowd) -> list[str]:
    """The errors in the souvenirs and in counts of past ranges."""
    rows = serving.run(
        ["-c", "import django; django.setup()\n"
         "from souvenirs import timestamps\n"
         "from souvenirs.control import count_active_users\n"
         "from souvenirs.history.maintenance import roll_up\n"
         "from souvenirs.models import Souvenir\n"
         "for pk, when in Souvenir.objects.values_list('user_id', 'when'):\n"
         "    print(pk, timestamps.to_seconds(when))\n"
         "roll_up()\n"
         "print('count', count_active_users())"],
        environment,
    ).splitlines()  # fmt: skip
    *rows, count = rows
    slots = {(int(pk), float(when) // SLOT) for pk, when in map(str.split, rows)}
    problems = []
    for visit in crowd.visits:
        possible = {(visit.user, visit.start // SLOT), (visit.user, visit.end // SLOT)}
        if not slots & possible:
            problems.append(f"there is no souvenir of {visit}")
    visitors = len({visit.user for visit in crowd.visits})
    if count != f"count {visitors}":
        problems.append(f"{count} users, and {visitors} were there")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    with ExitStack() as stack:
        directory = stack.enter_context(servers.directory("outage"))
        database = stack.enter_context(servers.postgresql())
        cache, _ = stack.enter_context(servers.redis())
        nodes = stack.enter_context(servers.redis_cluster())
        environment = serving.environ(
            database,
            cache,
            INSTALLED_APPS=[
                "django.contrib.auth", "django.contrib.contenttypes", "souvenirs",
                "souvenirs_metrics",
            ],
            SOUVENIRS_RATELIMIT_SECONDS=SLOT,
            SOUVENIRS_LAST_SEEN_SECONDS=1,
            SOUVENIRS_METRICS_WINDOWS=list(WINDOWS),
            SOUVENIRS_LAST_SEEN_STORE={
                "BACKEND": "souvenirs.lastseen.redis.RedisStore",
                "LOCATION": nodes.urls,
                "CLUSTER": True,
            },
        )  # fmt: skip
        environment["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), *sys.path[1:]])
        serving.populate(environment, USERS)
        site = stack.enter_context(serving.serve(environment, directory))
        port = servers.free_port()
        log = directory / "exporter.log"
        url = f"http://127.0.0.1:{port}/metrics"
        command = [*EXPORTER, f"127.0.0.1:{port}"]
        is_ready = partial(servers.accepts, port)
        stack.enter_context(servers.running(command, is_ready, log, env=environment))
        crowd = Crowd(site)
        run = Run(url, crowd)
        first, second, _ = nodes.processes
        with crowd.visiting():
            run.phase("all is well", 25, settle=SETTLE + SLOT, ends_up=True)
            nodes.kill(first)
            run.phase("a master is killed", 15, settle=SETTLE)
            nodes.start(first)
            run.phase("it is back, empty", 50, settle=SETTLE, ends_up=True)
            with frozen(nodes.processes[second].pid):
                run.phase("a node is frozen", 15, settle=SETTLE)
            run.phase("it goes on", 20, settle=SETTLE, ends_up=True)
            for port in nodes.processes:
                nodes.cli(port, "flushall")
            # Two scrapes: one that notices, and one that takes its time while the cluster is filled
            run.phase("FLUSHALL", 50, settle=2 * SCRAPE_SECONDS, ends_up=True)
        run.phase("nobody comes any more", 5, settle=1, ends_up=True)
        run.problems += compare_history(environment, crowd)
        errors = [*site.errors(), *log.read_text().splitlines()]

    headers = ["", "not compared", "scrapes", "of these up", "wrong", "slowest, s"]
    print(tabulate(run.rows, headers, floatfmt=".2f"))
    failed = len(crowd.failures)
    print(f"\n{len(crowd.visits)} requests of {USERS} users, {failed} failed,", end=" ")
    print(f"the longest took {crowd.longest:.2f} s")
    problems = [*run.problems, *crowd.failures[:10]]
    if problems:
        print("\nWrong:", *problems[:40], sep="\n", file=sys.stderr)
        told = [line for line in errors if re.match("ERROR|WARNING", line)]
        print("\nThe logs:", *told[:60], sep="\n", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
