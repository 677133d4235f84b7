"""Real servers fail, and the site goes on.

A response is never changed by it, and a server that does not answer is asked by one request per
period of a breaker. Failures are counted, are logged with their cause, and are over when the server
works again. Souvenirs are in a database of their own here, so that what fails is theirs.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import MySQLdb
import psycopg
import pytest
import time_machine
from django.contrib.auth.models import User
from django.core.cache import caches
from django.core.cache.backends.redis import RedisCache, RedisCacheClient
from django.core.management import call_command
from django.db import DatabaseError, close_old_connections, connection, connections, transaction
from django.db.utils import load_backend
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path

from souvenirs.breaker import PROBE_SECONDS
from souvenirs.control import souvenez
from souvenirs.models import LastSeen, Souvenir
from souvenirs.signals import souvenir_recorded
from tests import servers
from tests.site import serving

LOCK_SECONDS = 0.6  # how long a site here waits for a lock
CACHE_SECONDS = 0.6  # and for its cache
CONNECT_SECONDS = 2  # and for a connection
HANGS = 15  # seconds; a request that takes so long waits for more than what the site is set to

pytestmark = [
    pytest.mark.own_site,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
]

Entry = dict[str, Any]


# A site, and its users


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


def who(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username())


def breaking(request: HttpRequest) -> HttpResponse:
    """A view that carries on after a statement has failed, so its transaction is broken."""
    with suppress(DatabaseError), connections["history"].cursor() as cursor:
        cursor.execute("SELECT nothing FROM nowhere")
    return who(request)


urlpatterns = [path(f"{view.__name__}/", view) for view in [plain, who, breaking]]


class Transaction:
    """Middleware that makes a transaction of each request."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        with transaction.atomic(using="history"):
            return self.get_response(request)


def hook(request: HttpRequest, response: HttpResponse) -> bool:
    """Refuses grace, and fails for hedy."""
    if response.content == b"hedy":
        raise ZeroDivisionError
    return response.content != b"grace"


NAMES = ["ada", "barbara", "edith", "grace", "hedy", "joan"]


class Crowd:
    """Users who are signed in.

    results: those of their visits, as the signal tells them.
    asked: how often the server that fails has been asked for something.
    """

    def __init__(self) -> None:
        self.results: list[str] = []
        self.asked = 0
        self.clients = {name: Client() for name in NAMES}
        for name, client in self.clients.items():
            client.force_login(User.objects.create(username=name))

    def note(self, result: str, count: int, **kwargs: Any) -> None:
        self.results.extend([result] * count)

    def ask(self) -> None:
        self.asked += 1

    def visit(self, *names: str, page: str = "who") -> list[str]:
        """They (or all) visit a page, one after the other. Returns whose visit asked the server."""
        self.results.clear()
        asking = []
        for name in names or NAMES:
            start, asked = time.monotonic(), self.asked
            response = self.clients[name].get(f"/{page}/")
            if self.asked > asked:
                asking.append(name)
            assert time.monotonic() - start < HANGS
            assert response.status_code == 200
            assert response.content.decode() == (page if page == "plain" else name)
            close_old_connections()  # as between requests, which the test client leaves out
        return asking


@pytest.fixture
def crowd(transactional_db: None) -> Iterator[Crowd]:
    crowd = Crowd()
    souvenir_recorded.connect(crowd.note)
    yield crowd
    souvenir_recorded.disconnect(crowd.note)


@pytest.fixture
def ada(crowd: Crowd) -> User:
    return User.objects.get(username="ada")


class BreakerClock:
    """A monotonic clock that stands still, so that a slow machine gets no second probe."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def pass_period(self) -> None:
        self.now += PROBE_SECONDS


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> BreakerClock:
    clock = BreakerClock()
    monkeypatch.setattr("souvenirs.breaker.time", clock)
    return clock


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error, with its cause."""
    return [
        f"{record.getMessage()} {record.exc_info and record.exc_info[1]}"
        for record in caplog.records
        if record.name == "souvenirs" and record.levelno == logging.ERROR
    ]


