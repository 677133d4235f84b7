from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.db import DatabaseError, transaction
from django.test import override_settings

from souvenirs import control
from souvenirs.control import (
    active_users_between,
    asouvenez,
    count_active_users,
    last_seen,
    souvenez,
    with_last_seen,
)
from souvenirs.models import LastSeen, Souvenir
from souvenirs.recording.results import flush_hits
from souvenirs.recording.throttle import throttle
from souvenirs.signals import souvenir_recorded
from souvenirs.testing import forget
from tests.people import NOBODY, User, ours, run, site, with_databases

pytestmark = with_databases

NOON = datetime(2024, 5, 14, 12, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)

Signals = list[dict[str, Any]]


@pytest.fixture
def user() -> User:
    return User.objects.create(username="ada")


@pytest.fixture
def traveller() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(NOON, tick=False) as traveller:
        yield traveller


@pytest.fixture
def signals() -> Iterator[Signals]:
    received: Signals = []

    def receive(signal: Any, sender: Any, **kwargs: Any) -> None:
        received.append(kwargs)

    souvenir_recorded.connect(receive)
    yield received
    souvenir_recorded.disconnect(receive)


# The rate limit


def test_souvenez__records_a_user_once_an_hour(user: User, traveller: Any) -> None:
    assert souvenez(user) == "added"
    for _ in range(59):
        traveller.shift(MINUTE)
        assert souvenez(user) == "rate-limited"
    traveller.shift(MINUTE)
    assert souvenez(user) == "added"
    assert [row.when for row in Souvenir.objects.all()] == [site(NOON + HOUR), site(NOON)]


def test_souvenez__takes_a_primary_key(user: User, traveller: Any) -> None:
    assert souvenez(user.pk) == "added"
    assert souvenez(str(user.pk)) == "rate-limited"
    assert souvenez(user) == "rate-limited"
    assert Souvenir.objects.get().user_id == user.pk


def test_souvenez__a_key_of_another_type_is_free_as_well(
    user: User, traveller: Any, django_assert_num_queries: Any
) -> None:
    souvenez(str(user.pk))
    with django_assert_num_queries(0, connection=ours()):
        assert souvenez(str(user.pk)) == "rate-limited"
        assert souvenez(user) == "rate-limited"


def test_souvenez__respects_a_changed_setting(user: User) -> None:
    souvenez(user)
    with override_settings(SOUVENIRS_RATELIMIT_SECONDS=0):
        assert souvenez(user) == "added"


def test_souvenez__limits_each_user_separately(user: User, traveller: Any) -> None:
    other = User.objects.create(username="grace")
    assert [souvenez(user), souvenez(other)] == ["added", "added"]


def test_souvenez__a_past_or_future_time_does_not_block_the_present(
    user: User, traveller: Any
) -> None:
    times = [NOON - 40 * HOUR, NOON + 30 * HOUR, None, NOON - 2 * HOUR, NOON - 41 * HOUR]
    assert [souvenez(user, when=when) for when in times] == ["added"] * 5
    assert [souvenez(user, when=when) for when in times] == ["rate-limited"] * 5


def test_souvenez__without_limit_records_each_time(user: User, traveller: Any) -> None:
    assert [souvenez(user, ratelimit=False) for _ in range(3)] == ["added"] * 3


def test_souvenez__with_an_explicit_limit(user: User, traveller: Any) -> None:
    results = []
    for _ in range(6):
        results.append(souvenez(user, ratelimit=120))
        traveller.shift(MINUTE)
    assert results == ["added", "rate-limited"] * 3


def test_souvenez__records_each_time_if_the_setting_is_0(user: User, traveller: Any) -> None:
    with override_settings(SOUVENIRS_RATELIMIT_SECONDS=0):
        assert [souvenez(user) for _ in range(3)] == ["added"] * 3


def test_souvenez__check_duplicate_does_not_write_a_time_again(user: User, traveller: Any) -> None:
    def record() -> str:
        return souvenez(user, when=NOON - HOUR, ratelimit=False, check_duplicate=True)

    assert [record(), record()] == ["added", "duplicated"]
    assert Souvenir.objects.count() == 1


def test_souvenez__keeps_microseconds(user: User) -> None:
    when = NOON + timedelta(microseconds=123456)
    souvenez(user, when=when)
    assert Souvenir.objects.get().when == site(when)


