"""Deleted users: their rows go, closed periods keep their numbers, and nothing says who they
were."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.contrib.admin.utils import NestedObjects
from django.db import connections, models, transaction
from django.db.migrations.loader import MigrationLoader
from django.test.utils import CaptureQueriesContext, isolate_apps

from souvenirs.control import active_users_between, last_seen, souvenez
from souvenirs.history import counting, maintenance, pruning, repair, rollups
from souvenirs.models import DeletedMember, LastSeen, Rollup, Souvenir
from souvenirs.periods import BUCKET, Interval
from souvenirs_metrics.collector import SouvenirsCollector
from tests import settings as site_settings
from tests.conftest import ADMIN
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
    """Parametrizes how much of the history is rolled up before a user is deleted."""
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
def test_delete__rolled_back_changes_nothing(users: list[Any]) -> None:
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


def test_delete__of_a_proxy_model_keeps_the_numbers(users: list[Any]) -> None:
    with isolate_apps("tests.users"):

        class Person(User):  # type: ignore[misc]
            class Meta:
                proxy = True
                app_label = "users"

        with at(NOW):
            Person.objects.filter(pk=users[0].pk).delete()
            assert_counts(FACTS, DAYS)
            assert not LastSeen.objects.filter(user_id=users[0].pk).exists()


def test_delete__of_a_user_without_a_last_seen_row_keeps_the_numbers(users: list[Any]) -> None:
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


def test_delete__removes_users_from_windows_and_periods_to_date_but_not_from_previous_periods(
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


def test_count__includes_a_deleted_user_in_ranges_that_contain_the_whole_bucket() -> None:
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


def test_delete__takes_as_many_queries_for_any_number_of_rows() -> None:
    users = people(2)
    record(users[0], *(T + n * BUCKET for n in range(3)))
    record(users[1], *(T + n * BUCKET for n in range(400)))
    taken = []
    for user in users:
        with at(NOW), CaptureQueriesContext(ours()) as captured:
            user.delete()
        taken.append(len(captured))
    assert taken[0] == taken[1] <= 18


def make_crowd(number: int) -> tuple[list[Any], list[tuple[str, float]]]:
    """Create this many users who were active in two buckets; return them and the facts."""
    names = [f"{number} {who}" for who in range(number)]
    users = User.objects.bulk_create(User(username=name) for name in names)
    times = [(T + who % BUCKET, T + BUCKET + who % BUCKET) for who in range(number)]
    Souvenir.objects.bulk_create(
        Souvenir(user_id=user.pk, when=to_when(t)) for user, both in zip(users, times) for t in both
    )
    return users, [(name, t) for name, both in zip(names, times) for t in both]


def ours_among(captured: CaptureQueriesContext) -> list[str]:
    return [each["sql"] for each in captured.captured_queries if "souvenirs_" in each["sql"]]


@pytest.mark.parametrize("has_last_seen", [True, False])
def test_delete__of_many_users_takes_queries_per_batch(has_last_seen: bool) -> None:
    taken, facts = [], []
    for number in (100, 1_000):
        users, of_crowd = make_crowd(number)
        facts += of_crowd
        if not has_last_seen:
            LastSeen.objects.all().delete()
        with at(NOW), CaptureQueriesContext(ours()) as captured:
            User.objects.filter(pk__in=[user.pk for user in users]).delete()
        taken.append(len(ours_among(captured)))
        assert not LastSeen.objects.exists()
        assert not Souvenir.objects.exists()
        assert_counts(facts, DAYS)
    # 500 users are a batch; SQLite accepts some hundred values in a statement
    assert taken[0] <= 20
    assert taken[1] - taken[0] <= 20


def test_delete__within_savepoints_is_undone_with_them(users: list[Any]) -> None:
    newcomers = people_named("ann", "ben")
    facts = [*FACTS, ("ann", T + 1), ("ben", T + BUCKET + 1)]
    record(newcomers[0], T + 1)
    record(newcomers[1], T + BUCKET + 1)
    with at(NOW), transaction.atomic(using=User.objects.db):
        User.objects.filter(pk=newcomers[0].pk).delete()
        with suppress(ZeroDivisionError), transaction.atomic(using=User.objects.db):
            User.objects.filter(pk__in=[user.pk for user in users]).delete()
            raise ZeroDivisionError
        User.objects.filter(pk=newcomers[1].pk).delete()
    left = {user.pk for user in users}
    assert set(Souvenir.objects.values_list("user_id", flat=True)) == left
    assert set(LastSeen.objects.values_list("user_id", flat=True)) == left
    assert DeletedMember.objects.count() == 2
    assert_counts(facts, DAYS)
    roll_up(NOW)
    assert_counts(facts, DAYS)


@pytest.mark.where("routed" not in site_settings.SHAPE)  # otherwise rows are deleted on commit
def test_delete__keeps_the_history_before_the_transaction_ends(users: list[Any]) -> None:
    with at(NOW), transaction.atomic():
        User.objects.filter(pk__in=[user.pk for user in users]).delete()
        assert not Souvenir.objects.exists()
        assert not LastSeen.objects.exists()
        assert_counts(FACTS, DAYS)


# in another database, Django does not look for souvenirs
@pytest.mark.where("routed" not in site_settings.SHAPE)
def test_delete__sends_the_signals_of_souvenirs(users: list[Any]) -> None:
    """As in 1.0.2. A receiver without a sender, which many libraries have, is enough."""
    sent = []

    def receive(sender: Any, instance: Any, **kwargs: Any) -> None:
        if sender is Souvenir:
            sent.append(instance.when)

    models.signals.post_delete.connect(receive)
    try:
        with at(NOW):
            users[0].delete()
    finally:
        models.signals.post_delete.disconnect(receive)
    assert sorted(sent) == [to_when(t) for who, t in FACTS if who == 0]
    assert not LastSeen.objects.filter(user_id=users[0].pk).exists()
    assert_counts(FACTS, DAYS)


# in another database, Django does not look for souvenirs
@pytest.mark.where("routed" not in site_settings.SHAPE)
def test_delete__in_a_migration_needs_no_tables_of_later_ones(users: list[Any]) -> None:
    apps = MigrationLoader(ours()).project_state().apps
    with CaptureQueriesContext(ours()) as captured:
        apps.get_model(User._meta.label).objects.filter(pk=users[0].pk).delete()
    tables = {Souvenir._meta.db_table, LastSeen._meta.db_table}
    assert {re.findall(r"souvenirs_\w+", sql)[0] for sql in ours_among(captured)} == tables
    assert Souvenir.objects.count() == len(TIMES) * 2


def test_delete__by_a_collector_of_the_admin_is_complete(users: list[Any]) -> None:
    collector = NestedObjects(using=User.objects.db)
    collector.collect(User.objects.filter(pk=users[0].pk))
    with at(NOW):
        collector.delete()
        left = {users[1].pk, users[2].pk}
        assert set(Souvenir.objects.values_list("user_id", flat=True)) == left
        assert set(LastSeen.objects.values_list("user_id", flat=True)) == left
        assert_counts(FACTS, DAYS)


def test_delete__after_a_failure_is_complete_the_next_time(users: list[Any]) -> None:
    doomed = User.objects.filter(pk__in=[user.pk for user in users[:2]])
    with suppress(ZeroDivisionError), transaction.atomic(using=doomed.db):
        doomed.delete()
        raise ZeroDivisionError
    assert_counts(FACTS, DAYS)
    doomed.delete()
    assert set(Souvenir.objects.values_list("user_id", flat=True)) == {users[2].pk}
    assert_counts(FACTS, DAYS)


# The admin

CRM = """
from django.contrib.auth.models import AbstractUser
from django.db import models

