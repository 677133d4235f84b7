"""Real servers fail, and the site goes on.

A failure never changes a response, and only one request per period of a breaker waits for a server
that does not answer. Failures are counted, are logged with their cause, and end when the server
works again. Souvenirs have a separate database here, so that only their database fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.contrib.auth.models import User
from django.core.cache import caches
from django.core.cache.backends.redis import RedisCache, RedisCacheClient
from django.db import DatabaseError, close_old_connections, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path

from souvenirs.breaker import PROBE_SECONDS
from souvenirs.control import souvenez
from souvenirs.models import LastSeen, Souvenir
from souvenirs.signals import souvenir_recorded
from tests import failing, servers
from tests.failing import (
    AWAY,
    CONNECT_SECONDS,
    LOCK_SECONDS,
    REFUSING,
    BreakerClock,
    Case,
    Entry,
    UseCounter,
    cases,
    errors,
    frozen,
    locked,
    new_database,
    postgresql_pid,
    sqlite_locked,
)
from tests.site import serving

CACHE_SECONDS = 0.6  # how long the site waits for its cache
HANGS = 15  # seconds; a request that takes this long waits longer than any timeout of the site

pytestmark = [
    pytest.mark.own_site,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
]

use_counter, keep_history_in, case = failing.use_counter, failing.keep_history_in, failing.case
clock = failing.clock


# A site, and its users


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


def who(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username())


def breaking(request: HttpRequest) -> HttpResponse:
    """A view that continues after a failed statement, with a broken transaction."""
    with suppress(DatabaseError), connections["history"].cursor() as cursor:
        cursor.execute("SELECT nothing FROM nowhere")
    return who(request)


urlpatterns = [path(f"{view.__name__}/", view) for view in [plain, who, breaking]]


class Transaction:
    """Middleware that wraps each request in a transaction."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        with transaction.atomic(using="history"):
            return self.get_response(request)


def hook(request: HttpRequest, response: HttpResponse) -> bool:
    """Skip grace, and fail for hedy."""
    if response.content == b"hedy":
        raise ZeroDivisionError
    return response.content != b"grace"


NAMES = ["ada", "barbara", "edith", "grace", "hedy", "joan"]


class Crowd:
    """Signed-in users.

    results: the results of their visits, according to the signal.
    use_counter: counts the requests to the failing server.
    """

    def __init__(self, use_counter: UseCounter) -> None:
        self.results: list[str] = []
        self.use_counter = use_counter
        self.clients = {name: Client() for name in NAMES}
        for name, client in self.clients.items():
            client.force_login(User.objects.create(username=name))

    def note(self, result: str, count: int, **kwargs: Any) -> None:
        self.results.extend([result] * count)

    def visit(self, *names: str, page: str = "who") -> list[str]:
        """These users (default: all) visit a page, one after the other. Returns the names of those
        whose visit used the server."""
        self.results.clear()
        users_of_it = []
        for name in names or NAMES:
            start, before = time.monotonic(), self.use_counter.times
            response = self.clients[name].get(f"/{page}/")
            if self.use_counter.times > before:
                users_of_it.append(name)
            assert time.monotonic() - start < HANGS
            assert response.status_code == 200
            assert response.content.decode() == (page if page == "plain" else name)
            close_old_connections()  # as between requests, which the test client does not do
        return users_of_it


@pytest.fixture
def crowd(transactional_db: None, use_counter: UseCounter) -> Iterator[Crowd]:
    crowd = Crowd(use_counter)
    souvenir_recorded.connect(crowd.note)
    yield crowd
    souvenir_recorded.disconnect(crowd.note)


@pytest.fixture
def ada(crowd: Crowd) -> User:
    return User.objects.get(username="ada")


# The database of souvenirs fails


@cases(*AWAY, *REFUSING)
def test_database__failure_does_no_harm_and_is_over_when_it_works_again(
    case: Case, crowd: Crowd, clock: BreakerClock, caplog: pytest.LogCaptureFixture
) -> None:
    with case.broken():
        for page in ["who", "plain"]:  # a view that loads the user, and one that does not
            assert crowd.visit(page=page) == NAMES[:1]
            assert crowd.results == ["failed"] * len(NAMES)
            clock.pass_period()
        (message,) = errors(caplog)
        assert case.cause in message
    assert crowd.visit() == NAMES
    assert crowd.results == ["added"] * len(NAMES)
    assert Souvenir.objects.count() == LastSeen.objects.count() == len(NAMES)


@cases(*AWAY, *REFUSING)
def test_souvenez__raises_the_database_error(case: Case, ada: User) -> None:
    with case.broken():
        start = time.monotonic()
        with pytest.raises(DatabaseError, match=case.cause):
            souvenez(ada)
        assert time.monotonic() - start < HANGS
        close_old_connections()
    assert souvenez(ada) == "added"
    assert Souvenir.objects.count() == LastSeen.objects.count() == 1


