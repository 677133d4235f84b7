"""What it costs to record that a user is active, compared with the alternatives.

Nearly every visit is rate-limited, because this process has already recorded the user in this
minute. For these visits, the benchmark measures `souvenez(user)`, and what SouvenirsMiddleware adds
to a request: the time of a call with a view that does nothing, less the time of that view. The
alternative reads a cache on each request and compares the time it finds there, as django-souvenirs
1.0.2 did: in Django's local-memory cache and in Redis.

Then it measures visits that have to be written, on PostgreSQL and with Redis as the shared cache: a
user's first in a minute, and in an hour. SouvenirsMiddleware leaves the writing to a thread, whose
work is not in these figures (benchmarks.cpu has it); `souvenez` writes at once. The alternative
writes the user's row on each request: `User.objects.filter(pk=...).update(last_login=now)`.

All cases alternate over the same users for many rounds, and the table has the median of the rounds.
PostgreSQL runs with fsync off. The clock that souvenirs sees is set forward from minute to minute.
Exits with 1 if souvenez or the middleware takes longer than its target.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from unittest import mock

from tabulate import tabulate
from tqdm import tqdm

from benchmarks import website
from tests import servers

SOUVENEZ_TARGET = 2.0
MIDDLEWARE_TARGET = 10.0
HOUR = 3600

RESPONSE = object()

Case = tuple[str, Callable[[Any], object], Sequence[Any]]


class Clock:
    """Replaces time.time and time.time_ns: time passes normally, but starts at another hour."""

    def __init__(self) -> None:
        self.real = time.time
        self.ahead = HOUR - self.real() % HOUR

    def __call__(self) -> float:
        return self.real() + self.ahead

    def nanoseconds(self) -> int:
        return int(self() * 1e9)

    def set_forward(self, seconds: int) -> None:
        """Go to the beginning of the next window of `seconds`."""
        self.ahead += seconds - self() % seconds


def nanoseconds(do: Callable[[Any], object], items: Iterable[Any]) -> int:
    started = time.perf_counter_ns()
    for item in items:
        do(item)
    return time.perf_counter_ns() - started


def medians(rounds: Sequence[Sequence[Case]]) -> dict[str, float]:
    """Microseconds of each case; the cases alternate within a round."""
    found = defaultdict(list)
    for cases in rounds:
        for name, do, items in cases:
            found[name].append(nanoseconds(do, items) / len(items) / 1000)
    return {name: statistics.median(times) for name, times in found.items()}


def view(request: Any) -> object:
    """Do nothing."""
    return RESPONSE


def make_requests(cookies: Sequence[str]) -> list[Any]:
    """Requests of signed-in users as a view gets them: the user is not loaded."""
    from django.contrib.auth import get_user
    from django.contrib.sessions.backends.db import SessionStore
    from django.test import RequestFactory
    from django.utils.functional import SimpleLazyObject

    requests: list[Any] = []
    for cookie in cookies:
        request: Any = RequestFactory().get("/")
        request.COOKIES = {"sessionid": cookie}  # SessionMiddleware has read them
        request.session = SessionStore(cookie)
        request.user = SimpleLazyObject(lambda request=request: get_user(request))  # type: ignore[misc]
        requests.append(request)
    return requests


def load_users(requests: Sequence[Any]) -> None:
    for request in requests:
        assert request.user.is_authenticated


def limited(
    users: Sequence[Any], cookies: Sequence[str], rounds: int, bar: Any
) -> dict[str, float]:
    """Microseconds of visits that need not be recorded."""
    from django.core.cache import caches
    from django.utils import timezone

    from souvenirs import testing
    from souvenirs.control import souvenez
    from souvenirs.middleware import SouvenirsMiddleware

    middleware: Any = SouvenirsMiddleware(view)
    loaded, unloaded = make_requests(cookies), make_requests(cookies)
    load_users(loaded)
    local, redis = caches["local"], caches["default"]
    limit = timedelta(hours=1)

    def is_limited(cache: Any, user: Any) -> None:
        seen = cache.get(f"souvenirs.{user.pk}")
        assert seen is not None
        assert timezone.now() - seen < limit

    for user in users:
        for cache in local, redis:
            cache.set(f"souvenirs.{user.pk}", timezone.now(), timeout=None)
    cases: list[Case] = [
        ("souvenez(user)", souvenez, users),
        ("a view that does nothing", view, loaded),
        ("middleware, the view has loaded the user", middleware, loaded),
        ("middleware, the view has not; known session", middleware, unloaded),
        ("instead: read the local-memory cache", lambda user: is_limited(local, user), users),
        ("instead: read Redis", lambda user: is_limited(redis, user), users),
    ]
    times = []
    for _ in range(rounds):
        # Not measured: records them once, in case a new minute has begun
        for request in [*loaded, *unloaded]:
            middleware(request)
        testing.flush()
        times.append(medians([cases]))
        bar.update()
    return without_view(
        {name: statistics.median(one[name] for one in times) for name, _, _ in cases}
    )


def written(
    users: Sequence[Any], cookies: Sequence[str], rounds: int, bar: Any
) -> dict[str, float]:
    """Microseconds of visits that have to be written."""
    from django.contrib.auth import get_user_model
    from django.utils import timezone

    from souvenirs import testing
    from souvenirs.control import souvenez
    from souvenirs.middleware import SouvenirsMiddleware
    from souvenirs.recording import memory

    def update_last_login(user: Any) -> None:
        get_user_model().objects.filter(pk=user.pk).update(last_login=timezone.now())

    middleware: Any = SouvenirsMiddleware(view)
    requests = make_requests(cookies)
    load_users(requests)
    nothing: Case = ("a view that does nothing", view, requests)
    queued_minute: Case = ("middleware, a new minute", middleware, requests)
    queued_hour: Case = ("middleware, a new hour", middleware, requests)
    plain: Case = ("instead: update the user's row", update_last_login, users)
    minute: Case = ("souvenez, a new minute", souvenez, users)
    other: Case = ("souvenez, a new minute that another process has written", souvenez, users)
    hour: Case = ("souvenez, a new hour", souvenez, users)
    times = defaultdict(list)
    clock = Clock()
    with (
        mock.patch.object(time, "time", clock),
        mock.patch.object(time, "time_ns", clock.nanoseconds),
    ):
        for user in users:
            souvenez(user)
        for _ in range(rounds):
            for seconds, case in (
                (0, nothing),
                (60, queued_minute),
                (60, minute),
                (0, plain),
                (HOUR, hour),
                (HOUR, queued_hour),
            ):
                if seconds:
                    clock.set_forward(seconds)
                before = dict(memory.recent_users.young)
                times[case[0]].append(medians([[case]])[case[0]])
                if case is minute:
                    memory.recent_users.young = before  # as in a process that has not been asked
                    times[other[0]].append(medians([[other]])[other[0]])
                testing.flush()
            bar.update()
    return without_view({name: statistics.median(found) for name, found in times.items()})


def without_view(times: dict[str, float]) -> dict[str, float]:
    """What the middleware adds to a request: its time, less that of the view."""
    view = times.pop("a view that does nothing")
    return {
        name: micro - view if name.startswith("middleware") else micro
        for name, micro in times.items()
    }


def table(times: dict[str, float]) -> str:
    """Each time, and how many times as long the alternatives take."""
    alternatives = [name for name in times if name.startswith("instead")]
    rows = [
        [name, micro, *(times[other] / micro for other in alternatives)]
        for name, micro in times.items()
    ]
    headers = [
        "",
        "microseconds",
        *(f"{other[9:]} takes ... times as long" for other in alternatives),
    ]
    return tabulate(rows, headers, floatfmt=("", ".2f", ".1f", ".1f"), maxheadercolwidths=20)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=51, help="default: %(default)s")
    parser.add_argument("--users", type=int, default=500, help="default: %(default)s")
    options = parser.parse_args(arguments)

    with ExitStack() as stack:
        database = stack.enter_context(servers.postgresql())
        redis, _ = stack.enter_context(servers.redis())
        local = {
            "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
            "OPTIONS": {"MAX_ENTRIES": 100_000},
        }
        website.configure(database, redis, other_caches={"local": local})
        website.migrate()
        users = website.make_users(options.users)
        cookies = website.sign_in(users)
        bar = stack.enter_context(tqdm(total=2 * options.rounds, unit="round"))
        hits = limited(users, cookies, options.rounds, bar)
        misses = written(users, cookies, options.rounds, bar)

    print(
        f"Rate-limited visits\n\n{table(hits)}\n\nVisits that have to be written\n\n{table(misses)}"
    )
    slow = [
        f"{name}: {micro:.2f} microseconds, more than {target}"
        for times, start, target in (
            (hits, "souvenez", SOUVENEZ_TARGET),
            (hits, "middleware", MIDDLEWARE_TARGET),
            (misses, "middleware", MIDDLEWARE_TARGET),
        )
        for name, micro in times.items()
        if name.startswith(start) and micro > target
    ]
    if slow:
        print("\nThe target is missed:", *slow, sep="\n", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
