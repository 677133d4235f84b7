"""Load-test a site while the PostgreSQL database of its souvenirs fails in three ways: it is
stopped, killed and immediately restarted, and frozen. Afterwards one of the site's processes is
terminated (SIGTERM) and another one killed (SIGKILL).

Clients send requests alternately to two sites (gunicorn, two processes of four threads) that differ
only in SouvenirsMiddleware. No request may fail, and none may wait for a database that is down. For
each phase, the table has the response times of both sites. (Those of the site without the
middleware show what the machine itself contributes.)

Half of the requests are from users who come and go, the other half from users who come once. At the
end, the souvenirs are compared with what the clients did: each visit must be in the history, to the
slot of the rate limit (10 seconds instead of an hour), and in last-seen, to its slot (5 seconds
instead of a minute).

The visits lost by a killed process are counted: they must be visits to that process, from no longer
before than visits wait to be written. The requests that it was answering fail, of course.

Exits with 1 if one of these promises is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

from tabulate import tabulate

from tests import servers
from tests.failing import frozen, postgresql_pid
from tests.site import serving

SLOT = 10
LAST_SEEN_SLOT = 5
FLUSH_SECONDS = 0.5
REGULARS = 150  # users who come and go; users with higher keys come once
USERS = 20_000
CLIENTS = 6
PAUSE = 0.06  # a client's longest pause between two requests
# By how much the slowest request may be slower than that of the site without the middleware.
# Waiting for a connection, a lock or an answer would take longer.
LATE = 1.0
# How far back a killed process may have lost visits: the time that visits wait, and a batch under
# way
LOST_SECONDS = FLUSH_SECONDS + 0.3
SETTLE_SECONDS = 20  # within which everything must be written at the end
WORKER_THREADS = 4  # from tests/site/gunicorn.conf.py

POPULATE = """
import django
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
for alias in "default", "history":
    call_command("migrate", database=alias, verbosity=0)
User.objects.bulk_create(User(username=f"user{pk}") for pk in range(1, %d + 1))
"""
READ = """
import django, json
django.setup()
from souvenirs import timestamps
from souvenirs.control import count_active_users
from souvenirs.models import LastSeen, Souvenir
def read(rows):
    return [[pk, timestamps.to_seconds(at)] for pk, at in rows]
souvenirs = read(Souvenir.objects.values_list("user_id", "when"))
seen = read(LastSeen.objects.exclude(seen=None).values_list("user_id", "seen"))
print(json.dumps({"souvenirs": souvenirs, "seen": seen, "count": count_active_users()}))
"""


class Visit(NamedTuple):
    user: int
    start: float
    end: float
    process: int


@dataclass
class Phase:
    name: str
    times: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    failures: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))

    def row(self) -> list[Any]:
        with_, without = map(sorted, self.times)
        row: list[Any] = [self.name, len(with_)]
        for share in 0.5, 0.99, 1:
            row += [1000 * times[int((len(times) - 1) * share)] for times in (with_, without)]
        return [*row, *map(len, self.failures)]

    def problems(self, may_fail: int) -> list[str]:
        """What is broken, if up to this many requests may fail."""
        problems = [f"{self.name}: {failure}" for failure in self.failures[0][may_fail:]]
        slowest, other = map(max, self.times)
        if slowest > other + LATE:
            problems.append(f"{self.name}: a request took {slowest:.2f} s, without {other:.2f} s")
        return problems


def ask(port: int, user: int) -> int:
    """Visit the site, and return the pid of the process that answered. Raise OSError or
    RuntimeError."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"GET /visit/{user}/ HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    header, _, page = answer.partition(b"\r\n\r\n")
    if not header.startswith(b"HTTP/1.0 200"):
        raise RuntimeError(f"the site answered {answer[:500]!r}")
    return int(page)