@cases(*REFUSING)
def test_souvenez__leaves_an_outer_transaction_usable_when_it_raises(case: Case, ada: User) -> None:
    with case.broken(), transaction.atomic(using="history"):
        with pytest.raises(DatabaseError, match=case.cause):
            souvenez(ada)
        with connections["history"].cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
    assert souvenez(ada) == "added"


@pytest.mark.parametrize("engine", ["postgresql", "mariadb", "sqlite"])
def test_souvenez__writes_nothing_if_last_seen_fails(
    engine: str, request: Any, keep_history_in: Any, ada: User, tmp_path: Path
) -> None:
    if engine == "sqlite":
        entry: Entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "history")}
    else:
        entry = new_database(request.getfixturevalue(engine))
    keep_history_in(entry)
    with connections["history"].cursor() as cursor:
        cursor.execute("ALTER TABLE souvenirs_lastseen RENAME TO away")
        with pytest.raises(DatabaseError, match="souvenirs_lastseen"):
            souvenez(ada)
        assert not Souvenir.objects.exists()
        cursor.execute("ALTER TABLE away RENAME TO souvenirs_lastseen")
    assert souvenez(ada) == "added"
    assert Souvenir.objects.count() == LastSeen.objects.count() == 1


def test_souvenez__writes_nothing_if_last_seen_is_locked_too_long(
    postgresql: Entry, keep_history_in: Any, ada: User
) -> None:
    entry = new_database(postgresql, options=f"-c lock_timeout={int(LOCK_SECONDS * 1000)}")
    keep_history_in(entry)
    with locked(entry, "souvenirs_lastseen"):
        with pytest.raises(DatabaseError, match="lock timeout"):
            souvenez(ada)
        assert not Souvenir.objects.exists()
    assert souvenez(ada) == "added"


# Requests that do not use the server say nothing about it


