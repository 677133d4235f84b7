"""The column and the filter of last-seen times on every database, and their pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.contrib.admin import AdminSite, ModelAdmin
from django.contrib.auth.models import User as AuthUser
from django.db import connections
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext

from souvenirs.admin.lastseen import CHOICES, NEVER, LastSeenAdmin, LastSeenFilter, LastSeenMixin
from souvenirs.control import souvenez
from souvenirs.lastseen.redis import RedisStore
from souvenirs.models import LastSeen
from tests import admin_site as admin_site_module
from tests import stores
from tests.admin_site import signed_in
from tests.people import User, ours, site, with_databases

store, admin_site = stores.store, admin_site_module.admin_site

pytestmark = with_databases
joined = pytest.mark.where("routed" not in settings.SHAPE)
with_pages = [pytest.mark.own_site, pytest.mark.where(not settings.SHAPE)]

NOW = datetime(2024, 5, 15, 12, 34, 56, tzinfo=timezone.utc)
DAYS = {"h": 0.02, "d": 0.5, "w": 5, "m": 20, "q": 60, "y": 200, "z": 700}  # days ago
NEVER_SEEN = ["n1", "n2", "n3"]
IN_ORDER = list(DAYS)  # the most recently seen first


class Staff:
    """A user with all permissions, whatever the user model."""

    is_active = is_staff = True
    pk = 1

    def has_perm(self, name: str, obj: Any = None) -> bool:
        return True

    has_module_perms = has_perm


class PeopleAdmin(LastSeenMixin, ModelAdmin):  # type: ignore[type-arg]
    list_display = ("username",)
    list_per_page = 4
    list_max_show_all = 8
    ordering = ("username",)  # like Django's UserAdmin
    show_full_result_count = False


@pytest.fixture(autouse=True)
def now() -> Iterator[None]:
    with time_machine.travel(NOW, tick=False):
        yield


@pytest.fixture
def users() -> dict[str, Any]:
    made = {name: User.objects.create(username=name) for name in [*NEVER_SEEN, *DAYS]}
    for name, days in DAYS.items():
        souvenez(made[name], when=NOW - timedelta(days=days))
    return made


def change_list(admin_class: Any = PeopleAdmin, model: Any = User, **params: Any) -> Any:
    request = RequestFactory().get("/", params)
    request.user = Staff()  # type: ignore[assignment]
    return admin_class(model, AdminSite()).get_changelist_instance(request)


def names(*args: Any, **params: Any) -> list[str]:
    return [user.username for user in change_list(*args, **params).result_list]


def pages(order: str) -> list[str]:
    return [name for page in (1, 2, 3) for name in names(o=order, p=page)]


@joined
def test_column__sorts_users_never_seen_last_in_both_directions(users: dict[str, Any]) -> None:
    descending, ascending = pages("-2"), pages("2")
    assert descending[: len(DAYS)] == IN_ORDER
    assert ascending[: len(DAYS)] == IN_ORDER[::-1]
    assert sorted(descending[len(DAYS) :]) == sorted(ascending[len(DAYS) :]) == NEVER_SEEN


@joined
def test_column__sorts_a_list_of_one_page_the_same_way(users: dict[str, Any]) -> None:
    class OnePage(PeopleAdmin):
        list_per_page = 50

    assert names(OnePage, o="-2")[: len(DAYS)] == IN_ORDER
    assert names(OnePage, o="2")[: len(DAYS)] == IN_ORDER[::-1]
    assert names(o="-2", all="")[:4] == IN_ORDER[:4]


@joined
def test_column__sorts_searched_and_filtered_users(users: dict[str, Any]) -> None:
    class Searching(PeopleAdmin):
        search_fields = ("username",)
        list_per_page = 2

    assert names(Searching, o="-2", seen="not-30d") == ["q", "y"]
    assert names(Searching, o="-2", seen="not-30d", p=2) == ["z"]
    assert names(Searching, o="-2", q="n", p=2) == ["n1"]


@joined
def test_column__can_be_sorted_by_together_with_another(users: dict[str, Any]) -> None:
    LastSeen.objects.update(seen=site(NOW))
    assert names(o="2.1") == sorted(DAYS)[:4]
    assert names(o="2.-1") == sorted(DAYS)[::-1][:4]


def test_column__shows_the_times_of_the_store(users: dict[str, Any], store: Any) -> None:
    """In Redis they are updated every minute, in the table every hour."""
    user = users["h"]
    for minutes in (5, 25, 50):
        with time_machine.travel(NOW.replace(hour=11, minute=minutes, second=0), tick=False):
            souvenez(user)
            if isinstance(store, RedisStore):
                store.flush()
                store.writer.confirm_pending()
    cells = PeopleAdmin(User, AdminSite())
    rows = {row.username: row for row in change_list(q="").result_list}
    rows |= {row.username: row for page in (2, 3) for row in change_list(p=page).result_list}
    assert cells.when_last_seen(rows["h"]) == site(NOW.replace(hour=11, minute=50, second=0))
    assert cells.when_last_seen(rows["n1"]) is None
    assert cells.when_last_seen(User.objects.get(pk=user.pk)) == cells.when_last_seen(rows["h"])


@joined
@pytest.mark.parametrize("choice", [*CHOICES, NEVER])
def test_filter__chooses_the_users_in_its_label(users: dict[str, Any], choice: str) -> None:
    class OnePage(PeopleAdmin):
        list_per_page = 50

    if choice == NEVER:
        expected = set(NEVER_SEEN)
    else:
        text = choice.removeprefix("not-")
        limit = {"1h": 1 / 24, "1d": 1}.get(text) or int(text.removesuffix("d"))
        is_within = not choice.startswith("not-")
        expected = {name for name, days in DAYS.items() if (days <= limit) == is_within}
    assert set(names(OnePage, seen=choice)) == expected
    assert set(names(OnePage, seen="nonsense")) == {*DAYS, *NEVER_SEEN}


def test_lists__take_a_fixed_number_of_queries(users: dict[str, Any]) -> None:
    def queries(admin_class: Any, **params: Any) -> int:
        with (
            CaptureQueriesContext(ours()) as history,
            CaptureQueriesContext(users_database()) as of,
        ):
            change_list(admin_class, **params)
        return len(history) if ours().alias == users_database().alias else len(history) + len(of)

    class Plain(ModelAdmin):  # type: ignore[type-arg]
        list_per_page, show_full_result_count = 4, False

    count = queries(Plain)
    assert count == 1  # of users; the page's rows have not been read yet
    assert queries(PeopleAdmin) == count + 2  # the page's rows, and their times
    if "routed" not in settings.SHAPE:
        assert queries(PeopleAdmin, o="-2") == count + 3  # and the users on the page


def users_database() -> Any:
    return connections[User.objects.db]


@pytest.mark.where("routed" in settings.SHAPE)
def test_mixin__neither_sorts_nor_filters_if_times_are_in_another_database(
    users: dict[str, Any],
) -> None:
    shown = change_list(o="-2")
    assert shown.get_ordering_field("when_last_seen") is None
    assert LastSeenFilter not in shown.list_filter
    assert len(shown.result_list) == 4


def test_list__has_users_with_a_time_newest_first(users: dict[str, Any]) -> None:
    rows = change_list(LastSeenAdmin, LastSeen).result_list
    assert [row._shown_user.username for row in rows] == IN_ORDER
    rows = change_list(LastSeenAdmin, LastSeen, seen="not-90d").result_list
    assert [row._shown_user.username for row in rows] == ["y", "z"]


def test_list__is_read_only(users: dict[str, Any]) -> None:
    request = RequestFactory().get("/")
    request.user = Staff()  # type: ignore[assignment]
    admin = LastSeenAdmin(LastSeen, AdminSite())
    assert not admin.has_add_permission(request)
    assert not admin.has_change_permission(request)
    assert not admin.has_delete_permission(request)
    assert list(admin.get_actions(request)) == []
    assert len(admin.get_urls()) == 1


# The pages


@pytest.fixture
def boss(admin_site: None) -> Client:
    client = Client()
    client.force_login(AuthUser.objects.create_superuser("boss"))
    return client


def cells(text: str, column: str) -> list[str]:
    found = re.findall(rf'<t[dh] class="field-{column}[^"]*">(.*?)</t[dh]>', text)
    return [re.sub("<[^>]+>", "", cell) for cell in found]


class TestPages:
    pytestmark = with_pages

    def test_users__have_the_column(self, users: dict[str, Any], boss: Client) -> None:
        response = boss.get("/backstage/auth/user/?o=-6&p=1")
        assert cells(response.text, "when_last_seen")[0] == "May 15, 2024, 2:06 p.m."
        last = boss.get("/backstage/auth/user/?o=-6&p=3")
        assert cells(last.text, "when_last_seen")[-1] == "Never"
        assert "Not in the last 90 days" in response.text

    def test_users__can_be_edited_in_the_list(self, users: dict[str, Any], boss: Client) -> None:
        from souvenirs.admin import LastSeenMixin as mixin

        assert mixin is LastSeenMixin
        response = boss.get("/backstage/auth/user/?o=-6")
        forms = response.context["cl"].formset
        assert [form.instance.username for form in forms] == IN_ORDER[:4]
        data = {f"form-{name}_FORMS": 4 for name in ("TOTAL", "INITIAL")}
        data |= {f"form-{n}-id": form.instance.pk for n, form in enumerate(forms)}
        data |= {f"form-{n}-first_name": f"No. {n}" for n in range(4)}
        saved = boss.post("/backstage/auth/user/?o=-6", {**data, "_save": "Save"})
        assert saved.status_code in (200, 302)

    def test_list__links_to_users(self, users: dict[str, Any], boss: Client) -> None:
        text = boss.get("/backstage/souvenirs/lastseen/").text
        assert cells(text, "shown_user") == IN_ORDER
        assert f'href="/backstage/auth/user/{users["h"].pk}/change/"' in text
        found = boss.get("/backstage/souvenirs/lastseen/?q=y").text
        assert cells(found, "shown_user") == ["y"]

    def test_list__needs_its_permission(self, users: dict[str, Any], admin_site: None) -> None:
        url = "/backstage/souvenirs/lastseen/"
        assert signed_in("view_lastseen").get(url).status_code == 200
        assert signed_in("view_usage").get(url).status_code == 403
        assert signed_in("view_lastseen", is_staff=False).get(url).status_code == 302
        assert Client().get(url).status_code == 302

    def test_users__can_be_deleted_although_the_list_is_read_only(
        self, users: dict[str, Any], boss: Client
    ) -> None:
        text = boss.get(f"/backstage/auth/user/{users['h'].pk}/delete/").text
        assert "Are you sure" in text