class Organisation(models.Model):
    name = models.CharField(max_length=20)

class Person(AbstractUser):
    organisation = models.ForeignKey(Organisation, models.CASCADE, null=True)
"""
CERTIFICATE = """
class Certificate(models.Model):
    souvenir = models.ForeignKey("souvenirs.Souvenir", models.PROTECT)
"""
CRM_SETTINGS = """
AUTH_USER_MODEL = "crm.Person"
INSTALLED_APPS += ["crm"]
ROOT_URLCONF = "crm.urls"
"""
URLS = """
from crm.models import Organisation, Person
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.db.models.signals import post_delete
from django.urls import path

sites = [admin.site, admin.AdminSite("staff")]
for site in sites:
    site.register(Person, UserAdmin)
    site.register(Organisation)
urlpatterns = [path("admin/", sites[0].urls), path("staff/", sites[1].urls)]
received = []
post_delete.connect(lambda **kwargs: received.append(kwargs), weak=False)
"""
PAGES = """
from datetime import datetime, timedelta, timezone
from crm.models import Organisation, Person
from django.db import connection
from django.test.utils import CaptureQueriesContext
from souvenirs.models import LastSeen, Souvenir

client = Client()
client.force_login(Person.objects.create_superuser("root"))
begin = datetime(2024, 5, 14, tzinfo=timezone.utc)