# Databases that fail


class Case(NamedTuple):
    """A way to fail, and what an error says of it."""

    broken: Callable[[], AbstractContextManager[None]]
    cause: str


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Entry]:
    with servers.postgresql() as entry:
        yield entry


@pytest.fixture(scope="module")
def mariadb() -> Iterator[Entry]:
    with servers.mariadb() as entry:
        yield entry


def ensure_connection(wrapper: Any, ask: Callable[[], None]) -> None:
    """Django's method of this name, which is called for each statement; `ask` is told. In tests
    another one takes its place, that refuses databases which the test's marker does not name; nor
    could it name one that the test adds."""
    ask()
    if wrapper.connection is None:
        with wrapper.wrap_database_errors:
            wrapper.connect()


@pytest.fixture
def keep_history_in(crowd: Crowd) -> Iterator[Callable[..., None]]:
    """`keep_history_in(entry)` has souvenirs in that database until the test ends."""

    def keep(entry: Entry, *, migrate: bool = True) -> None:
        databases = connections.configure_settings({"default": {}, "history": {**entry}})
        complete = connections.settings["history"] = databases["history"]
        wrapper = load_backend(complete["ENGINE"]).DatabaseWrapper(complete, "history")
        wrapper.ensure_connection = partial(ensure_connection, wrapper, crowd.ask)
        connections["history"] = wrapper
        if migrate:
            call_command("migrate", database="history", verbosity=0)

    with override_settings(DATABASE_ROUTERS=["tests.users.routers.History"]):
        yield keep
    connections["history"].close()
    del connections["history"], connections.settings["history"]


def in_postgresql(entry: Entry, database: str = "") -> psycopg.Connection[Any]:
    """A session of somebody else, in autocommit."""
    return psycopg.connect(
        host=entry["HOST"],
        port=entry["PORT"],
        user=entry["USER"],
        dbname=database or entry["NAME"],
        autocommit=True,
        connect_timeout=5,
    )


def in_mariadb(entry: Entry) -> MySQLdb.Connection:
    return MySQLdb.connect(host=entry["HOST"], port=int(entry["PORT"]), user=entry["USER"])


def new_database(entry: Entry, **options: Any) -> Entry:
    """A database on the server of `entry` that is empty."""
    name = f"history_{time.monotonic_ns()}"
    is_postgresql = "postgresql" in entry["ENGINE"]
    session = in_postgresql(entry) if is_postgresql else in_mariadb(entry)
    session.cursor().execute(f"CREATE DATABASE {name}")
    session.close()
    return {**entry, "NAME": name, "OPTIONS": options}


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A server takes no step, nor do its children. The system still takes connections for it."""
    pids = [pid]
    os.kill(pid, signal.SIGSTOP)  # so that it makes no more children, nor forgets any
    try:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pids.append(int(child))
            os.kill(int(child), signal.SIGSTOP)
        yield
    finally:
        for each in reversed(pids):
            os.kill(each, signal.SIGCONT)


def data_directory(entry: Entry) -> Path:
    with in_postgresql(entry) as session:
        row = session.execute("SHOW data_directory").fetchone()
    assert row
    return Path(row[0])


def postgresql_pid(entry: Entry) -> int:
    return int((data_directory(entry) / "postmaster.pid").read_text().split()[0])


def postgresql_stopped(request: Any, keep: Callable[..., None]) -> Case:
    stack = ExitStack()
    request.addfinalizer(stack.close)
    entry = stack.enter_context(servers.postgresql())
    port = int(entry["PORT"])
    keep({**entry, "CONN_MAX_AGE": None})
    data = data_directory(entry)

    def takes_sessions() -> bool:
        try:
            in_postgresql(entry).close()
        except psycopg.OperationalError:
            return False
        return True

    @contextmanager
    def broken() -> Iterator[None]:
        command = shlex.split((data / "postmaster.opts").read_text())
        os.kill(postgresql_pid(entry), signal.SIGINT)
        while (data / "postmaster.pid").exists() or servers.accepts(port):
            time.sleep(0.02)
        try:
            yield
        finally:
            options = servers.unprivileged("postgres", data.parent)
            log = data.parent / "second.log"
            stack.enter_context(servers.running(command, takes_sessions, log, **options))
            # It ends when all have left
            stack.callback(connections["history"].close)

    return Case(broken, "connection")


def postgresql_frozen(request: Any, keep: Callable[..., None]) -> Case:
    entry = new_database(request.getfixturevalue("postgresql"), connect_timeout=CONNECT_SECONDS)
    keep(entry)
    connections["history"].close()
    return Case(lambda: frozen(postgresql_pid(entry)), "timeout")


def postgresql_silent(request: Any, keep: Callable[..., None]) -> Case:
    """Something takes connections at the server's address, and never answers."""
    entry = new_database(request.getfixturevalue("postgresql"), connect_timeout=CONNECT_SECONDS)
    keep(entry)
    connections["history"].close()

    @contextmanager
    def broken() -> Iterator[None]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            options = connections["history"].settings_dict
            options["PORT"] = str(listener.getsockname()[1])
            try:
                yield
            finally:
                options["PORT"] = entry["PORT"]

    return Case(broken, "timeout")


