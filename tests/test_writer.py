"""The writer's thread: its lifetime, its behaviour while servers fail, and the exit of
processes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import DataError, OperationalError, connections, transaction
from django.test import override_settings

from souvenirs import testing
from souvenirs.history import counting, maintenance
from souvenirs.lastseen import get_store
from souvenirs.models import DirtyBucket, LastSeen, Souvenir
from souvenirs.periods import BUCKET, Interval
from souvenirs.recording import batch, failures, queue
from souvenirs.recording import writer as writing
from souvenirs.recording.writer import writer
from tests import failing, servers, stores
from tests.failing import BreakerClock, Case, Entry, cases, errors, new_database
from tests.history import HOUR, MINUTE, at, people, unix
from tests.site import serving
from tests.test_queue import restart, seen, visit, visits

pytestmark = [pytest.mark.own_site, pytest.mark.django_db(transaction=True)]

use_counter, keep_history_in, case = failing.use_counter, failing.keep_history_in, failing.case
clock = failing.clock
T = unix(2024, 5, 14, 10)
EXIT_SECONDS = writing.EXIT_SECONDS


@pytest.fixture(autouse=True)
def queued(transactional_db: None, add_database: Any) -> Iterator[None]:
    # Torn down before `add_database`: a thread cannot close connections to unknown databases
    with override_settings(SOUVENIRS_FLUSH_SECONDS=60):
        yield
        testing.forget()


@pytest.fixture
def history(postgresql: Entry, keep_history_in: Callable[..., None]) -> None:
    keep_history_in(new_database(postgresql))


# Servers that fail

DATABASES_AWAY = [
    failing.postgresql_stopped,
    failing.postgresql_frozen,
    failing.mariadb_frozen,
    failing.postgresql_read_only,
    failing.mariadb_without_rights,
    failing.postgresql_before_migrate,
]


@cases(*DATABASES_AWAY)
def test_database__outage_loses_no_visit(
    case: Case,
    clock: BreakerClock,
    results: list[str],
    write_errors: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    users = people(5)
    with case.broken():
        for hour in range(3):
            for minute in range(2):
                with at(T + hour * HOUR + minute * MINUTE):
                    for user in users:
                        visit(user)
                    assert not writer.flush()
            clock.pass_period()
        assert results == []
        assert len(write_errors) == 3  # between these, no request reaches the server
        (message,) = errors(caplog)
        assert case.cause in message
    connections["history"].close()
    clock.pass_period()
    with at(T + 3 * HOUR):
        assert writer.flush()
    assert sorted(visits(), key=str) == sorted(
        ((user.pk, T + hour * HOUR) for user in users for hour in range(3)), key=str
    )
    assert seen() == {user.pk: T + 2 * HOUR + MINUTE for user in users}
    assert (results.count("added"), results.count("rate-limited")) == (15, 15)


@pytest.mark.parametrize(
    ("is_committed", "is_answered"), [(True, True), (True, False), (False, False)]
)
def test_commit__late_one_is_marked_although_the_connection_is_lost(
    is_committed: bool,
    is_answered: bool,
    history: None,
    clock: BreakerClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [user] = people(1)
    wrapper: Any = connections["history"]
    commit = wrapper._commit

    def fail(*args: Any) -> None:
        raise OperationalError("server closed the connection unexpectedly")

    def commit_late() -> None:
        traveller.move_to(T + BUCKET + HOUR)
        in_thread(maintenance.roll_up)
        if is_committed:
            commit()
        wrapper.connection.close()
        if not is_answered:
            fail()

    with at(T + BUCKET - 1) as traveller:
        visit(user)
        with monkeypatch.context() as patched:
            patched.setattr(wrapper, "_commit", commit_late)
            assert not writer.flush()
        wrapper.close()  # like the thread
        assert not DirtyBucket.objects.exists()
        clock.pass_period()
        assert writer.flush()
        assert visits() == [(user.pk, T + BUCKET - 1)]
        assert set(DirtyBucket.objects.values_list("bucket", flat=True)) == {T}
        maintenance.roll_up()
        assert counting.count_users_of_ranges([Interval(T, T + BUCKET)]) == [1]


def in_thread(do: Callable[[], object]) -> None:
    def work() -> None:
        try:
            do()
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def test_queue__drops_the_oldest_when_full(
    history: None, monkeypatch: pytest.MonkeyPatch, results: list[str]
) -> None:
    monkeypatch.setattr(queue, "MAX_ENTRIES", 3)
    users = people(5)
    for user in users:
        visit(user)
    assert results == ["failed"] * 2
    testing.flush()
    assert {user for user, _ in visits()} == {user.pk for user in users[2:]}
    assert sorted(results) == ["added"] * 3 + ["failed"] * 2


def test_entry__rejected_by_the_database_does_not_block_others(
    history: None, monkeypatch: pytest.MonkeyPatch, results: list[str], write_errors: list[int]
) -> None:
    users = people(7)
    insert = batch.insert_times

    def refuse(model: Any, names: Any, rows: Any, using: str) -> None:
        if any(row[0] == users[3].pk for row in rows):
            raise DataError("out of range")
        insert(model, names, rows, using)

    monkeypatch.setattr(batch, "insert_times", refuse)
    for user in users:
        visit(user)
    testing.flush()
    assert {user for user, _ in visits()} == {user.pk for user in users} - {users[3].pk}
    assert sorted(results) == ["added"] * 6 + ["failed"]
    assert not failures.breaker.is_open
    assert write_errors


def test_redis__outage_does_not_delay_rows(history: None, redis_entry: Entry) -> None:
    [user] = people(1)
    gone = {**redis_entry, "LOCATION": f"redis://127.0.0.1:{servers.free_port()}"}
    with override_settings(SOUVENIRS_LAST_SEEN_STORE=gone):
        visit(user)
        assert writer.flush()
        assert [pk for pk, _ in visits()] == [user.pk]
        store = get_store()
        assert len(store.writer.pending) == 1  # type: ignore[attr-defined]
        stores.retire(store)  # type: ignore[arg-type]


def test_redis__gets_each_minute_and_the_table_each_hour(
    history: None, redis_entry: Entry, django_assert_num_queries: Any
) -> None:
    with stores.using(redis_entry) as store:
        [user] = people(1)
        running = threading.enumerate()
        with at(T + 1):
            visit(user)
            writer.flush()
            assert store.get(user.pk) == T + 1
        with at(T + MINUTE):
            visit(user)
            with django_assert_num_queries(0, connection=connections["history"]):
                writer.flush()
            assert store.get(user.pk) == T + MINUTE
        restart()  # another process, which does not know whether the souvenir has been written
        with at(T + 2 * MINUTE):
            visit(user)
            writer.flush()
            assert store.get(user.pk) == T + 2 * MINUTE
        assert seen() == {user.pk: T + 1}
        assert visits() == [(user.pk, T + 1)]
        new = {thread.name for thread in set(threading.enumerate()) - set(running)}
        assert new == {"souvenirs-writer"}


def test_redis__is_updated_while_the_database_is_down(
    request: Any, keep_history_in: Callable[..., None], redis_entry: Entry, clock: BreakerClock
) -> None:
    case = failing.postgresql_read_only(request, keep_history_in)
    with stores.using(redis_entry) as store:
        [user] = people(1)
        with at(T):
            visit(user)
            writer.flush()
        with at(T + HOUR), case.broken():
            visit(user)
            assert not writer.flush()
            assert store.get(user.pk) == T + HOUR
        clock.pass_period()
        with at(T + HOUR + MINUTE):
            assert writer.flush()
        assert [t for _, t in visits()] == [T, T + HOUR]


# The thread


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "souvenirs-writer"]


def test_thread__writes_by_itself_and_ends_when_idle(
    history: None, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.SOUVENIRS_FLUSH_SECONDS = 0.02
    monkeypatch.setattr(writing, "IDLE_SECONDS", 0.3)
    users = people(2)
    for number, user in enumerate(users, 1):
        assert threads() == []
        visit(user)
        servers.wait_until(lambda: Souvenir.objects.count() == number)  # noqa: B023
        servers.wait_until(lambda: threads() == [])
    servers.wait_until(lambda: sessions() == 1)  # this thread's


def test_visit__while_the_thread_ends_is_written(
    history: None, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    users = people(2)
    finish = writing.Writer._finish

    def finish_and_visit(self: writing.Writer) -> None:
        finish(self)
        settings.SOUVENIRS_FLUSH_SECONDS = 0.02
        visit(users[1])

    visit(users[0])
    with monkeypatch.context() as patched:
        patched.setattr(writing.Writer, "_finish", finish_and_visit)
        writer.stop()
    servers.wait_until(lambda: Souvenir.objects.count() == 2)


def sessions() -> int:
    with connections["history"].cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()")
        return int(cursor.fetchone()[0])


def test_flush__in_tests_closes_the_threads_connection(history: None) -> None:
    [user] = people(1)
    visit(user)
    testing.flush()
    servers.wait_until(lambda: sessions() == 1)
    assert Souvenir.objects.count() == LastSeen.objects.count() == 1


def test_visit__writes_if_the_thread_does_not_run(
    history: None, monkeypatch: pytest.MonkeyPatch, results: list[str]
) -> None:
    users = people(3)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)  # as under uWSGI
    visit(users[0])
    visit(users[1])
    assert results == []
    writer.queue.waiting_since -= 200  # type: ignore[operator]
    visit(users[2])
    assert results == ["added"] * 3
    monkeypatch.undo()
    writer._thread = None


def test_visit__does_not_write_during_a_flush_or_an_outage(
    history: None, monkeypatch: pytest.MonkeyPatch, clock: BreakerClock
) -> None:
    users = people(3)
    visit(users[0])
    writer.queue.waiting_since -= 200  # type: ignore[operator]
    with writer._flusher._lock:
        visit(users[1])
        assert visits() == []
    failures.breaker.failure(OSError())
    visit(users[2])
    assert visits() == []


def test_deletion__keeps_unwritten_visits_in_the_history(history: None) -> None:
    from souvenirs.control import count_active_users

    users = people(2)
    for user in users:
        visit(user)
    users[0].delete()
    testing.flush()
    assert count_active_users() == 2
    assert [user for user, _ in visits()] == [users[1].pk]


def test_deletion__in_a_transaction_writes_only_the_visits_of_that_user(history: None) -> None:
    users = people(2)
    for user in users:
        visit(user)
    gone, other = (user.pk for user in users)
    with transaction.atomic(), transaction.atomic("history"):
        users[0].delete()
        assert {user for user, _ in visits()} == {gone}
    testing.flush()
    assert [user for user, _ in visits()] == [other]


# Processes

PROCESS = """
import os, sys, time, threading
import django
django.setup()
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.contrib.auth.models import User
from souvenirs.middleware import SouvenirsMiddleware
from souvenirs.models import Souvenir
from souvenirs.recording.writer import writer
from souvenirs.signals import write_failed
failed = []
write_failed.connect(lambda **kwargs: failed.append(1), weak=False)