def test_souvenez__a_row_is_not_rounded_into_the_next_slot(user: User, traveller: Any) -> None:
    traveller.move_to((NOON + HOUR).timestamp() - 2e-7)
    souvenez(user)
    assert Souvenir.objects.get().when < site(NOON + HOUR)


# Cost


def test_souvenez__a_limited_call_is_free(
    user: User, django_assert_num_queries: Any, signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    with time_machine.travel(NOON, tick=False):
        souvenez(user)
        signals.clear()
        monkeypatch.setattr(throttle, "_cache", lambda: pytest.fail("read the cache"))
        with django_assert_num_queries(0, connection=ours()):
            assert souvenez(user) == "rate-limited"
    assert signals == []


def test_souvenez__a_new_slot_costs_one_transaction_of_two_writes(
    user: User, django_assert_num_queries: Any, traveller: Any
) -> None:
    souvenez(user)
    traveller.shift(HOUR)
    with django_assert_num_queries(4, connection=ours()):  # BEGIN, INSERT, UPDATE, COMMIT
        assert souvenez(user) == "added"


def test_souvenez__a_new_minute_costs_one_update(
    user: User, django_assert_num_queries: Any, traveller: Any
) -> None:
    souvenez(user)
    traveller.shift(MINUTE)
    with django_assert_num_queries(1, connection=ours()):
        assert souvenez(user) == "rate-limited"


# Transactions


def roll_back(user: User) -> None:
    with contextlib.suppress(ZeroDivisionError), transaction.atomic(using=ours().alias):
        assert souvenez(user) == "added"
        raise ZeroDivisionError


def test_souvenez__after_a_rollback_the_user_is_recorded_at_once(user: User) -> None:
    roll_back(user)
    assert souvenez(user) == "added"
    assert Souvenir.objects.count() == 1


def test_souvenez__after_a_rollback_transactions_record_the_user_within_a_minute(
    user: User, traveller: Any
) -> None:
    roll_back(user)
    results = []
    for _ in range(7):
        with transaction.atomic(using=ours().alias):
            results.append(souvenez(user))
        traveller.shift(timedelta(seconds=10))
    assert results == ["rate-limited"] * 6 + ["added"]
    assert Souvenir.objects.count() == 1


def test_souvenez__within_a_transaction_updates_last_seen_on_commit(
    user: User, traveller: Any
) -> None:
    with transaction.atomic(using=ours().alias):
        souvenez(user)
        assert Souvenir.objects.exists()
        assert not LastSeen.objects.exists()
    assert last_seen(user) == site(NOON)
    assert souvenez(user) == "rate-limited"


def test_souvenez__next_visit_writes_last_seen_if_it_failed_on_commit(
    user: User, traveller: Any
) -> None:
    def refuse(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        if "souvenirs_lastseen" in sql:
            raise DatabaseError("disk full")
        return execute(sql, *args)

    with ours().execute_wrapper(refuse), transaction.atomic(using=ours().alias):
        souvenez(user)
    assert last_seen(user) is None
    souvenez(user)
    assert last_seen(user) == site(NOON)


def test_souvenez__rolling_back_a_savepoint_removes_the_row(user: User, traveller: Any) -> None:
    with (
        transaction.atomic(using=ours().alias),
        contextlib.suppress(ZeroDivisionError),
        transaction.atomic(using=ours().alias),
    ):
        souvenez(user)
        raise ZeroDivisionError
    assert not Souvenir.objects.exists()
    traveller.shift(MINUTE)
    assert souvenez(user) == "added"


def test_souvenez__works_with_autocommit_off(user: User, traveller: Any) -> None:
    transaction.set_autocommit(False, using=ours().alias)
    try:
        assert souvenez(user) == "added"
        transaction.commit(using=ours().alias)
        assert souvenez(user) == "rate-limited"
        transaction.commit(using=ours().alias)
    finally:
        transaction.set_autocommit(True, using=ours().alias)
    assert Souvenir.objects.count() == 1
    assert last_seen(user) == site(NOON)


# With autocommit off, Python's sqlite3 commits together with the savepoint that our block is
@pytest.mark.where(ours().vendor != "sqlite")
def test_souvenez__after_a_rollback_with_autocommit_off_the_user_is_recorded_again(
    user: User, traveller: Any
) -> None:
    transaction.set_autocommit(False, using=ours().alias)
    try:
        souvenez(user)
        transaction.rollback(using=ours().alias)
        traveller.shift(MINUTE)
        assert souvenez(user) == "added"
        transaction.commit(using=ours().alias)
    finally:
        transaction.set_autocommit(True, using=ours().alias)
    assert Souvenir.objects.count() == 1


def test_souvenez__a_failed_write_does_not_block_the_user(user: User, traveller: Any) -> None:
    def refuse(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        if sql.startswith("INSERT"):
            raise DatabaseError("disk full")
        return execute(sql, *args)

    with ours().execute_wrapper(refuse), pytest.raises(DatabaseError, match="disk full"):
        souvenez(user)
    assert souvenez(user) == "added"


# Errors


@pytest.mark.parametrize("is_nested", [False, True])
def test_souvenez__a_missing_key_is_an_error_that_names_it(user: User, is_nested: bool) -> None:
    def fails() -> None:
        with pytest.raises(User.DoesNotExist, match=re.escape(f"primary key {NOBODY!r}")):
            souvenez(NOBODY)

    if is_nested:
        with transaction.atomic(using=ours().alias):
            fails()
            assert souvenez(user) == "added"  # the transaction is still usable
    else:
        fails()
    assert Souvenir.objects.count() == is_nested


def test_souvenez__a_user_deleted_within_the_slot_leaves_nothing_behind(
    user: User, traveller: Any
) -> None:
    key = user.pk
    souvenez(key)
    user.delete()
    traveller.shift(MINUTE)
    with pytest.raises(User.DoesNotExist, match=re.escape(repr(key))):
        souvenez(key)
    assert not LastSeen.objects.exists()
    assert not Souvenir.objects.exists()


def test_souvenez__a_new_minute_costs_one_update_if_another_process_was_first(
    user: User, django_assert_num_queries: Any, traveller: Any
) -> None:
    souvenez(user)
    traveller.shift(MINUTE)
    LastSeen.objects.update(seen=site(NOON + MINUTE))
    with django_assert_num_queries(1, connection=ours()):
        assert souvenez(user) == "rate-limited"


@pytest.mark.parametrize("nobody", [None, AnonymousUser()])
def test_souvenez__a_user_without_a_key_is_an_error(nobody: Any) -> None:
    with pytest.raises(ValueError, match="primary key"):
        souvenez(nobody)


@pytest.mark.where("string" not in settings.SHAPE)
def test_souvenez__a_value_that_cannot_be_a_key_is_an_error() -> None:
    with pytest.raises(ValueError, match="'ada' is neither a user nor a user's primary key"):
        souvenez("ada")


def test_souvenez__an_unsaved_user_is_an_error() -> None:
    with pytest.raises((ValueError, User.DoesNotExist), match="primary key"):
        souvenez(User(username="new"))


@pytest.mark.parametrize(
    "key",
    [True, 1.0, Decimal(1), b"1", bytearray(b"1"), 1j, float("nan"), float("inf"), Decimal("inf")],
)
@pytest.mark.parametrize("is_remembered", [True, False])
def test_souvenez__a_key_of_the_wrong_type_is_an_error(key: Any, is_remembered: bool) -> None:
    """Also if process memory has a user whose key is equal to this value."""
    user = User(pk=1 if isinstance(NOBODY, int) else NOBODY, username="ada")
    user.save()
    if is_remembered:
        souvenez(user)
    for function in (souvenez, last_seen, lambda key: run(asouvenez(key))):
        with pytest.raises(
            TypeError, match=f"^{re.escape(repr(key))} is neither a user nor a user's"
        ):
            function(key)
    assert Souvenir.objects.count() == is_remembered


@pytest.mark.parametrize(
    "key", [10**30, -(10**30), 2**40, "1" * 30, "a\0b", "\ud800", {}, object()]
)
@pytest.mark.parametrize("is_nested", [True, False])
def test_souvenez__a_key_that_no_database_accepts(user: User, key: Any, is_nested: bool) -> None:
    def fails() -> None:
        with pytest.raises((TypeError, ValueError, User.DoesNotExist), match="primary key"):
            souvenez(key)

    if is_nested:
        with transaction.atomic(using=ours().alias):
            fails()
            assert souvenez(user) == "added"
    else:
        fails()
        with suppress(TypeError, ValueError):
            assert last_seen(key) is None


LIMITS = [
    datetime.min,
    datetime.max,
    datetime.min.replace(tzinfo=timezone.utc),
    datetime.max.replace(tzinfo=timezone.utc),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))),
]