def mariadb_frozen(request: Any, keep: Callable[..., None]) -> Case:
    """It freezes while a connection to it is open, and used."""
    entry = new_database(request.getfixturevalue("mariadb"), connect_timeout=1, read_timeout=1)
    keep({**entry, "CONN_MAX_AGE": None})
    cursor = in_mariadb(entry).cursor()
    cursor.execute("SELECT @@pid_file")
    pid = int(Path(cursor.fetchone()[0]).read_text())
    cursor.connection.close()
    return Case(lambda: frozen(pid), "Lost connection")


def postgresql_read_only(request: Any, keep: Callable[..., None]) -> Case:
    entry = new_database(request.getfixturevalue("postgresql"))
    keep(entry)

    @contextmanager
    def broken() -> Iterator[None]:
        connections["history"].close()
        setting = f"ALTER DATABASE {entry['NAME']} {{}} default_transaction_read_only"
        with in_postgresql(entry, "postgres") as session:
            session.execute(setting.format("SET") + " = on")  # type: ignore[arg-type]
            yield
            session.execute(setting.format("RESET"))  # type: ignore[arg-type]
        connections["history"].close()

    return Case(broken, "read-only transaction")


def mariadb_without_rights(request: Any, keep: Callable[..., None]) -> Case:
    entry = new_database(request.getfixturevalue("mariadb"))
    keep(entry)

    @contextmanager
    def broken() -> Iterator[None]:
        connections["history"].close()
        session = in_mariadb(entry)
        cursor = session.cursor()
        cursor.execute("CREATE USER reader@'%'")
        cursor.execute(f"GRANT SELECT ON {entry['NAME']}.* TO reader@'%'")
        connections["history"].settings_dict["USER"] = "reader"
        try:
            yield
        finally:
            connections["history"].settings_dict["USER"] = entry["USER"]
            connections["history"].close()
            cursor.execute("DROP USER reader@'%'")
            session.close()

    return Case(broken, "command denied")


