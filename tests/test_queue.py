"""Visits that the middleware leaves to the writer: what is written, even if rows are locked."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import connections, models, router, transaction
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from souvenirs import testing, timestamps
from souvenirs.control import souvenez
from souvenirs.history import counting, maintenance
from souvenirs.middleware import SouvenirsMiddleware
from souvenirs.models import DirtyBucket, LastSeen, Souvenir
from souvenirs.periods import BUCKET, Interval, bucket_containing
from souvenirs.recording import flusher, memory
from souvenirs.recording.throttle import throttle
from souvenirs.recording.writer import writer
from tests.history import DAY, HOUR, MINUTE, at, brute, people, record, unix
from tests.people import NOBODY, User, ours, with_databases

pytestmark = [
    with_databases,
    pytest.mark.where("sqlite" not in settings.DATABASES["default"]["ENGINE"]),
]

IS_MYSQL = "mysql" in settings.DATABASES["default"]["ENGINE"]
IS_ROUTED = "routed" in settings.SHAPE
T = unix(2024, 5, 14, 10)


@pytest.fixture(autouse=True)
def queued(transactional_db: None) -> Iterator[None]:
    """Visits wait for the writer, whose thread only writes when a test flushes."""
    with override_settings(SOUVENIRS_FLUSH_SECONDS=60):
        yield
        testing.forget()


def visit(user: Any) -> None:
    """Make a request whose view has loaded the user."""
    request = HttpRequest()
    request.user = user
    response = HttpResponse()
    assert SouvenirsMiddleware(lambda request: response)(request) is response


def visits() -> list[tuple[Any, float]]:
    """All souvenirs: (user, time)."""
    rows = Souvenir.objects.order_by("when").values_list("user_id", "when")
    return [(user, timestamps.to_seconds(when)) for user, when in rows]


def seen() -> dict[Any, float]:
    return {row.user_id: timestamps.to_seconds(row.seen) for row in LastSeen.objects.all()}


def restart() -> None:
    """Forget what this process knows, like another process or a restart."""
    throttle.clear()


# What is written


def test_visit__takes_no_query_and_is_written_by_the_thread(
    django_assert_num_queries: Any, results: list[str]
) -> None:
    [user] = people(1)
    with at(T + 5), django_assert_num_queries(0), CaptureQueriesContext(ours()) as queries:
        visit(user)
    assert not queries
    assert results == []
    with at(T + 7):
        testing.flush()
    assert visits() == [(user.pk, T + 5)]
    assert seen() == {user.pk: T + 5}
    assert results == ["added"]


def test_visits__in_a_slot_write_one_row_and_last_seen_every_minute(
    results: list[str],
) -> None:
    [user] = people(1)
    for minute in range(65):
        with at(T + minute * MINUTE + 3):
            visit(user)
            visit(user)
            if minute % 3 == 0:
                testing.flush()
    testing.flush()
    assert visits() == [(user.pk, T + 3), (user.pk, T + HOUR + 3)]
    assert seen() == {user.pk: T + 64 * MINUTE + 3}
    memory_hits = 65
    assert results.count("added") == 2
    assert len(results) == 65 + memory_hits


def test_visits__that_waited_keep_their_times() -> None:
    """As after an outage: each slot has its row, and last-seen is the latest time."""
    [user] = people(1)
    for minute in range(0, 150, 7):
        with at(T + minute * MINUTE):
            visit(user)
    with at(T + DAY):
        testing.flush()
    assert [t for _, t in visits()] == [T, T + 63 * MINUTE, T + 126 * MINUTE]
    assert seen() == {user.pk: T + 147 * MINUTE}


def test_visit__that_waited_does_not_set_a_newer_last_seen_back() -> None:
    [user] = people(1)
    with at(T):
        visit(user)
    with at(T + 2 * HOUR):
        souvenez(user)
        testing.flush()
    assert [t for _, t in visits()] == [T, T + 2 * HOUR]
    assert seen() == {user.pk: T + 2 * HOUR}


def test_visit__replaces_a_last_seen_that_lies_in_the_future() -> None:
    [user] = people(1)
    with at(T + DAY):
        souvenez(user)
    restart()
    with at(T):
        visit(user)
        testing.flush()
    assert seen() == {user.pk: T}
    assert (user.pk, T) in visits()


def test_two_processes__write_one_row() -> None:
    users = people(3)
    for minute in range(4):
        with at(T + minute * MINUTE):
            for user in users:
                visit(user)
            testing.flush()
        restart()
    assert sorted(visits(), key=str) == sorted([(user.pk, T) for user in users], key=str)


def test_visit__in_a_slot_known_only_to_last_seen_has_a_row() -> None:
    """`souvenez` with a longer limit updates last-seen without a row in the usual slot."""
    [user] = people(1)
    with at(T):
        souvenez(user, ratelimit=DAY)
    with at(T + HOUR):
        souvenez(user, ratelimit=DAY)
    with at(T + HOUR + 2 * MINUTE):
        visit(user)
        testing.flush()
    assert [t for _, t in visits()] == [T, T + HOUR + 2 * MINUTE]


def test_visit__of_a_missing_user_is_dropped_and_remembered(results: list[str]) -> None:
    users = people(2)
    for each in [users[0], User(pk=NOBODY), users[1]]:
        visit(each)
    testing.flush()
    assert sorted(user for user, _ in visits()) == sorted(user.pk for user in users)
    assert sorted(results) == ["added", "added", "skipped"]
    assert memory.is_missing(NOBODY, time.time())


def equates_case() -> bool:
    """Whether the database considers keys equal that differ only in case."""
    return IS_MYSQL and isinstance(User._meta.pk, models.CharField)


@pytest.mark.where(equates_case())
@pytest.mark.parametrize("names", [["Bob", "bob"], ["bob"], ["BOB", "bob", "Bob"]])
@pytest.mark.parametrize("is_known", [True, False])
def test_visits__with_keys_that_the_database_considers_equal_are_one_users(
    names: list[str], is_known: bool, write_errors: list[int]
) -> None:
    others = people(3)
    bob = User.objects.create(pk="Bob", username="Bob")
    if is_known:
        record(bob, T - DAY)
    with at(T):
        visit(others[0])
        for name in names:
            visit(User(pk=name))
        visit(others[1])
        writer.flush()
    assert not writer.queue
    recent = sorted(user.lower() for user, t in visits() if t >= T)
    assert recent == sorted(["bob", others[0].pk.lower(), others[1].pk.lower()])
    assert {user.lower(): t for user, t in seen().items()}["bob"] == T
    assert not write_errors


@pytest.mark.where(not isinstance(User._meta.pk, models.UUIDField))
def test_visit__with_a_key_that_does_not_fit_the_column_is_dropped(results: list[str]) -> None:
    [user] = people(1)
    huge = 2**40 if isinstance(user.pk, int) else f"{user.pk}{'x' * 300}"
    for key in (huge, user.pk):
        visit(User(pk=key))
    testing.flush()
    assert [pk for pk, _ in visits()] == [user.pk]
    assert sorted(results) == ["added", "skipped"]


def test_visit__keeps_its_microseconds() -> None:
    chance = random.Random(3)
    users = people(20)
    for number, user in enumerate(users):
        with at(T + number * HOUR + chance.random()):
            visit(user)
    queued = writer.queue.of_users({user.pk for user in users})
    testing.flush()
    assert dict(visits()) == {entry.user_pk: entry.first for entry in queued}


def test_visit__of_a_user_with_a_reused_key_is_recorded() -> None:
    [user] = people(1)
    with at(T):
        visit(user)
        testing.flush()
        User.objects.filter(pk=user.pk).delete()
        User.objects.create(pk=user.pk, username="user0")
        memory.recent_users[user.pk] = memory.interned(T, T + 60, T, T + HOUR)  # another process
    with at(T + MINUTE):
        visit(user)
        testing.flush()
    assert visits() == [(user.pk, T + MINUTE)]
    assert seen() == {user.pk: T + MINUTE}


def test_batch__takes_a_handful_of_statements() -> None:
    users = people(100)

    def statements(t: float) -> int:
        with at(t):
            for user in users:
                visit(user)
            with CaptureQueriesContext(ours()) as queries:
                writer.flush()
        return len(queries)

    newcomers = statements(T)
    assert len(visits()) == 100
    assert newcomers <= 16
    assert statements(T + MINUTE) <= 6  # in a new minute: row locks, times
    assert statements(T + HOUR) <= 9  # in a new hour: also user locks and souvenirs
    restart()
    assert statements(T + HOUR + MINUTE) <= 7  # has each row been written?
    assert len(visits()) == 200


@pytest.mark.parametrize("t", [T + BUCKET - 1, T + BUCKET])
def test_batch__marks_the_buckets_that_have_ended(t: float) -> None:
    [user] = people(1)
    with at(T + BUCKET - 2):
        visit(user)
    with at(t):
        testing.flush()
    marked = list(DirtyBucket.objects.values_list("bucket", flat=True))
    assert marked == ([T] if t == T + BUCKET else [])


def test_batch__marks_a_bucket_that_ends_during_its_statements() -> None:
    users = people(2)
    with at(T + BUCKET - 2) as traveller:
        visit(users[0])

        def late(execute: Any, sql: str, *args: Any) -> Any:
            done = execute(sql, *args)
            if sql.startswith("INSERT") and "souvenirs_souvenir" in sql:
                traveller.move_to(T + BUCKET)
            return done

        with ours().execute_wrapper(late):
            writer.flush()
    assert list(DirtyBucket.objects.values_list("bucket", flat=True)) == [T]


def test_numbers__equal_brute_force(django_db_blocker: Any) -> None:
    """Random visits of several processes, flushed at random times, with roll-ups in between."""
    chance = random.Random(7)
    users = people(12)
    facts: list[tuple[Any, float]] = []
    t: float = T
    while t < T + 30 * HOUR:
        t += chance.expovariate(1 / 600)
        with at(t):
            user = chance.choice(users)
            visit(user)
            facts.append((user.pk, t))
            if chance.random() < 0.3:
                testing.flush()
            if chance.random() < 0.1:
                testing.flush()
                restart()
            if chance.random() < 0.03:
                maintenance.roll_up()
    with at(t + HOUR):
        testing.flush()
        maintenance.roll_up()
        hours = [Interval(T + n * HOUR, T + (n + m) * HOUR) for n in range(30) for m in (1, 5, 24)]
        assert counting.count_users_of_ranges(hours) == [brute(facts, *each) for each in hours]
    newest = dict(sorted(facts, key=lambda fact: fact[1]))
    for user, last in newest.items():
        assert last - MINUTE < seen()[user] <= last


# Locked rows


@contextmanager
def in_other_session(do: Callable[[], object], using: str) -> Iterator[threading.Event]:
    """Call `do` in a transaction of another session, which stays open in the block."""
    is_done, may_end = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with transaction.atomic(using=using):
                do()
                is_done.set()
                may_end.wait(30)
        except BaseException as error:
            errors.append(error)
        finally:
            is_done.set()
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    assert is_done.wait(30)
    try:
        yield may_end
    finally:
        may_end.set()
        thread.join(30)
        assert not thread.is_alive()
        if errors:
            raise errors[0]


def users_database() -> str:
    return str(router.db_for_write(User))


def lock_user(user: Any) -> Any:
    return User.objects.select_for_update().get(pk=user.pk)


def lock_last_seen(user: Any) -> Any:
    return LastSeen.objects.select_for_update().get(user_id=user.pk)


def insert_row(user: Any) -> None:
    Souvenir.objects.create(user_id=user.pk)


@pytest.mark.parametrize("can_skip", [True, False] if IS_MYSQL else [True])
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("hold", [lock_user, lock_last_seen, insert_row])
def test_locked_row__delays_no_other_user(
    hold: Callable[[Any], object],
    is_known: bool,
    can_skip: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not can_skip:  # like MariaDB 10.5
        monkeypatch.setattr(ours().features, "has_select_for_update_skip_locked", False)
    if IS_ROUTED and (hold is lock_user or not is_known):
        return  # the batch locks nothing in the users' database
    if hold is lock_last_seen and not is_known:
        return  # there is no such row
    # New keys: next to a row deleted a moment ago, InnoDB locks the gap up to its neighbours
    users = [User.objects.create(username=uuid4().hex) for _ in range(4)]
    held = users[1]
    if is_known:
        record(held, T - DAY)
    record(users[2], T - DAY)
    using = users_database() if hold is lock_user else ours().alias
    for user in users:
        visit(user)
    with in_other_session(lambda: hold(held), using):
        start = time.monotonic()
        writer.flush()
        assert time.monotonic() - start < 30
        recent = {user for user, t in visits() if t > T}
        assert recent == {user.pk for user in users if user != held}
        assert len(writer.queue) == 1
    testing.flush()
    assert held.pk in {user for user, t in visits() if t > T}


def test_locked_rows__delay_no_other_user_even_if_they_fill_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flusher, "BATCH_SIZE", 1)
    users = people(4)
    for user in users:
        record(user, T - DAY)
        visit(user)
    with in_other_session(lambda: lock_last_seen(users[0]), ours().alias):
        writer.flush()
        assert {user for user, t in visits() if t > T} == {user.pk for user in users[1:]}
    testing.flush()
    assert {user for user, t in visits() if t > T} == {user.pk for user in users}


@pytest.mark.where("postgresql" in settings.DATABASES["default"]["ENGINE"])
def test_open_transaction__with_a_new_row_delays_no_other_user() -> None:
    users = people(3)
    record(users[2], T - DAY)
    held = LastSeen.objects.get().pk
    users[2].delete()
    visit(users[1])
    with in_other_session(lambda: insert_row(users[0]), ours().alias):
        start = time.monotonic()
        writer.flush()
        assert time.monotonic() - start < 5
        assert [user for user, _ in visits()] == [users[1].pk]
    assert LastSeen.objects.filter(pk__gt=held).count() == 2


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("statement", range(1, 9))
def test_user__deleted_while_a_batch_is_written_is_dropped(
    statement: int, is_known: bool, results: list[str], write_errors: list[int]
) -> None:
    """The user is deleted before each of the batch's statements."""
    users = people(3)
    gone = users[1].pk
    for user in users:
        if is_known:
            record(user, T - DAY)
        visit(user)
    errors: list[BaseException] = []
    deletion = threading.Thread(target=delete, args=(gone, errors))
    statements = 0

    def delete_before(execute: Any, sql: str, *args: Any) -> Any:
        nonlocal statements
        statements += "@@" not in sql
        if statements == statement and deletion.ident is None:
            deletion.start()
            deletion.join(0.3)  # it may have to wait for the batch
        return execute(sql, *args)

    with ours().execute_wrapper(delete_before):
        writer.flush()
    if deletion.ident is None:
        deletion.start()
    deletion.join(30)
    assert errors == []
    assert not User.objects.filter(pk=gone).exists()
    testing.flush()
    recent = {user for user, t in visits() if t > T}
    assert recent == {user.pk for user in users} - {gone}
    assert set(LastSeen.objects.values_list("user_id", flat=True)) == recent
    assert sorted(set(results)) in (["added"], ["added", "skipped"])
    assert len(results) == len(users)
    assert not write_errors