@pytest.mark.parametrize("when", [*LIMITS, datetime(1899, 12, 31), datetime(9999, 1, 2)])
def test_souvenez__a_time_out_of_range(user: User, when: datetime) -> None:
    for ratelimit in (True, False):
        with pytest.raises(ValueError, match=r"is not in the years 1900 to 9998$"):
            souvenez(user, when=when, ratelimit=ratelimit)
    with pytest.raises(ValueError, match="1900 to 9998"):
        Souvenir.objects.create(user_id=user.pk, when=when)
    with pytest.raises(ValueError, match="1900 to 9998"):
        Souvenir.objects.bulk_create([Souvenir(user_id=user.pk, when=when)])
    assert not Souvenir.objects.exists()
    assert souvenez(user) == "added"


@pytest.mark.parametrize("when", LIMITS)
def test_count_active_users__bounds_at_the_limits_do_not_limit(user: User, when: datetime) -> None:
    souvenez(user, when=NOON)
    is_early = when.year == 1
    for count in (
        count_active_users,
        lambda *bounds: active_users_between(*bounds).count(),
        lambda *bounds: count_active_users(*bounds, Souvenir.objects.all()),
    ):
        assert count(when, None) == is_early
        assert count(None, when) == (not is_early)
        assert count(when, when) == 0
    assert count_active_users(datetime.min, datetime.max) == 1


