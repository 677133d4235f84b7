"""If tables were emptied and ids begin with 1 again, the ids in bitmaps belong to no new user."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections, router

from souvenirs.control import active_users_between, souvenez
from souvenirs.history import counting, maintenance, repair, rollups
from souvenirs.models import (
    AccountTotals,
    DeletedMember,
    DirtyBucket,
    LastSeen,
    Rollup,
    Souvenir,
    Watermark,
)
from souvenirs.periods import Interval
from tests.history import DAY, HOUR, at, people, record, rivalry, roll_up, to_when, unix
from tests.people import User, ours, with_databases
from tests.test_repair import insert

pytestmark = with_databases

T = unix(2024, 5, 2, 10)
NOW = T + 40 * DAY + HOUR
PAST, PRESENT = Interval(T - DAY, T + 3 * DAY), Interval(NOW - HOUR, NOW + HOUR)

OURS = (Souvenir, LastSeen, DirtyBucket, DeletedMember, Watermark, AccountTotals)
WAYS: dict[str, tuple[Any, ...]] = {
    "last seen": (LastSeen,),
    "all except rollups": OURS,
    "users and rows that refer to them": (User, Souvenir, LastSeen),
}


def truncate(models: Iterable[Any]) -> None:
    """Empty these tables and reset their sequences."""
    for model in models:
        connection = connections[router.db_for_write(model)]
        table = connection.ops.quote_name(model._meta.db_table)
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute(f"TRUNCATE {table} RESTART IDENTITY CASCADE")
            elif connection.vendor == "mysql":
                cursor.execute("SET FOREIGN_KEY_CHECKS = 0")
                cursor.execute(f"TRUNCATE {table}")
                cursor.execute("SET FOREIGN_KEY_CHECKS = 1")
            else:
                cursor.execute("PRAGMA foreign_keys = OFF")
                cursor.execute(f"DELETE FROM {table}")
                cursor.execute(
                    "DELETE FROM sqlite_sequence WHERE name = %s", [model._meta.db_table]
                )
                cursor.execute("PRAGMA foreign_keys = ON")


def held() -> set[int]:
    """The ids in the history."""
    known = {mark.member for mark in DeletedMember.objects.all()}
    for _, members in rollups.iter_members(
        Rollup.objects.values_list("pk", flat=True), ours().alias
    ):
        known |= set(members)
    return known


def visit(users: list[Any]) -> None:
    for user in users:
        souvenez(user)


def bulk(users: list[Any]) -> None:
    record_all = [Souvenir(user_id=user.pk, when=to_when(NOW)) for user in users]
    Souvenir.objects.bulk_create(record_all)


def by_sql(users: list[Any]) -> None:
    for user in users:
        insert(user, NOW - HOUR)


def by_sql_and_repair(users: list[Any]) -> None:
    by_sql(users)
    repair.repair()


HOWS = [visit, bulk, by_sql, by_sql_and_repair]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("way", WAYS)
def test_newcomers__get_no_id_that_the_history_has(
    way: str, how: Callable[[list[Any]], None]
) -> None:
    old = people(5)
    for number, user in enumerate(old):
        record(user, T + number * HOUR)
    roll_up(T + 35 * DAY)
    known = held()
    assert len(known) == 5
    truncate(WAYS[way])
    User.objects.all().delete()
    newcomers = [User.objects.create(username=f"new{number}") for number in range(3)]
    with at(NOW):
        how(newcomers)
    roll_up(NOW + 3 * HOUR)
    ids = set(LastSeen.objects.values_list("pk", flat=True))
    assert len(ids) == 3
    assert not ids & known
    assert max(ids) <= max(known) + 3  # and they are as dense as before
    assert not active_users_between(to_when(PAST.start), to_when(PAST.end)).exists()
    both = Interval(PAST.start, PRESENT.end)
    assert counting.count_users_of_ranges([PAST, PRESENT, both]) == [5, 3, 8]


def test_newcomers__get_no_id_deleted_before_a_roll_up() -> None:
    old = people(3)
    for user in old:
        record(user, T)
    User.objects.all().delete()
    known = held()
    assert len(known) == 3
    truncate([LastSeen])
    newcomers = people(2)
    with at(NOW):
        visit(newcomers)
        maintenance.roll_up()
    assert not set(LastSeen.objects.values_list("pk", flat=True)) & known
    both = Interval(PAST.start, PRESENT.end)
    assert counting.count_users_of_ranges([PAST, both]) == [3, 5]


def test_newcomers__without_a_history_begin_with_one() -> None:
    (user,) = people(1)
    record(user, T)
    roll_up(T + DAY)
    truncate([Rollup, *OURS])
    visit([user])
    assert LastSeen.objects.get().pk == 1


def test_visit__of_a_known_user_queries_no_ids() -> None:
    (user,) = people(1)
    with at(NOW):
        souvenez(user)
    with at(NOW + HOUR + 60), ours().execute_wrapper(no_ids):
        assert souvenez(user) == "added"


def no_ids(execute: Any, sql: str, *args: Any) -> Any:
    assert "MAX(" not in sql
    return execute(sql, *args)


def empty(last: Any) -> None:
    truncate([LastSeen])


def delete(last: Any) -> None:
    last.delete()


@pytest.mark.where("routed" not in settings.SHAPE)
@pytest.mark.parametrize("moment", range(12))
@pytest.mark.parametrize("lose", [empty, delete])
def test_newcomers__at_once_each_get_an_id(
    tmp_path: Path, moment: int, lose: Callable[[Any], None]
) -> None:
    for user in people(5):
        record(user, T)
    roll_up(T + DAY)
    known = held()
    one, two = (User.objects.create(username=name) for name in ("one", "two"))
    lose(user)
    with rivalry(tmp_path) as rival, at(NOW):
        try:
            rival.interrupt(lambda: record(one, NOW), moment, lambda: record(two, NOW))
        except StopIteration:
            return
        found = dict(LastSeen.objects.values_list("user_id", "pk"))
    assert {one.pk, two.pk} <= set(found)
    assert not {found[one.pk], found[two.pk]} & known
