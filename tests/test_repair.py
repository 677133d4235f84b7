"""Rows that were changed without the ORM's save: after a repair, the history agrees with them
again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core import serializers
from django.core.management import call_command
from django.test import override_settings

from souvenirs import timestamps
from souvenirs.conf import conf
from souvenirs.control import last_seen
from souvenirs.history import counting, progress, pruning, repair
from souvenirs.models import DirtyBucket, LastSeen, Rollup, Souvenir, Watermark
from souvenirs.periods import BUCKET, Interval, calendar_period
from tests.history import (
    DAY,
    HOUR,
    assert_counts,
    at,
    people,
    record,
    roll_up,
    to_when,
    unix,
)
from tests.people import User, ours, with_databases

pytestmark = with_databases

T = unix(2024, 4, 29, 22)  # Paris: midnight of the 30th
NOW = T + 5 * DAY + HOUR
FACTS = [(who, T + who * 7 * HOUR + n * 30 * HOUR) for who in range(3) for n in range(3)]
DAYS = [Interval(T + n * DAY, T + (n + 1) * DAY) for n in range(5)]


@pytest.fixture
def users() -> list[Any]:
    users = people(4)
    for who, t in FACTS:
        record(users[who], t)
    roll_up(NOW)
    return users


def insert(user: Any, t: float) -> None:
    """Insert by SQL, which sends no signal."""
    field: Any = Souvenir._meta.get_field("user")
    key = field.get_db_prep_save(user.pk, ours())
    when = ours().ops.adapt_datetimefield_value(to_when(t))
    name = ours().ops.quote_name("when")
    with ours().cursor() as cursor:
        cursor.execute(
            f"INSERT INTO souvenirs_souvenir (user_id, {name}) VALUES (%s, %s)", [key, when]
        )


def run_repair() -> None:
    with at(NOW):
        repair.repair()


def test_repair__counts_rows_that_were_inserted_by_sql(users: list[Any]) -> None:
    extra = [(3, T + 5), (3, T - 3 * DAY), (0, T + 2 * DAY)]
    for who, t in extra:
        insert(users[who], t)
    assert counting.count_users_of_ranges([DAYS[0]]) == [3]  # not counted yet
    run_repair()
    assert_counts([*FACTS, *extra], DAYS)
    seen = last_seen(users[3])
    assert seen is not None
    assert timestamps.to_seconds(seen) == T + 5


def test_repair__counts_rows_at_their_new_times(users: list[Any]) -> None:
    rows = Souvenir.objects.filter(user_id=users[0].pk, when=to_when(T))
    assert rows.update(when=to_when(T + 4 * DAY)) == 1
    run_repair()
    facts = [fact for fact in FACTS if fact != (0, T)]
    assert_counts([*facts, (0, T + 4 * DAY)], DAYS)


def test_repair__removes_deleted_rows_from_the_history(users: list[Any]) -> None:
    Souvenir.objects.filter(when__gte=to_when(T + DAY)).delete()
    run_repair()
    assert_counts([(who, t) for who, t in FACTS if t < T + DAY], DAYS)
    assert not Rollup.objects.filter(kind=Rollup.BUCKET, start__gte=T + DAY).exists()


def test_repair__counts_rows_of_loaddata(users: list[Any], tmp_path: Path) -> None:
    row = Souvenir.objects.create(user_id=users[3].pk, when=to_when(T + 40 * HOUR))
    fixture = tmp_path / "rows.json"
    fixture.write_text(serializers.serialize("json", [row]))
    row.delete()
    DirtyBucket.objects.all().delete()
    LastSeen.objects.filter(user_id=users[3].pk).delete()
    call_command("loaddata", fixture, verbosity=0, database=ours().alias)
    DirtyBucket.objects.all().delete()
    run_repair()
    assert_counts([*FACTS, (3, T + 40 * HOUR)], DAYS)
    assert last_seen(users[3]) == to_when(T + 40 * HOUR)


def test_repair__creates_days_of_the_new_time_zone(users: list[Any]) -> None:
    with override_settings(TIME_ZONE="Pacific/Auckland"):
        facts = FACTS
        if not settings.USE_TZ:  # the same local times are other instants
            facts = known_facts(users)
        run_repair()
        zone = conf.zone
        days = [calendar_period("day", T + n * DAY, zone) for n in range(5)]
        assert_counts(facts, [*days, *DAYS])
        kept = {(r.start, r.end) for r in Rollup.objects.filter(kind=Rollup.DAY)}
        active = {tuple(day) for day in days if any(day.start <= t < day.end for _, t in facts)}
        assert active
        assert kept == {day for day in active if day[1] <= progress.due_until(NOW)}


def known_facts(users: list[Any]) -> list[tuple[int, float]]:
    numbers = {user.pk: who for who, user in enumerate(users)}
    rows = Souvenir.objects.all()
    return [(numbers[row.user_id], timestamps.to_seconds(row.when)) for row in rows]


@pytest.mark.where(settings.USE_TZ)
def test_repair__in_the_middle_of_a_month_drops_days_of_the_old_time_zones_month(
    users: list[Any],
) -> None:
    now = unix(2024, 4, 30, 20)  # April is over in Auckland, but not in Honolulu
    with override_settings(TIME_ZONE="Pacific/Auckland"):
        Rollup.objects.all().delete()
        Watermark.objects.all().delete()
        record(users[3], T - 3 * DAY)
        roll_up(now)
        month = calendar_period("month", T - 3 * DAY, conf.zone)
        assert Rollup.objects.filter(kind=Rollup.MONTH, end=month.end).exists()
    Souvenir.objects.filter(user_id=users[3].pk).delete()
    with override_settings(TIME_ZONE="Pacific/Honolulu"), at(now):
        repair.repair()
        assert counting.count_users_of_ranges([month]) == [
            len({who for who, t in FACTS if t < month.end})
        ]


def test_repair__keeps_pruned_history_and_deleted_users(users: list[Any]) -> None:
    with at(NOW):
        pruning.prune(3 * DAY)
        users[1].delete()
    assert 0 < Souvenir.objects.count() < len(FACTS)
    run_repair()
    assert_counts(FACTS, DAYS)
    run_repair()
    assert_counts(FACTS, DAYS)


def test_repair__creates_last_seen_rows(users: list[Any]) -> None:
    expected = {row.user_id: row.seen for row in LastSeen.objects.all()}
    LastSeen.objects.filter(user_id=users[0].pk).delete()
    LastSeen.objects.filter(user_id=users[1].pk).update(seen=to_when(T - DAY))
    LastSeen.objects.filter(user_id=users[2].pk).update(seen=None)
    run_repair()
    assert {row.user_id: row.seen for row in LastSeen.objects.all()} == expected


def test_repair__creates_last_seen_rows_of_many_users(
    users: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "BATCH_SIZE", 2)
    LastSeen.objects.all().delete()
    run_repair()
    assert LastSeen.objects.count() == 3


def test_repair__changes_nothing_if_everything_is_right(users: list[Any]) -> None:
    def state() -> list[Any]:
        fields = ("kind", "start", "end", "active_users")
        return sorted(Rollup.objects.values_list(*fields))

    before = state()
    steps: list[Interval] = []
    with at(NOW):
        repair.repair(steps.append)
    assert state() == before
    assert steps == [*DAYS, Interval(T + 5 * DAY, T + 6 * DAY)]


def test_repair__without_a_history_does_nothing() -> None:
    run_repair()
    record(User.objects.create(username="ada"), T)
    run_repair()
    assert not Rollup.objects.exists()
    assert_counts([("ada", T)], [Interval(T, T + BUCKET)])