@pytest.mark.parametrize("limit", [1e-300, 5e-324, 1e308, 10**300])
def test_souvenez__with_a_limit_of_any_length(user: User, traveller: Any, limit: float) -> None:
    assert souvenez(user, ratelimit=limit) == "added"
    assert Souvenir.objects.count() == 1


@pytest.mark.parametrize("limit", [-1, float("inf"), float("nan"), 10**400])
def test_souvenez__an_impossible_limit_is_an_error(user: User, limit: float) -> None:
    with pytest.raises(ValueError, match=f"^ratelimit must be .*, not {limit}$"):
        souvenez(user, ratelimit=limit)


@pytest.mark.parametrize("when", [date(2024, 5, 14), "2024-05-14", 1715688000])
def test_souvenez__a_time_must_be_a_datetime(user: User, when: Any) -> None:
    with pytest.raises(TypeError, match="expected a datetime"):
        souvenez(user, when=when)
    assert souvenez(user) == "added"


# Signals


def test_signal__is_sent_for_each_result(user: User, traveller: Any, signals: Signals) -> None:
    souvenez(user)
    souvenez(user, when=NOON, ratelimit=False, check_duplicate=True)
    traveller.shift(MINUTE)
    souvenez(user)
    assert signals == [
        {"result": result, "user_pk": user.pk, "count": 1}
        for result in ["added", "duplicated", "rate-limited"]
    ]


def test_signal__is_sent_for_several_free_calls_together(
    user: User, traveller: Any, signals: Signals
) -> None:
    for _ in range(5):
        souvenez(user)
    assert len(signals) == 1
    flush_hits()
    flush_hits()
    assert signals[1:] == [{"result": "rate-limited", "user_pk": None, "count": 4}]


def test_signal__a_receiver_that_raises_does_no_harm(user: User) -> None:
    def explode(**kwargs: Any) -> None:
        raise ZeroDivisionError

    souvenir_recorded.connect(explode)
    try:
        assert souvenez(user) == "added"
    finally:
        souvenir_recorded.disconnect(explode)


# Deleted users


def test_deleted_user__is_gone_from_both_tables(user: User) -> None:
    other = User.objects.create(username="grace")
    souvenez(user)
    souvenez(other)
    user.delete()
    assert Souvenir.objects.get().user_id == other.pk
    assert LastSeen.objects.get().user_id == other.pk


@pytest.mark.where("routed" in settings.SHAPE)
def test_deleted_user__stays_in_another_database_after_a_rollback(user: User) -> None:
    souvenez(user)
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        user.delete()
        raise ZeroDivisionError
    assert Souvenir.objects.count() == LastSeen.objects.count() == 1


@pytest.mark.usefixtures("traveller")
def test_forget__resets_process_memory(user: User) -> None:
    souvenez(user)
    Souvenir.objects.all().delete()
    assert souvenez(user) == "rate-limited"
    forget()
    assert souvenez(user) == "added"


