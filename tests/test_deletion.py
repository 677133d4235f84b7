"""Deleted users: their rows go, closed periods keep their numbers, and nothing tells who it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
from django.db import connections, models, transaction
from django.test.utils import CaptureQueriesContext, isolate_apps

from souvenirs.control import active_users_between, last_seen, souvenez
from souvenirs.history import counting, deletion, maintenance, pruning, repair, rollups
from souvenirs.models import DeletedMember, LastSeen, Rollup, Souvenir
from souvenirs.periods import BUCKET, Interval
from souvenirs_metrics.collector import SouvenirsCollector
from tests import settings as site_settings
from tests.history import DAY, HOUR, assert_counts, at, people, record, roll_up, unix
from tests.people import User, ours, with_databases

pytestmark = with_databases

T = unix(2024, 5, 14, 22)  # Paris: midnight of the 15th
TIMES = [T + 5, T + BUCKET + 5, T + DAY + 5]
NOW = T + 2 * DAY + HOUR
FACTS = [(who, t + who) for who in range(3) for t in TIMES]
DAYS = [Interval(T, T + DAY), Interval(T + DAY, T + 2 * DAY), Interval(T, T + 2 * DAY)]


@pytest.fixture
def users() -> list[Any]:
    users = people(3)
    for who, t in FACTS:
        with at(t):
            souvenez(users[who], ratelimit=False)
    return users


@pytest.fixture(params=["none", "half", "all"])
def is_rolled_up(request: pytest.FixtureRequest, users: list[Any]) -> None:
    """How much of the history is, before somebody is deleted."""
    if request.param != "none":
        roll_up(NOW if request.param == "all" else T + DAY)


def delete_one(users: list[Any]) -> None:
    users[0].delete()


def delete_by_queryset(users: list[Any]) -> None:
    User.objects.filter(pk__in=[user.pk for user in users[:2]]).delete()


def delete_in_a_transaction(users: list[Any]) -> None:
    with transaction.atomic():
        users[0].delete()
        users[1].delete()


def delete_everybody(users: list[Any]) -> None:
    User.objects.all().delete()


@pytest.mark.usefixtures("is_rolled_up")
@pytest.mark.parametrize(
    "delete", [delete_one, delete_by_queryset, delete_in_a_transaction, delete_everybody]
)
def test_delete__closed_periods_keep_their_numbers(
    users: list[Any], delete: Callable[[list[Any]], None]
) -> None:
    with at(NOW):
        delete(users)
        left = set(User.objects.values_list("pk", flat=True))
        assert set(Souvenir.objects.values_list("user_id", flat=True)) == left
        assert set(LastSeen.objects.values_list("user_id", flat=True)) == left
        assert_counts(FACTS, DAYS)
        maintenance.roll_up()
        assert_counts(FACTS, DAYS)
        repair.repair()
        assert_counts(FACTS, DAYS)
        pruning.prune(0)
        assert_counts(FACTS, DAYS)
        assert set(active_users_between()) == set(User.objects.all())


@pytest.mark.usefixtures("is_rolled_up")
def test_delete__that_is_rolled_back_changes_nothing(users: list[Any]) -> None:
    class RollBackError(Exception):
        pass

    marks = DeletedMember.objects.count()
    with at(NOW), suppress(RollBackError), transaction.atomic():
        users[0].delete()
        raise RollBackError
    with at(NOW):
        assert_counts(FACTS, DAYS)
        assert DeletedMember.objects.count() == marks
        assert Souvenir.objects.count() == len(FACTS)
        assert LastSeen.objects.count() == 3
        maintenance.roll_up()
        assert_counts(FACTS, DAYS)


def test_delete__of_a_proxy_model_keeps_the_numbers(
    users: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with isolate_apps("tests.users") as registry:

        class Person(User):  # type: ignore[misc]
            class Meta:
                proxy = True
                app_label = "users"

        monkeypatch.setattr(deletion, "apps", registry)
        deletion.connect()
        try:
            with at(NOW):
                Person.objects.get(pk=users[0].pk).delete()
                assert_counts(FACTS, DAYS)
                assert not LastSeen.objects.filter(user_id=users[0].pk).exists()
        finally:
            for signal in (models.signals.pre_delete, models.signals.post_delete):
                signal.disconnect(sender=Person, dispatch_uid="souvenirs.deletion")


def test_connect__listens_to_the_user_model_and_its_proxies_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Registry:
        @staticmethod
        def get_models() -> list[Any]:
            return [User, Souvenir, LastSeen]

    listened: list[Any] = []
    for signal in (models.signals.pre_delete, models.signals.post_delete):
        monkeypatch.setattr(
            signal, "connect", lambda receiver, sender, dispatch_uid: listened.append(sender)
        )
    monkeypatch.setattr(deletion, "apps", Registry)
    deletion.connect()
    assert set(listened) == {User}


def test_delete__of_who_has_no_last_seen_row_keeps_the_numbers(users: list[Any]) -> None:
    LastSeen.objects.all().delete()
    with at(NOW):
        users[0].delete()
        assert not LastSeen.objects.filter(user_id=users[0].pk).exists()
        assert_counts(FACTS, DAYS)
        maintenance.roll_up()
        assert_counts(FACTS, DAYS)


def gauges(t: float) -> dict[tuple[str, str], float]:
    with at(t):
        return {
            (sample.name, "".join(sample.labels.values())): sample.value
            for family in SouvenirsCollector().collect()
            for sample in family.samples
        }


def test_delete__windows_and_periods_to_date_drop_them_and_previous_periods_do_not(
    users: list[Any],
) -> None:
    now = T + DAY + HOUR
    record(users[2], T - 40 * DAY)  # so that there was a history before the week
    roll_up(now)
    before = gauges(now)
    assert before["souvenirs_active_users", "7d"] == 3
    assert before["souvenirs_calendar_active_users", "week"] == 3
    assert before["souvenirs_previous_calendar_active_users", "day"] == 3
    with at(now):
        users[0].delete()
    after = gauges(now)
    assert after["souvenirs_active_users", "7d"] == 2
    assert after["souvenirs_calendar_active_users", "week"] == 2
    assert after["souvenirs_previous_calendar_active_users", "day"] == 3


def counts_around(t: float) -> list[int]:
    bucket = t // BUCKET * BUCKET
    ranges = [
        Interval(bucket, bucket + BUCKET),
        Interval(bucket - 60, bucket + BUCKET + 60),
        Interval(bucket, t + 60),  # without the end of the bucket
        Interval(bucket + 1, bucket + BUCKET),  # without its beginning
    ]
    return counting.count_users_of_ranges(ranges)


def test_count__of_a_deleted_user_is_of_ranges_that_hold_the_whole_bucket() -> None:
    [user] = people(1)
    with at(T + 5):
        souvenez(user)
    with at(NOW):
        assert counts_around(T + 5) == [1, 1, 1, 1]
        user.delete()
        assert counts_around(T + 5) == [1, 1, 0, 0]
        record(*people(1), T - DAY)  # so that there is something to roll up
        maintenance.roll_up()
        assert not DeletedMember.objects.exists()
        assert counts_around(T + 5) == [1, 1, 0, 0]


def test_delete__takes_a_number_of_queries_that_does_not_depend_on_the_rows() -> None:
    users = people(2)
    record(users[0], *(T + n * BUCKET for n in range(3)))
    record(users[1], *(T + n * BUCKET for n in range(400)))
    taken = []
    for user in users:
        with at(NOW), CaptureQueriesContext(ours()) as captured:
            user.delete()
        taken.append(len(captured))
    assert taken[0] == taken[1] <= 18


def test_delete__of_many_users_takes_queries_for_batches_of_them() -> None:
    taken, facts = [], []
    for number in (100, 300):
        users = people(number)
        for who, user in enumerate(users):
            record(user, T + who, T + BUCKET + who)
        facts += [
            (f"{number} {who}", t) for who in range(number) for t in (T + who, T + 1000 + who)
        ]
        with at(NOW), CaptureQueriesContext(ours()) as captured:
            User.objects.filter(pk__in=[user.pk for user in users]).delete()
        taken.append(len(captured))
        assert not LastSeen.objects.exists()
        assert not Souvenir.objects.exists()
        assert_counts(facts, DAYS)
    assert taken[1] - taken[0] <= 12  # for Django deletes users in hundreds


def test_delete__that_failed_is_done_whole_the_next_time(users: list[Any]) -> None:
    doomed = User.objects.filter(pk__in=[user.pk for user in users[:2]])
    with suppress(ZeroDivisionError), transaction.atomic(using=doomed.db):
        doomed.delete()
        raise ZeroDivisionError
    assert_counts(FACTS, DAYS)
    doomed.delete()
    assert set(Souvenir.objects.values_list("user_id", flat=True)) == {users[2].pk}
    assert_counts(FACTS, DAYS)


# The admin

ADMIN = """
INSTALLED_APPS += [
    "django.contrib.admin", "django.contrib.messages", "django.contrib.sessions",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]
