"""Tests for every store of last-seen times: the table, and Redis in each of its forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import time_machine
from django.db import router, transaction
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from souvenirs.control import last_seen, souvenez
from souvenirs.history.repair import repair
from souvenirs.lastseen import table
from souvenirs.lastseen.base import LastSeenCounts, LastSeenStore, LastSeenUpdate
from souvenirs.lastseen.redis import RedisStore
from souvenirs.models import LastSeen, Souvenir
from souvenirs.recording import memory
from tests import stores
from tests.people import NOBODY, User, ours, site, with_databases

store = stores.store

pytestmark = with_databases

T = 1_700_000_040  # the beginning of a minute
NOON = datetime(2024, 5, 14, 12, tzinfo=timezone.utc)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture
def user() -> Any:
    return User.objects.create(username="ana")


def sighting(user_pk: Any, seen: int, latest: int | None = None, **more: Any) -> LastSeenUpdate:
    return LastSeenUpdate(
        user_pk=user_pk, seen=seen, slot_start=seen // 60 * 60, latest=latest, **more
    )


def record(store: LastSeenStore, user_pk: Any, seen: int, latest: int | None = None) -> None:
    """Record like a visit that writes a souvenir."""
    with then(store, latest):
        table.touch(sighting(user_pk, seen, latest))
        store.on_table_updated({user_pk: seen}, latest)


def touch(store: LastSeenStore, user_pk: Any, seen: int, latest: int | None = None) -> None:
    """Record like a later visit in the same hour."""
    with then(store, latest):
        store.touch(sighting(user_pk, seen, latest, has_row=True))


@contextmanager
def then(store: LastSeenStore, latest: int | None) -> Iterator[None]:
    """Run the block when `latest` is the latest time that can be right, and then write
    everything."""
    with nullcontext() if latest is None else time_machine.travel(latest - 60, tick=False):
        yield
        if isinstance(store, RedisStore):
            store.flush()
            store.writer.confirm_pending()


def ask(store: LastSeenStore, cuts: Sequence[float], until: float = T + 10**6) -> LastSeenCounts:
    return store.count(cuts, until, using=router.db_for_read(LastSeen))


# Times


def test_get__is_none_for_a_user_never_seen(store: LastSeenStore, user: Any) -> None:
    assert store.get(user.pk) is None
    assert store.get(NOBODY) is None


def test_touch__moves_a_recorded_time_forward(store: LastSeenStore, user: Any) -> None:
    record(store, user.pk, T + 5)
    assert store.get(user.pk) == T + 5
    touch(store, user.pk, T + 65)
    assert store.get(user.pk) == T + 65


@pytest.mark.parametrize("seconds", [1, 59, 60, 3_600, 10**9])
def test_touch__never_goes_back(store: LastSeenStore, user: Any, seconds: int) -> None:
    record(store, user.pk, T)
    touch(store, user.pk, T - seconds, latest=T)
    record(store, user.pk, T - seconds)
    assert store.get(user.pk) == T


@pytest.mark.parametrize("visit", [record, touch])
def test_live_visit__replaces_a_time_after_latest(
    store: LastSeenStore, user: Any, visit: Any
) -> None:
    record(store, user.pk, T + 61)
    visit(store, user.pk, T, latest=T + 60)
    assert store.get(user.pk) == T


@pytest.mark.parametrize("visit", [record, touch])
def test_live_visit__keeps_a_time_up_to_latest(store: LastSeenStore, user: Any, visit: Any) -> None:
    record(store, user.pk, T + 60)
    visit(store, user.pk, T, latest=T + 60)
    assert store.get(user.pk) == T + 60


def test_past_visit__keeps_a_future_time(store: LastSeenStore, user: Any) -> None:
    record(store, user.pk, T + 86_400)
    record(store, user.pk, T)
    assert store.get(user.pk) == T + 86_400


def test_touch__of_a_deleted_user_creates_nothing(store: LastSeenStore, user: Any) -> None:
    record(store, user.pk, T)
    key = user.pk
    user.delete()
    touch(store, key, T + 60, latest=T + 120)
    assert store.get(key) is None
    assert ask(store, [0]).since == {0: 0}


# Counts


def test_count__bounds_are_inclusive(store: LastSeenStore, user: Any) -> None:
    record(store, user.pk, T)
    since = ask(store, [T - 1, T - 0.5, T, T + 0.5, T + 1], until=T).since
    assert since == {T - 1: 1, T - 0.5: 1, T: 1, T + 0.5: 0, T + 1: 0}
    assert ask(store, [0], until=T - 0.5).since == {0: 0}


def test_count__of_an_empty_store(store: LastSeenStore) -> None:
    activity = ask(store, [0, T])
    assert (activity.since, activity.newest) == ({0: 0, T: 0}, None)
    assert activity.exact_from <= 0
    assert ask(store, []).since == {}


def test_count__newest_is_not_in_the_future(store: LastSeenStore) -> None:
    for name, seen in {"ana": T, "bob": T + 500, "eve": T + 1_001}.items():
        record(store, User.objects.create(username=name).pk, seen)
    assert ask(store, [T], until=T + 1_000).newest == T + 500


OPS = st.one_of(
    st.tuples(st.just("record"), st.integers(0, 5), st.integers(0, 7_200), st.booleans()),
    st.tuples(st.just("touch"), st.integers(0, 5), st.integers(0, 7_200), st.booleans()),
    st.tuples(st.just("wrong clock"), st.integers(0, 5), st.integers(10**5, 10**6)),
    st.tuples(st.just("delete"), st.integers(0, 5)),
)
NOW = T + 7_200


@given(ops=st.lists(OPS, max_size=15), cuts=st.lists(st.integers(-5, 125), max_size=6))
def test_store__behaves_like_a_dictionary_of_times(
    store: LastSeenStore, ops: list[Any], cuts: list[int]
) -> None:
    """To the minute: within one, the table keeps the first time and Redis the last."""
    User.objects.all().delete()
    people = [User.objects.create(username=f"u{number}") for number in range(6)]
    keys = [user.pk for user in people]
    model: dict[int, int] = {}
    for op, number, *values in ops:
        if op == "delete":
            User.objects.filter(pk=keys[number]).delete()
            model.pop(number, None)
            continue
        if not User.objects.filter(pk=keys[number]).exists():
            if op == "touch":  # in a process that does not know about the deletion yet
                touch(store, keys[number], T + values[0], latest=NOW)
                continue
            User.objects.create(pk=keys[number], username=f"u{number}")
        if op == "wrong clock":
            record(store, keys[number], NOW + values[0])
            model[number] = max(model.get(number, 0), NOW + values[0])
            continue
        seen, live = T + values[0], NOW if values[1] else None
        if op == "touch" and number not in model:
            continue  # a touch comes after a souvenir
        (record if op == "record" else touch)(store, keys[number], seen, live)
        known = model.get(number, 0)
        model[number] = seen if live and known > NOW else max(known, seen)
    for number, key in enumerate(keys):
        seen_at = store.get(key)
        assert (None if seen_at is None else seen_at // 60) == (
            model[number] // 60 if number in model else None
        )
    starts = [T + 60 * cut for cut in cuts]
    times = [seen for seen in model.values() if seen <= NOW + 60]
    activity = ask(store, starts, until=NOW + 60)
    assert activity.since == {start: sum(t >= start for t in times) for start in starts}
    newest = None if activity.newest is None else activity.newest // 60
    assert newest == max((t // 60 for t in times), default=None)


# Deleted and re-created users


def test_deleted_user__is_gone(store: LastSeenStore, user: Any) -> None:
    other = User.objects.create(username="bob")
    for each in (user, other):
        record(store, each.pk, T)
    key = user.pk
    User.objects.filter(pk=key).delete()
    assert store.get(key) is None
    assert ask(store, [T]).since == {T: 1}


def test_deleted_user__in_a_rolled_back_transaction_stays(store: LastSeenStore, user: Any) -> None:
    record(store, user.pk, T)
    key = user.pk
    with suppress(ZeroDivisionError), transaction.atomic(using=router.db_for_write(User)):
        user.delete()
        raise ZeroDivisionError
    assert store.get(key) == T


def test_recreated_user__is_a_new_person(store: LastSeenStore, user: Any) -> None:
    record(store, user.pk, T)
    key = user.pk
    user.delete()
    User.objects.create(pk=key, username="bob")
    assert store.get(key) is None
    record(store, key, T - 3_600)
    assert store.get(key) == T - 3_600


@pytest.mark.where(User._meta.pk.get_internal_type() == "CharField")
@pytest.mark.parametrize("key", [" ", "é", "a\nb", "1", "whole:", "{x}", "x" * 30])
def test_key__may_be_any_text(store: LastSeenStore, key: str) -> None:
    User.objects.create(pk=key, username="ana")
    record(store, key, T)
    assert store.get(key) == T
    store.reconcile()
    assert ask(store, [T]).since == {T: 1}


def test_reconcile__removes_users_who_do_not_exist(store: LastSeenStore, user: Any) -> None:
    record(store, user.pk, T)
    store.on_table_updated({NOBODY: T})
    store.reconcile()
    assert ask(store, [T]).since == {T: 1}
    assert store.get(user.pk) == T
    assert ask(store, [T]).exact_from <= T


# Through the public API


def test_souvenez__each_minute_moves_last_seen(store: LastSeenStore, user: Any) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        for minute in range(4):
            souvenez(user)
            assert last_seen(user) == site(NOON + minute * MINUTE)
            clock.shift(MINUTE)
            if minute % 2:
                memory.recent_users.clear()  # another process
    assert Souvenir.objects.count() == 1


def test_souvenez__within_a_transaction_updates_last_seen_at_the_commit(
    store: LastSeenStore, user: Any
) -> None:
    with time_machine.travel(NOON, tick=False):
        with transaction.atomic(using=ours().alias):
            souvenez(user)
            assert last_seen(user) is None
        assert last_seen(user) == site(NOON)
        assert store.get(user.pk) == NOON.timestamp()


def test_souvenez__in_a_rolled_back_transaction_leaves_nothing(
    store: LastSeenStore, user: Any
) -> None:
    with suppress(ZeroDivisionError), transaction.atomic(using=ours().alias):
        souvenez(user)
        raise ZeroDivisionError
    assert store.get(user.pk) is None


@pytest.mark.parametrize("how", ["create", "save", "bulk_create"])
def test_orm__creating_rows_updates_last_seen(store: LastSeenStore, user: Any, how: str) -> None:
    times = [NOON - 5 * HOUR, NOON, NOON - 9 * HOUR]
    rows = [Souvenir(user_id=user.pk, when=site(when)) for when in times]
    if how == "bulk_create":
        Souvenir.objects.bulk_create(rows)
    for row in rows:
        if how == "create":
            Souvenir.objects.create(user_id=user.pk, when=row.when)
        elif how == "save":
            row.save()
    assert store.get(user.pk) == NOON.timestamp()
    assert ask(store, [0], until=NOON.timestamp()).since == {0: 1}


def test_repair__updates_last_seen(store: LastSeenStore, user: Any) -> None:
    souvenez(user, when=site(NOON))
    Souvenir.objects.update(when=site(NOON + HOUR))
    repair()
    assert store.get(user.pk) == (NOON + HOUR).timestamp()


def test_collector__counts_the_same_with_every_store(store: LastSeenStore) -> None:
    with time_machine.travel(NOON - 40 * HOUR, tick=False) as clock:
        for number in range(41):
            souvenez(User.objects.create(username=f"u{number}"))
            if number == 20:
                User.objects.get(username="u3").delete()
            clock.shift(HOUR)
        samples = stores.collect()
    assert samples["up",] == 1
    assert samples["active_users", "1h"] == 1
    assert samples["active_users", "1d"] == 24
    assert samples["active_users", "7d"] == 40
    assert samples["calendar_active_users", "day"] == 15  # from 22:00 UTC


@override_settings(SOUVENIRS_LAST_SEEN_SECONDS=1)
def test_resolution__of_a_second(store: LastSeenStore, user: Any) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        souvenez(user)
        clock.shift(timedelta(seconds=1))
        souvenez(user)
        assert last_seen(user) == site(NOON + timedelta(seconds=1))