# Queries


def test_last_seen__is_none_for_a_user_never_seen(user: User) -> None:
    assert last_seen(user) is None


def test_last_seen__is_updated_every_minute(user: User, traveller: Any) -> None:
    souvenez(user)
    traveller.shift(timedelta(minutes=17, seconds=5))
    souvenez(user)
    assert last_seen(user) == site(NOON + timedelta(minutes=17, seconds=5))
    assert last_seen(user.pk) == last_seen(user)


def test_last_seen__is_local_and_naive_without_time_zones(user: User, traveller: Any) -> None:
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Kolkata"):
        souvenez(user)
        assert last_seen(user) == datetime(2024, 5, 14, 17, 30)


def test_count_active_users__includes_start_and_excludes_end(user: User) -> None:
    souvenez(user, when=NOON)
    assert count_active_users(NOON, NOON + HOUR) == 1
    assert count_active_users(NOON - HOUR, NOON) == 0
    assert count_active_users(end=NOON) == 0
    assert count_active_users(start=NOON) == 1


def test_count_active_users__counts_users_not_rows(user: User) -> None:
    other = User.objects.create(username="grace")
    for hours in range(3):
        souvenez(user, when=NOON - hours * HOUR)
    souvenez(other, when=NOON)
    assert count_active_users() == 2


def test_count_active_users__of_a_queryset(user: User) -> None:
    other = User.objects.create(username="grace")
    souvenez(user, when=NOON)
    souvenez(other, when=NOON)
    assert count_active_users(qs=Souvenir.objects.filter(user_id=other.pk)) == 1


def test_count_active_users__of_all_time(user: User) -> None:
    souvenez(user)
    assert count_active_users(datetime.min, datetime.max) == 1


def test_count_active_users__a_naive_bound_is_in_the_sites_zone(user: User) -> None:
    souvenez(user, when=datetime(2024, 5, 14, 0, 30))  # Paris
    assert count_active_users(datetime(2024, 5, 14), datetime(2024, 5, 15)) == 1
    assert Souvenir.objects.get().when == site(datetime(2024, 5, 13, 22, 30, tzinfo=timezone.utc))


def test_count_active_users__a_bound_must_be_a_datetime() -> None:
    with pytest.raises(TypeError, match="expected a datetime"):
        count_active_users(date(2024, 5, 14))  # type: ignore[arg-type]


@pytest.mark.where("routed" not in settings.SHAPE)
def test_with_last_seen__costs_no_query_per_user(
    user: User, traveller: Any, django_assert_num_queries: Any
) -> None:
    User.objects.create(username="grace")
    souvenez(user)
    with django_assert_num_queries(1):
        rows = [
            (row.username, row.last_seen)
            for row in with_last_seen(User.objects.order_by("username"))
        ]
    assert rows == [("ada", site(NOON)), ("grace", None)]


@pytest.mark.where("routed" not in settings.SHAPE)
def test_with_last_seen__can_be_filtered_and_ordered_by(user: User, traveller: Any) -> None:
    other = User.objects.create(username="grace")
    souvenez(user)
    traveller.shift(MINUTE)
    souvenez(other)
    users = with_last_seen(User.objects.all(), name="seen")
    assert users.filter(seen__gt=site(NOON)).get() == other
    assert [row.username for row in users.order_by("-seen")] == ["grace", "ada"]


@pytest.mark.where("routed" in settings.SHAPE)
def test_with_last_seen__of_users_in_another_database_is_an_error() -> None:
    with pytest.raises(ValueError, match="database 'history'"):
        with_last_seen(User.objects.all())


@pytest.mark.usefixtures("traveller")
def test_asouvenez__is_souvenez(user: User) -> None:
    async def visits() -> list[str]:
        earlier = NOON - timedelta(days=1)
        return [await asouvenez(user), await asouvenez(user), await asouvenez(user, when=earlier)]

    assert run(visits()) == ["added", "rate-limited", "added"]


def test_asouvenez__a_limited_call_needs_no_thread(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    with time_machine.travel(NOON, tick=False):
        souvenez(user)
        monkeypatch.setattr(control, "sync_to_async", lambda _: pytest.fail("used a thread"))
        assert asyncio.run(asouvenez(user)) == "rate-limited"