ROOT_URLCONF = "site_urls"
"""
PAGES = """
import sys, time, types
from datetime import datetime, timedelta, timezone
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import path
from souvenirs.models import Souvenir

sys.modules["site_urls"] = types.ModuleType("site_urls")
sys.modules["site_urls"].urlpatterns = [path("admin/", admin.site.urls)]
client = Client()
client.force_login(User.objects.create_superuser("root"))
for number in (1, 2_000):
    user = User.objects.create(username=f"user{number}")
    begin = datetime(2024, 5, 14, tzinfo=timezone.utc)
    Souvenir.objects.bulk_create(
        Souvenir(user=user, when=begin + timedelta(hours=n)) for n in range(number)
    )
    chosen = {"action": "delete_selected", "_selected_action": [user.pk]}
    for ask in (
        lambda: client.get(f"/admin/auth/user/{user.pk}/delete/"),
        lambda: client.post("/admin/auth/user/", chosen),
    ):
        with CaptureQueriesContext(connection) as queries:
            page = ask()
        assert page.status_code == 200 and "Are you sure" in page.text
        print(len(page.content), len(queries))
    client.post("/admin/auth/user/", {**chosen, "post": "yes"})
    print(Souvenir.objects.count())
"""


@pytest.mark.own_site
def test_admin__asks_before_it_deletes_in_a_page_that_does_not_grow(
    run_site: Callable[..., str],
) -> None:
    few, few_chosen, [left], *many = (
        [int(number) for number in line.split()] for line in run_site(PAGES, ADMIN).splitlines()
    )
    assert left == 0
    for (size, queries), (more, more_queries) in zip([few, few_chosen], many[:2], strict=True):
        assert more - size < 500
        assert more_queries == queries
    assert many[2] == [0]


# Erasure


def values() -> Iterator[tuple[str, str]]:
    """Every value of every table, as text, and where it is."""
    for connection in connections.all():
        with connection.cursor() as cursor:
            for table in connection.introspection.table_names(cursor):
                if table == "django_migrations":
                    continue
                cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
                columns = [column[0] for column in cursor.description]
                for row in cursor.fetchall():
                    for column, value in zip(columns, row, strict=True):
                        if isinstance(value, (bytes, memoryview)):
                            yield f"{table}.{column}", bytes(value).decode("latin-1")
                        yield f"{table}.{column}", str(value)


KEYS: dict[str, Any] = {
    "uuid": UUID("5ca1ab1e-0ddb-4a11-8ddb-a11ac0ffee00"),
    "string": "zoe-of-the-tests",
    "": 1_987_001_234,
}
KEY = KEYS[next(iter(site_settings.SHAPE & {"uuid", "string"}), "")]
NAME = "zoe-of-the-tests"
EMAIL = "zoe@souvenirs.example"


def make_zoe() -> Any:
    given = {"username": NAME, "pk": KEY}
    if any(field.name == "email" for field in User._meta.fields):
        given["email"] = EMAIL
    return User.objects.create(**given)


def traces() -> set[str]:
    told = {str(KEY), getattr(KEY, "hex", str(KEY)), NAME, EMAIL}
    return {where for where, value in values() if any(each in value for each in told)}


@pytest.mark.usefixtures("is_rolled_up")
@pytest.mark.parametrize("has_last_seen", [True, False])
def test_delete__leaves_no_trace_of_the_person(users: list[Any], has_last_seen: bool) -> None:
    zoe = make_zoe()
    for t in (T + 30, NOW - 1):
        with at(t):
            souvenez(zoe)
            record(zoe, t)
    ordinal = LastSeen.objects.get(user_id=KEY).pk
    if not has_last_seen:
        LastSeen.objects.filter(user_id=KEY).delete()
    assert {"souvenirs_souvenir.user_id"} <= traces()
    with at(NOW):
        zoe.delete()
        assert traces() == set()
        maintenance.roll_up()
        repair.repair()
        pruning.prune(0)
    assert traces() == set()
    if has_last_seen:
        known = {mark.member for mark in DeletedMember.objects.all()}
        rollups_by_key = Rollup.objects.values_list("pk", flat=True)
        for _, members in rollups.iter_members(rollups_by_key, ours().alias):
            known |= set(members)
        assert ordinal in known  # as a number that is nobody's
    assert not LastSeen.objects.filter(pk=ordinal).exists()
    [newcomer] = people_named("newcomer")
    with at(NOW):
        souvenez(newcomer)
    assert LastSeen.objects.get(user_id=newcomer.pk).pk > ordinal


def people_named(*names: str) -> list[Any]:
    return [User.objects.create(username=name) for name in names]


@pytest.mark.usefixtures("is_rolled_up")
def test_recreated_key__is_another_person(users: list[Any]) -> None:
    zoe = make_zoe()
    with at(NOW):
        record(zoe, T + 30)
        zoe.delete()
        zoe = make_zoe()
        assert last_seen(zoe) is None
        assert zoe not in active_users_between()
        record(zoe, T + 40)
        facts = [*FACTS, ("zoe", T + 30), ("another zoe", T + 40)]
        assert_counts(facts)
        maintenance.roll_up()
        assert_counts(facts)
        assert zoe in active_users_between()