class Clients:
    """Send each user's requests alternately to the sites with and without the middleware."""

    def __init__(self, sites: Sequence[serving.Site]) -> None:
        self.ports = [servers.port_of(site.url) for site in sites]
        self.visits: list[Visit] = []
        self.processes: tuple[set[int], set[int]] = (set(), set())
        self.ended: set[int] = set()
        self.phases: list[Phase] = []
        self._strangers = count(REGULARS + 1)
        self._stopped = threading.Event()

    @contextmanager
    def visiting(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def begin(self, name: str) -> Phase:
        """Count requests towards another phase from here on."""
        self.phases.append(Phase(name))
        return self.phases[-1]

    def _run(self) -> None:
        while not self._stopped.wait(random.uniform(0, PAUSE)):
            if random.random() < 0.5:
                user = next(self._strangers)
            else:
                user = (int(time.time() * 2) + random.randrange(20)) % REGULARS + 1
            for number in random.sample((0, 1), 2):
                self._visit(number, user)

    def _visit(self, number: int, user: int) -> None:
        phase, start = self.phases[-1], time.time()
        try:
            process = ask(self.ports[number], user)
        except (OSError, RuntimeError) as error:
            # For a request that was under way when a process was killed
            self.phases[-1].failures[number].append(f"user {user}: {error!r}")
        else:
            self.processes[number].add(process)
            if number == 0:
                self.visits.append(Visit(user, start, time.time(), process))
        phase.times[number].append(time.time() - start)

    def signal(self, which: signal.Signals) -> int:
        """Send a signal to the process of each site that answers; return the first one's pid."""
        pids = [max(processes - self.ended) for processes in self.processes]
        self.ended.update(pids)
        for pid in pids:
            os.kill(pid, which)
        return pids[0]


def compare(
    visits: Sequence[Visit], written: dict[str, Any]
) -> tuple[list[Visit], list[Visit], list[str]]:
    """Visits missing from the history, visits missing from last-seen, and other problems."""
    slots = {(user, when // SLOT) for user, when in written["souvenirs"]}
    seen = dict(written["seen"])
    no_souvenir = [
        visit
        for visit in visits
        if not slots & {(visit.user, visit.start // SLOT), (visit.user, visit.end // SLOT)}
    ]
    not_seen = [
        visit
        for visit in visits
        if seen.get(visit.user, 0) < visit.start // LAST_SEEN_SLOT * LAST_SEEN_SLOT
    ]
    problems = []
    possible = {(visit.user, at // SLOT) for visit in visits for at in (visit.start, visit.end)}
    latest = {visit.user: visit.end for visit in sorted(visits, key=lambda visit: visit.end)}
    problems += [f"nobody came: {slot}" for slot in sorted(slots - possible)]
    problems += [
        f"user {user} was not there at {at}"
        for user, at in seen.items()
        if at > latest.get(user, 0)
    ]
    visitors = len({user for user, _ in slots})
    if written["count"] != visitors:
        problems.append(f"{written['count']} users are counted, and {visitors} have souvenirs")
    return no_souvenir, not_seen, problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="run for 15 seconds instead of 60")
    options = parser.parse_args(arguments)
    share = 0.25 if options.quick else 1

    def spend(seconds: float) -> None:
        time.sleep(seconds * share)

    with ExitStack() as stack:
        directory = stack.enter_context(servers.directory("outage"))
        database = stack.enter_context(servers.postgresql())
        history = stack.enter_context(servers.restartable("postgresql"))
        changes: dict[str, Any] = {
            "DATABASES": {"default": database, "history": history.entry},
            "DATABASE_ROUTERS": ["tests.users.routers.History"],
            "SOUVENIRS_RATELIMIT_SECONDS": SLOT,
            "SOUVENIRS_LAST_SEEN_SECONDS": LAST_SEEN_SLOT,
            "SOUVENIRS_FLUSH_SECONDS": FLUSH_SECONDS,
        }
        environment = serving.environ(database, **changes)
        serving.run(["-c", POPULATE % USERS], environment)
        sites = []
        for name, more in ("with", {}), ("without", {"MIDDLEWARE": []}):
            (directory / name).mkdir()
            environ = serving.environ(database, **changes, **more)
            sites.append(stack.enter_context(serving.serve(environ, directory / name)))
        clients = Clients(sites)
        clients.begin("all is well")
        with clients.visiting():
            spend(5)
            clients.begin("the database is stopped")
            history.stop()
            spend(20)
            clients.begin("it is back")
            history.start()
            spend(6)
            clients.begin("it is killed, and restarted")
            os.kill(postgresql_pid(history.entry), signal.SIGQUIT)
            history.restart()
            spend(6)
            pid = postgresql_pid(history.entry)
            clients.begin("it is frozen")
            with frozen(pid):
                spend(10)
            clients.begin("it goes on")
            spend(6)
            clients.begin("a worker is asked to end")
            clients.signal(signal.SIGTERM)
            spend(7)
            last = clients.begin("a worker is killed")
            killed_at = time.time()
            killed = clients.signal(signal.SIGKILL)
            spend(6)

        def is_lost(visit: Visit) -> bool:
            since = killed_at - LOST_SECONDS
            return visit.process == killed and since <= visit.end and visit.start <= killed_at

        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            written = json.loads(serving.run(["-c", READ], environment))
            *missing, problems = compare(clients.visits, written)
            late = [visit for visits in missing for visit in visits if not is_lost(visit)]
            if not late or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        errors = sites[0].errors()

    rows = [phase.row() for phase in clients.phases]
    headers = ["", "requests"]
    headers += [
        f"{name}, ms{other}" for name in ("median", "99 %", "slowest") for other in ("", " without")
    ]
    print(
        tabulate(rows, [*headers, "failed", "failed without"], floatfmt=".0f", maxheadercolwidths=9)
    )
    lost = [visit for visit in missing[0] if is_lost(visit)]
    waiting = sum(map(is_lost, clients.visits))
    slots = {(user, when // SLOT) for user, when in written["souvenirs"]}
    print(
        f"\n{len(clients.visits)} visits of {len({visit.user for visit in clients.visits})} users,"
        f" {len(written['souvenirs'])} souvenirs in {len(slots)} slots of users;"
        f" {len(missing[0])} visits are not in the history, {len(missing[1])} not in last-seen.\n"
        f"Of the {waiting} visits that the killed process answered in its last {LOST_SECONDS:g} s,"
        f" {len(lost)} are lost."
    )
    for phase in clients.phases:
        problems += phase.problems(WORKER_THREADS if phase is last else 0)
    problems += [f"not in the history: {visit}" for visit in missing[0] if not is_lost(visit)]
    problems += [f"not in last-seen: {visit}" for visit in missing[1] if not is_lost(visit)]
    if problems:
        print(f"\nWrong ({len(problems)}):", *problems[:40], sep="\n", file=sys.stderr)
        print("\nThe site's log:", *errors[:40], sep="\n", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
