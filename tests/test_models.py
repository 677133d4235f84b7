from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from django.db.models import F

from souvenirs import timestamps
from souvenirs.lastseen import table
from souvenirs.lastseen.base import LastSeenUpdate
from souvenirs.models import LastSeen, Souvenir
from tests.people import User, column, ours, site, with_databases

pytestmark = with_databases

T = 1_700_000_040  # the beginning of a minute


@pytest.fixture
def user() -> Any:
    return User.objects.create(username="ana")


def touch(user: Any, seen: int | None, latest: int | None = None, seconds: int = 60) -> None:
    start = 0 if seen is None else seen // seconds * seconds
    table.touch(LastSeenUpdate(user_pk=user.pk, seen=seen, slot_start=start, latest=latest))


def seen_of(user: Any) -> float | None:
    seen = LastSeen.objects.get(user_id=user.pk).seen
    return None if seen is None else timestamps.to_seconds(seen)


# Ids


@pytest.mark.slow
def test_touch__ten_thousand_refreshes_use_up_no_id(user: Any) -> None:
    touch(user, T)
    for minute in range(1, 10_001):
        touch(user, T + 60 * minute)
    assert seen_of(user) == T + 600_000
    newcomer = User.objects.create(username="bob")
    touch(newcomer, T)
    first, second = LastSeen.objects.order_by("pk").values_list("pk", flat=True)
    assert second == first + 1


@pytest.mark.parametrize(
    "again",
    [
        lambda user: touch(user, T),
        lambda user: touch(user, T + 59),
        lambda user: touch(user, T - 3_600),
        lambda user: touch(user, None),
        lambda user: touch(user, T, latest=T + 60),
    ],
    ids=["same", "same slot", "earlier", "none", "live"],
)
def test_touch__without_a_change_uses_up_no_id(user: Any, again: Callable[[Any], None]) -> None:
    touch(user, T)
    for _ in range(10):
        again(user)
    newcomer = User.objects.create(username="bob")
    touch(newcomer, T)
    first, second = LastSeen.objects.order_by("pk").values_list("pk", flat=True)
    assert second == first + 1


# Times


def test_touch__creates_the_row(user: Any) -> None:
    touch(user, T + 5)
    assert seen_of(user) == T + 5


def test_touch__without_a_time_only_creates_the_row(user: Any) -> None:
    touch(user, None)
    assert seen_of(user) is None


def test_touch__without_a_time_keeps_the_time(user: Any) -> None:
    touch(user, T)
    touch(user, None)
    assert seen_of(user) == T


def test_touch__fills_in_the_time_of_a_row_without_one(user: Any) -> None:
    touch(user, None)
    touch(user, T)
    assert seen_of(user) == T


def test_touch__goes_forward_to_the_next_slot(user: Any) -> None:
    touch(user, T + 59)
    touch(user, T + 60)
    assert seen_of(user) == T + 60


def test_touch__in_the_same_slot_writes_nothing(user: Any) -> None:
    touch(user, T)
    touch(user, T + 59)
    assert seen_of(user) == T


@pytest.mark.parametrize("seconds", [1, 59, 60, 3_600, 10**9])
def test_touch__never_goes_back(user: Any, seconds: int) -> None:
    touch(user, T)
    touch(user, T - seconds)
    assert seen_of(user) == T


def test_touch__never_goes_back_for_a_live_visit_up_to_latest(user: Any) -> None:
    touch(user, T + 60)
    touch(user, T, latest=T + 60)
    assert seen_of(user) == T + 60


def test_touch__replaces_a_time_after_latest(user: Any) -> None:
    touch(user, T + 61)
    touch(user, T, latest=T + 60)
    assert seen_of(user) == T


def test_touch__keeps_a_future_time_without_latest(user: Any) -> None:
    touch(user, T + 86_400)
    touch(user, T)
    assert seen_of(user) == T + 86_400


def test_touch__does_not_change_other_users(user: Any) -> None:
    other = User.objects.create(username="bob")
    touch(other, T)
    touch(user, T + 600)
    assert seen_of(other) == T


def test_touch__refresh_is_one_query(user: Any, django_assert_num_queries: Any) -> None:
    touch(user, T)
    with django_assert_num_queries(1, connection=ours()):
        touch(user, T + 60)