def visit(pk):
    request = HttpRequest()
    request.user = User(pk=pk)
    SouvenirsMiddleware(lambda request: HttpResponse())(request)

def wait(count):
    deadline = time.monotonic() + 30
    while Souvenir.objects.count() < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""
FORK = """
visit(1)
wait(1)
connections.close_all()
visit(2)  # queued for the parent to write
child = os.fork()
if not child:
    assert not writer.queue
    visit(3)
    sys.exit()  # which writes it
assert os.waitpid(child, 0)[1] == 0
wait(3)
visit(4)
wait(4)
connections.close_all()
assert not failed
print(sorted(Souvenir.objects.values_list("user_id", flat=True)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["postgresql", "mariadb"])
def test_fork__uses_neither_the_parents_visits_nor_its_connection(
    engine: str, request: Any
) -> None:
    environment = serving.environ(
        new_database(request.getfixturevalue(engine)), SOUVENIRS_FLUSH_SECONDS=0.1
    )
    serving.populate(environment, 4)
    said = serving.run(["-W", "ignore::DeprecationWarning", "-c", PROCESS + FORK], environment)
    assert json.loads(said) == [1, 2, 3, 4]


COUNT = "print(list(Souvenir.objects.values_list('user_id', flat=True)))"


@pytest.mark.slow
def test_exit__writes_queued_visits(postgresql: Entry) -> None:
    environment = serving.environ(new_database(postgresql), SOUVENIRS_FLUSH_SECONDS=60)
    serving.populate(environment, 1)
    start = time.monotonic()
    serving.run(["-c", PROCESS + "visit(1)"], environment)
    assert time.monotonic() - start < servers.START_SECONDS
    assert json.loads(serving.run(["-c", PROCESS + COUNT], environment)) == [1]


FREEZE = """
from tests.failing import frozen, postgresql_pid
import json
visit(1)
wait(1)
pid = postgresql_pid(json.loads(os.environ["SITE_DATABASE"]))
with frozen(pid):
    visit(2)
    start = time.monotonic()
    assert not writer.stop()
    print(time.monotonic() - start)
"""


@pytest.mark.slow
def test_exit__does_not_wait_long_for_a_frozen_database(postgresql: Entry) -> None:
    environment = serving.environ(new_database(postgresql), SOUVENIRS_FLUSH_SECONDS=0.1)
    serving.populate(environment, 2)
    seconds = json.loads(serving.run(["-c", PROCESS + FREEZE], environment))
    assert EXIT_SECONDS - 0.1 < seconds < EXIT_SECONDS + 2