@pytest.mark.parametrize("visitor", ["nobody", "grace", "hedy"])
@cases(sqlite_locked)
def test_probe__is_left_to_a_request_that_has_something_to_write(
    case: Case,
    crowd: Crowd,
    clock: BreakerClock,
    visitor: str,
    settings: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings.SOUVENIRS_SHOULD_RECORD = f"{__name__}.hook"
    stranger = Client()  # has a session without a signed-in user
    session = stranger.session
    session["basket"] = 1
    session.save()
    stranger.cookies[settings.SESSION_COOKIE_NAME] = session.session_key

    def pass_by() -> None:
        client = crowd.clients.get(visitor, stranger)
        assert client.get("/plain/" if client is stranger else "/who/").status_code == 200

    with case.broken():
        for _ in range(2):
            assert crowd.visit("ada", "barbara") == ["ada"]
            clock.pass_period()
            pass_by()
        assert "works again" not in caplog.text
    pass_by()
    crowd.visit("ada", "barbara")
    assert crowd.results == ["added"] * 2
    assert "works again" in caplog.text


# A transaction that the site has broken


def test_broken_transaction__of_a_request_does_not_affect_others(
    postgresql: Entry, keep_history_in: Any, crowd: Crowd, settings: Any
) -> None:
    keep_history_in(new_database(postgresql))
    *others, ours = settings.MIDDLEWARE
    settings.MIDDLEWARE = [*others, f"{__name__}.Transaction", ours]
    crowd.visit("ada", page="breaking")
    assert crowd.results == ["failed"]
    crowd.visit("barbara")
    assert crowd.results == ["added"]
    crowd.visit("ada")
    assert crowd.results == ["added"]


def test_broken_transaction__of_a_view_with_atomic_requests_does_not_matter(
    postgresql: Entry, keep_history_in: Any, crowd: Crowd
) -> None:
    keep_history_in({**new_database(postgresql), "ATOMIC_REQUESTS": True})
    crowd.visit(page="breaking")
    assert crowd.results == ["added"] * len(NAMES)
    assert Souvenir.objects.count() == len(NAMES)


def test_broken_transaction__is_raised_by_souvenez(
    postgresql: Entry, keep_history_in: Any, ada: User
) -> None:
    keep_history_in(new_database(postgresql))
    with transaction.atomic(using="history"):
        with suppress(DatabaseError), connections["history"].cursor() as cursor:
            cursor.execute("SELECT nothing FROM nowhere")
        with pytest.raises(DatabaseError, match="transaction is aborted"):
            souvenez(ada)
    assert souvenez(ada) == "added"


# The whole database fails


def test_site__serves_pages_without_queries_while_its_database_is_down(
    postgresql: Entry, tmp_path: Path
) -> None:
    entry = new_database(postgresql, connect_timeout=CONNECT_SECONDS)
    environment = serving.environ(entry, SOUVENIRS_FLUSH_SECONDS=0)
    serving.populate(environment, 1)
    with serving.serve(environment, tmp_path) as site:
        cookie = site.sign_in(1)
        rows = len(site.get("/rows/").json())
        # From now on there is something to write in another slot of last-seen, or in the other
        # process
        with frozen(postgresql_pid(entry)):
            seconds = []
            for _ in range(20):
                start = time.monotonic()
                response = site.get("/plain/", cookie)
                seconds.append(time.monotonic() - start)
                assert (response.status_code, response.text) == (200, "plain")
        processes, periods = 2, 1 + sum(seconds) // PROBE_SECONDS
        waits = [each for each in seconds if each >= CONNECT_SECONDS]
        assert 1 <= len(waits) <= processes * periods
        assert max(seconds) < HANGS
        assert rows == 1
        assert site.get("/who/", cookie).text == "user1"
        failures = [line for line in site.errors() if line.startswith("ERROR souvenirs")]
        assert 1 <= len(failures) <= processes


# The shared cache fails


class CountedClient(RedisCacheClient):
    """Calls `on_use`, if set, for each command to the server."""

    on_use: Callable[[], None] | None = None

    def get_client(self, *args: Any, **kwargs: Any) -> Any:
        if self.on_use:
            self.on_use()
        return super().get_client(*args, **kwargs)


class Counted(RedisCache):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._class = CountedClient


class Hiding(Counted):
    """A cache that hides its failures, as django-redis does with IGNORE_EXCEPTIONS."""

    def add(self, *args: Any, **kwargs: Any) -> bool:
        with suppress(Exception):
            return super().add(*args, **kwargs)
        return False

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        with suppress(Exception):
            return super().get(key, default, version)
        return default

    def set(self, *args: Any, **kwargs: Any) -> None:
        with suppress(Exception):
            super().set(*args, **kwargs)


def redis_stopped(stack: ExitStack, url: str, process: Any) -> Case:
    @contextmanager
    def broken() -> Iterator[None]:
        process.terminate()
        process.wait(30)
        yield
        stack.enter_context(servers.redis(servers.port_of(url)))

    return Case(broken, "Error 111")


def redis_hidden(stack: ExitStack, url: str, process: Any) -> Case:
    return redis_stopped(stack, url, process)._replace(cause="does not store values")


def redis_frozen(stack: ExitStack, url: str, process: Any) -> Case:
    return Case(lambda: frozen(process.pid), "Timeout")


def redis_full(stack: ExitStack, url: str, process: Any) -> Case:
    """It rejects each write."""

    @contextmanager
    def broken() -> Iterator[None]:
        client = caches["default"]._cache.get_client()
        client.config_set("maxmemory", 1)
        yield
        client.config_set("maxmemory", 0)

    return Case(broken, "maxmemory")


@pytest.fixture(params=[redis_stopped, redis_frozen, redis_full, redis_hidden])
def redis_case(request: Any) -> Iterator[Case]:
    backend = f"{__name__}.{'Hiding' if request.param is redis_hidden else 'Counted'}"
    with ExitStack() as stack:
        url, process = stack.enter_context(servers.redis())
        options = {"socket_timeout": CACHE_SECONDS, "socket_connect_timeout": CACHE_SECONDS}
        entry = {"BACKEND": backend, "LOCATION": url, "OPTIONS": options}
        stack.enter_context(override_settings(CACHES={"default": entry}))
        yield request.param(stack, url, process)
        for pool in caches["default"]._cache._pools.values():
            pool.disconnect()


def keys() -> int:
    """The number of slots in the shared cache."""
    return len(caches["default"]._cache.get_client().keys("*souvenirs.*"))


def limited(crowd: Crowd, *names: str) -> list[str]:
    """Record these users with an explicit limit. Return the names of those for whom the cache was
    used."""
    crowd.results.clear()
    users_of_it = []
    for name in names:
        before = crowd.use_counter.times
        souvenez(User.objects.get(username=name), ratelimit=3600)
        if crowd.use_counter.times > before:
            users_of_it.append(name)
    return users_of_it


def test_cache__failure_falls_back_to_process_memory_until_it_works_again(
    redis_case: Case, crowd: Crowd, clock: BreakerClock, caplog: pytest.LogCaptureFixture
) -> None:
    caches["default"]._cache.on_use = crowd.use_counter.add
    hour = time.time() // 3600 * 3600
    with time_machine.travel(hour + 1, tick=False):
        limited(crowd, "ada")
        assert keys() == 1
        with redis_case.broken():
            for newcomers in [["barbara", "edith"], ["grace", "hedy"]]:
                assert limited(crowd, *newcomers) == newcomers[:1]
                assert crowd.results == ["added", "added"]
                assert limited(crowd, *newcomers) == []
                assert crowd.results == ["rate-limited", "rate-limited"]
                clock.pass_period()
            (message,) = errors(caplog)
            assert redis_case.cause in message
        before = keys()
        limited(crowd, "joan")
        assert crowd.results == ["added"]
        assert keys() == before + 1
    assert Souvenir.objects.count() == len(NAMES)