def test_touch__after_another_process_created_the_row_meanwhile(
    user: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def require_late(user_pk: Any) -> None:
        LastSeen.objects.create(user_id=user_pk, seen=column(T))  # another process, just now

    with monkeypatch.context() as patch:
        patch.setattr(table, "require_user", require_late)
        touch(user, T + 60)
    assert LastSeen.objects.count() == 1
    assert seen_of(user) == T + 60


@pytest.mark.where(ours().vendor == "mysql")
def test_touch__reads_and_locks_only_its_row(user: Any) -> None:
    User.objects.bulk_create(User(username=f"u{number}") for number in range(50))
    LastSeen.objects.bulk_create(
        LastSeen(user_id=other.pk, seen=column(T + 600))
        for other in User.objects.exclude(pk=user.pk)
    )
    touch(user, T)
    updates = []

    def explain(execute: Any, sql: str, params: Any, *more: Any) -> Any:
        if sql.startswith("UPDATE"):
            with ours().cursor() as cursor:
                cursor.execute(f"EXPLAIN {sql}", params)
                names = [name for name, *_ in cursor.description]
                updates.append(dict(zip(names, cursor.fetchone())))
        return execute(sql, params, *more)

    with ours().execute_wrapper(explain):
        touch(user, T + 60)
        touch(user, T + 120, latest=T + 180)
    assert [plan["key"] for plan in updates] == ["user_id"] * 2


# Souvenir


def test_souvenir__is_ordered_by_time_with_the_newest_first(user: Any) -> None:
    days = [datetime(2024, 5, day, 12) for day in (2, 3, 1)]
    for when in days:
        Souvenir.objects.create(user_id=user.pk, when=site(when))
    found = Souvenir.objects.values_list("when", flat=True)
    assert list(found) == sorted(map(site, days), reverse=True)


def test_souvenir__time_defaults_to_now(user: Any) -> None:
    before = datetime.now(timezone.utc)
    row = Souvenir.objects.create(user_id=user.pk)
    assert site(before) <= row.when <= site(datetime.now(timezone.utc))


def test_between__start_is_inclusive_and_end_exclusive(user: Any) -> None:
    first, second, third = (site(datetime(2024, 5, day)) for day in (1, 2, 3))
    for when in (first, second, third):
        Souvenir.objects.create(user_id=user.pk, when=when)

    def found(*bounds: datetime | None) -> list[datetime]:
        rows = Souvenir.objects.between(*bounds).order_by("when")
        return list(rows.values_list("when", flat=True))

    assert found() == [first, second, third]
    assert found(second) == [second, third]
    assert found(None, second) == [first]
    assert found(first, third) == [first, second]
    assert found(second, second) == []


def test_count_users__counts_each_user_once(user: Any) -> None:
    other = User.objects.create(username="bob")
    for who in (user, user, other, user):
        Souvenir.objects.create(user_id=who.pk)
    assert Souvenir.objects.count_users() == 2
    assert Souvenir.objects.filter(user_id=user.pk).count_users() == 1
    assert Souvenir.objects.annotate(x=F("when")).order_by("x").count_users() == 2
    assert Souvenir.objects.none().count_users() == 0


def test_souvenir__str(user: Any) -> None:
    when = site(datetime(2024, 5, 1, 12))
    row = Souvenir(user_id=user.pk, when=when)
    assert str(row) == f"user={user.pk} when={when}"


def test_last_seen__str(user: Any) -> None:
    seen = site(datetime(2024, 5, 1, 12))
    assert str(LastSeen(user_id=user.pk, seen=seen)) == f"user={user.pk} seen={seen}"


# Rows made with the ORM


@pytest.mark.parametrize("how", ["create", "save", "bulk_create"])
def test_orm__updates_last_seen(how: str) -> None:
    user, other = User.objects.create(username="ada"), User.objects.create(username="grace")
    now = datetime.now(timezone.utc).replace(microsecond=0)
    times = [now - timedelta(hours=hours) for hours in (5, 2, 9)]
    if how == "bulk_create":
        Souvenir.objects.bulk_create(
            [Souvenir(user_id=u.pk, when=site(t)) for t in times for u in (user, other)]
        )
    for when in times:
        if how == "create":
            Souvenir.objects.create(user_id=user.pk, when=site(when))
        elif how == "save":
            Souvenir(user_id=user.pk, when=site(when)).save()
    assert seen_of(user) == times[1].timestamp()
    if how == "bulk_create":
        assert seen_of(other) == times[1].timestamp()


def test_orm__a_future_time_only_creates_the_row() -> None:
    user = User.objects.create(username="ada")
    Souvenir.objects.create(
        user_id=user.pk, when=site(datetime.now(timezone.utc) + timedelta(days=1))
    )
    assert LastSeen.objects.get().seen is None


def test_orm__bulk_create_takes_few_queries(django_assert_max_num_queries: Any) -> None:
    users = [User(username=f"user {number}") for number in range(500)]
    User.objects.bulk_create(users)
    keys = list(User.objects.values_list("pk", flat=True))
    when = site(datetime.now(timezone.utc))
    for _ in range(2):
        with django_assert_max_num_queries(26, connection=ours()):
            Souvenir.objects.bulk_create([Souvenir(user_id=key, when=when) for key in keys])
    assert LastSeen.objects.exclude(seen=None).count() == 500