def make(number):
    organisation = Organisation.objects.create(name="acme")
    user = Person.objects.create(username=f"user{number}", organisation=organisation)
    Souvenir.objects.bulk_create(
        Souvenir(user=user, when=begin + timedelta(hours=n)) for n in range(number)
    )
    return user, organisation

def ask(url, data=None):
    with CaptureQueriesContext(connection) as queries:
        page = client.post(url, data) if data else client.get(url)
    assert page.status_code == 200, page
    return page.text, len(queries)

def pages(user, organisation):
    for site in ("admin", "staff"):
        for name, row in (("person", user), ("organisation", organisation)):
            yield ask(f"/{site}/crm/{name}/{row.pk}/delete/")
            chosen = {"action": "delete_selected", "_selected_action": [row.pk]}
            yield ask(f"/{site}/crm/{name}/", chosen)
"""
NOT_LISTED = """
few, many = make(1), make(2_000)
before = [(len(page), queries) for page, queries in pages(*few)]
for (size, queries), (page, more_queries) in zip(before, pages(*many), strict=True):
    content = page[page.index('id="content"'):]  # beside it the menu has our pages
    assert "Are you sure" in content and "ouvenir" not in content
    assert len(page) < size + 500
    assert more_queries == queries
client.post(f"/admin/crm/person/{few[0].pk}/delete/", {"post": "yes"})
client.post("/staff/crm/organisation/", {
    "action": "delete_selected", "_selected_action": [many[1].pk], "post": "yes",
})
print(Person.objects.count(), Souvenir.objects.count(), LastSeen.objects.count())
"""
PROTECTED = """
from crm.models import Certificate

user, organisation = make(3)
Certificate.objects.create(souvenir=user.souvenir_set.first())
for page, _ in pages(user, organisation):
    assert "Cannot delete" in page and "Certificate object" in page
print("protected")
"""


@pytest.fixture
def run_admin(run_site: Callable[..., str], tmp_path: Path) -> Callable[[str, str], str]:
    """`run_admin(code, models)` runs the code in a site with two admin sites, where organisations
    have users, and deleting an organisation deletes its users."""

    def run(code: str, more_models: str = "") -> str:
        (tmp_path / "crm").mkdir()
        (tmp_path / "crm" / "__init__.py").touch()
        (tmp_path / "crm" / "models.py").write_text(CRM + more_models)
        (tmp_path / "crm" / "urls.py").write_text(URLS)
        return run_site(PAGES + code, ADMIN + CRM_SETTINGS)

    return run


@pytest.mark.own_site
def test_admin__has_confirmation_pages_that_do_not_grow(
    run_admin: Callable[..., str],
) -> None:
    assert run_admin(NOT_LISTED) == "1 0 0\n"


@pytest.mark.own_site
def test_admin__names_protected_objects_of_the_site(run_admin: Callable[..., str]) -> None:
    assert run_admin(PROTECTED, CERTIFICATE) == "protected\n"


# Erasure


def values() -> Iterator[tuple[str, str]]:
    """Every value of every table, as text, with its column."""
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
    secrets = {str(KEY), getattr(KEY, "hex", str(KEY)), NAME, EMAIL}
    return {where for where, value in values() if any(each in value for each in secrets)}


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
        assert ordinal in known  # as a number that belongs to nobody
    assert not LastSeen.objects.filter(pk=ordinal).exists()
    [newcomer] = people_named("newcomer")
    with at(NOW):
        souvenez(newcomer)
    assert LastSeen.objects.get(user_id=newcomer.pk).pk > ordinal


def people_named(*names: str) -> list[Any]:
    return [User.objects.create(username=name) for name in names]


@pytest.mark.usefixtures("is_rolled_up")
def test_recreated_key__is_a_new_person(users: list[Any]) -> None:
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