def sqlite_read_only(request: Any, keep: Callable[..., None]) -> Case:
    file = request.getfixturevalue("tmp_path") / "history.sqlite3"
    entry = {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": {"uri": True}}
    keep({**entry, "NAME": f"file:{file}"})

    @contextmanager
    def broken() -> Iterator[None]:
        connections["history"].close()
        connections["history"].settings_dict["NAME"] = f"file:{file}?mode=ro"
        try:
            yield
        finally:
            connections["history"].close()
            connections["history"].settings_dict["NAME"] = f"file:{file}"

    return Case(broken, "readonly database")


def sqlite_locked(request: Any, keep: Callable[..., None]) -> Case:
    file = str(request.getfixturevalue("tmp_path") / "history.sqlite3")
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": file}
    keep({**entry, "OPTIONS": {"timeout": LOCK_SECONDS}})

    @contextmanager
    def broken() -> Iterator[None]:
        session = sqlite3.connect(file)
        session.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            session.rollback()
            session.close()

    return Case(broken, "database is locked")


@contextmanager
def locked(entry: Entry, table: str) -> Iterator[None]:
    with in_postgresql(entry) as session, session.transaction():
        session.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")  # type: ignore[arg-type]
        yield


def postgresql_locked(request: Any, keep: Callable[..., None]) -> Case:
    options = f"-c lock_timeout={int(LOCK_SECONDS * 1000)}"
    entry = new_database(request.getfixturevalue("postgresql"), options=options)
    keep(entry)
    cause = "lock timeout"
    return Case(lambda: locked(entry, "souvenirs_souvenir"), cause)


def before_migrate(entry: Entry, cause: str, keep: Callable[..., None]) -> Case:
    keep(entry, migrate=False)

    @contextmanager
    def broken() -> Iterator[None]:
        yield
        call_command("migrate", database="history", verbosity=0)

    return Case(broken, cause)


def postgresql_before_migrate(request: Any, keep: Callable[..., None]) -> Case:
    entry = new_database(request.getfixturevalue("postgresql"))
    return before_migrate(entry, 'relation "souvenirs_', keep)


def mariadb_before_migrate(request: Any, keep: Callable[..., None]) -> Case:
    entry = new_database(request.getfixturevalue("mariadb"))
    return before_migrate(entry, "doesn't exist", keep)


def sqlite_before_migrate(request: Any, keep: Callable[..., None]) -> Case:
    file = str(request.getfixturevalue("tmp_path") / "history.sqlite3")
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": file}
    return before_migrate(entry, "no such table: souvenirs_", keep)


AWAY = [postgresql_stopped, postgresql_frozen, postgresql_silent, mariadb_frozen]
REFUSING = [
    postgresql_read_only,
    postgresql_locked,
    postgresql_before_migrate,
    mariadb_without_rights,
    mariadb_before_migrate,
    sqlite_read_only,
    sqlite_locked,
    sqlite_before_migrate,
]


@pytest.fixture
def case(request: Any, keep_history_in: Callable[..., None]) -> Case:
    made: Case = request.param(request, keep_history_in)
    return made


def cases(*functions: Callable[..., Case]) -> pytest.MarkDecorator:
    ids = [function.__name__ for function in functions]
    return pytest.mark.parametrize("case", functions, indirect=True, ids=ids)


# The database of souvenirs fails


@cases(*AWAY, *REFUSING)
def test_database__that_fails_does_no_harm_and_is_used_when_it_works_again(
    case: Case, crowd: Crowd, clock: BreakerClock, caplog: pytest.LogCaptureFixture
) -> None:
    with case.broken():
        for page in ["who", "plain"]:  # a view that looks who the user is, one that does not
            assert crowd.visit(page=page) == NAMES[:1]
            assert crowd.results == ["failed"] * len(NAMES)
            clock.pass_period()
        (message,) = errors(caplog)
        assert case.cause in message
    assert crowd.visit() == NAMES
    assert crowd.results == ["added"] * len(NAMES)
    assert Souvenir.objects.count() == LastSeen.objects.count() == len(NAMES)


@cases(*AWAY, *REFUSING)
def test_souvenez__raises_what_the_database_says(case: Case, ada: User) -> None:
    with case.broken():
        start = time.monotonic()
        with pytest.raises(DatabaseError, match=case.cause):
            souvenez(ada)
        assert time.monotonic() - start < HANGS
        close_old_connections()
    assert souvenez(ada) == "added"
    assert Souvenir.objects.count() == LastSeen.objects.count() == 1


@cases(*REFUSING)
def test_souvenez__that_raises_leaves_the_transaction_around_it_usable(
    case: Case, ada: User
) -> None:
    with case.broken(), transaction.atomic(using="history"):
        with pytest.raises(DatabaseError, match=case.cause):
            souvenez(ada)
        with connections["history"].cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
    assert souvenez(ada) == "added"


@pytest.mark.parametrize("engine", ["postgresql", "mariadb", "sqlite"])
def test_souvenez__that_cannot_write_last_seen_writes_nothing(
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


def test_souvenez__that_waits_for_last_seen_too_long_writes_nothing(
    postgresql: Entry, keep_history_in: Any, ada: User
) -> None:
    entry = new_database(postgresql, options=f"-c lock_timeout={int(LOCK_SECONDS * 1000)}")
    keep_history_in(entry)
    with locked(entry, "souvenirs_lastseen"):
        with pytest.raises(DatabaseError, match="lock timeout"):
            souvenez(ada)
        assert not Souvenir.objects.exists()
    assert souvenez(ada) == "added"


# Requests that do not ask it tell nothing of it


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
    stranger = Client()  # has a session, and is not signed in
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


def test_broken_transaction__of_a_request_stops_nobody_elses(
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


def test_broken_transaction__is_told_by_souvenez(
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


def test_site__whose_database_is_away_serves_pages_that_need_none(
    postgresql: Entry, tmp_path: Path
) -> None:
    entry = new_database(postgresql, connect_timeout=CONNECT_SECONDS)
    environment = serving.environ(entry)
    serving.populate(environment, 1)
    with serving.serve(environment, tmp_path) as site:
        cookie = site.sign_in(1)
        told = len(site.get("/rows/").json())
        # Now in another slot of last-seen, or in the other process, there is something to write
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
        assert told == 1
        assert site.get("/who/", cookie).text == "user1"
        failures = [line for line in site.errors() if line.startswith("ERROR souvenirs")]
        assert 1 <= len(failures) <= processes


# The shared cache fails


class CountedClient(RedisCacheClient):
    """`ask`, if set, is told of each question to the server."""

    ask: Callable[[], None] | None = None

    def get_client(self, *args: Any, **kwargs: Any) -> Any:
        if self.ask:
            self.ask()
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
        process.wait(10)
        yield
        stack.enter_context(servers.redis(int(url.split(":")[-1].split("/")[0])))

    return Case(broken, "Error 111")


def redis_hidden(stack: ExitStack, url: str, process: Any) -> Case:
    return redis_stopped(stack, url, process)._replace(cause="keeps nothing")


def redis_frozen(stack: ExitStack, url: str, process: Any) -> Case:
    return Case(lambda: frozen(process.pid), "Timeout")


def redis_full(stack: ExitStack, url: str, process: Any) -> Case:
    """It refuses each write."""

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
    """How many slots the shared cache holds."""
    return len(caches["default"]._cache.get_client().keys("*souvenirs.*"))


def test_cache__that_fails_is_replaced_by_process_memory_until_it_works_again(
    redis_case: Case, crowd: Crowd, clock: BreakerClock, caplog: pytest.LogCaptureFixture
) -> None:
    caches["default"]._cache.ask = crowd.ask
    hour = time.time() // 3600 * 3600
    with time_machine.travel(hour + 1, tick=False) as traveller:
        crowd.visit("ada")
        assert keys() == 1
        with redis_case.broken():
            known = ["ada"]
            for newcomers in [["barbara", "edith"], ["grace", "hedy"]]:
                assert crowd.visit(*newcomers) == newcomers[:1]
                assert [result for result in crowd.results if result != "rate-limited"] == [
                    "added",
                    "added",
                ]
                known += newcomers
                traveller.shift(60)
                with CaptureQueriesContext(connection) as queries:
                    for _ in range(3):
                        crowd.visit(*known)
                written = [query["sql"] for query in queries if "souvenirs_" in query["sql"]]
                assert len(written) == len(known)  # their last-seen times of this minute
                clock.pass_period()
            (message,) = errors(caplog)
            assert redis_case.cause in message
            assert Souvenir.objects.count() == len(known)
        before = keys()
        crowd.visit("joan")
        assert crowd.results.count("added") == 1
        assert keys() == before + 1
    assert Souvenir.objects.count() == len(NAMES)