@pytest.mark.where(IS_ROUTED)
def test_user__deleted_before_the_commit_of_a_batch_leaves_only_history(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    users = people(2)
    gone = users[0].pk
    for user in users:
        visit(user)
    errors: list[BaseException] = []
    commit = ours()._commit

    def delete_and_commit() -> None:
        monkeypatch.undo()
        deletion = threading.Thread(target=delete, args=(gone, errors))
        deletion.start()
        deletion.join(30)
        commit()

    monkeypatch.setattr(ours(), "_commit", delete_and_commit)
    writer.flush()
    assert errors == []
    assert not User.objects.filter(pk=gone).exists()
    assert [user for user, _ in visits()] == [users[1].pk]
    assert list(LastSeen.objects.values_list("user_id", flat=True)) == [users[1].pk]
    bucket = bucket_containing(time.time())
    assert counting.count_users_of_ranges([Interval(bucket - BUCKET, bucket + 2 * BUCKET)]) == [2]


@pytest.mark.where(not IS_ROUTED)
@pytest.mark.parametrize("is_known", [True, False])
def test_deletion__of_a_user_while_a_batch_is_written_succeeds(is_known: bool) -> None:
    """A batch is written before each of the deletion's statements."""
    errors: list[BaseException] = []

    def work(user_pk: Any, statement: int) -> None:
        done = 0

        def flush_before(execute: Any, sql: str, *args: Any) -> Any:
            nonlocal done
            done += 1
            if done == statement:
                is_there.set()
                is_flushed.wait(0.5)  # the batch may have to wait for the deletion
            return execute(sql, *args)

        try:
            with ours().execute_wrapper(flush_before):
                User.objects.get(pk=user_pk).delete()
        except BaseException as error:
            errors.append(error)
        finally:
            is_there.set()
            connections.close_all()

    statement, last = 0, False
    while not last:
        statement += 1
        is_there, is_flushed = threading.Event(), threading.Event()
        user = User.objects.create(username=f"user{statement}")
        user_pk = user.pk
        if is_known:
            record(user, T - DAY)
        visit(user)
        deletion = threading.Thread(target=work, args=(user_pk, statement))
        deletion.start()
        assert is_there.wait(30)
        last = not User.objects.filter(pk=user_pk).exists()
        writer.flush()
        is_flushed.set()
        deletion.join(30)
        assert not deletion.is_alive()
        assert errors == []
        testing.flush()
        assert not User.objects.filter(pk=user_pk).exists()
        assert visits() == []
        assert seen() == {}
    assert statement > 5


def delete(user_pk: Any, errors: list[BaseException]) -> None:
    try:
        User.objects.get(pk=user_pk).delete()
    except BaseException as error:
        errors.append(error)
    finally:
        connections.close_all()


@pytest.mark.where(not IS_ROUTED)
def test_site__locking_one_user_and_deleting_another_causes_no_deadlock() -> None:
    is_locked = threading.Event()
    errors: list[BaseException] = []

    def work(one: Any, other: Any, seconds: float) -> None:
        try:
            with transaction.atomic():
                lock_user(one)
                is_locked.set()
                time.sleep(seconds)
                other.delete()
        except BaseException as error:
            errors.append(error)
        finally:
            is_locked.set()
            connections.close_all()

    for number in range(5):
        is_locked.clear()
        names = [f"{name}{number}" for name in ("one", "other", "third")]
        one, other, third = (User.objects.create(username=name) for name in names)
        for user in (one, other, third):
            record(user, T)
            visit(user)
        site = threading.Thread(target=work, args=(one, other, 0.02 * number))
        site.start()
        assert is_locked.wait(30)
        while site.is_alive():
            writer.flush()
        site.join()
        testing.flush()
        assert errors == []
        recent = {user for user, t in visits() if t > T}
        assert {one.pk, third.pk} <= recent
        assert not User.objects.filter(username=names[1]).exists()
