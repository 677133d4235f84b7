"""Inactive users, compared with brute force over what users did, and the output of the command."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.core.management import CommandError, call_command

from souvenirs.control import inactive_users, last_seen, souvenez
from souvenirs.lastseen import get_store
from souvenirs.lastseen.redis import RedisStore
from tests import stores
from tests.people import User, site, with_databases

store = stores.store

pytestmark = with_databases

NOW = datetime(2024, 5, 15, 12, 34, 56, tzinfo=timezone.utc)
DAY = timedelta(days=1)
has_date_joined = pytest.mark.where("string" not in settings.SHAPE)

# (days since they joined, days since they were last seen)
PEOPLE = {
    "gone": (400, 120),
    "just gone": (400, 90.05),
    "just back": (400, 89.95),
    "here": (400, 0.01),
    "never": (400, None),
    "new": (3, None),
}


def make(people: dict[str, tuple[float, float | None]]) -> None:
    knows = any(field.name == "date_joined" for field in User._meta.fields)
    for name, (joined, seen) in people.items():
        joining = {"date_joined": site(NOW - joined * DAY)} if knows else {}
        user = User.objects.create(username=name, **joining)
        if seen is not None:
            souvenez(user, when=NOW - seen * DAY)


@pytest.fixture(autouse=True)
def now() -> Iterator[None]:
    with time_machine.travel(NOW, tick=False):
        yield


def names(users: Any) -> set[str]:
    return set(users.values_list("username", flat=True))


@has_date_joined
def test_inactive_users__were_not_seen_since_or_never_and_joined_before() -> None:
    make(PEOPLE)
    since = NOW - 90 * DAY
    assert names(inactive_users(since)) == {"gone", "just gone", "never"}
    assert names(inactive_users(since, NOW - DAY)) == {"gone", "just gone", "never", "new"}
    assert names(inactive_users(since, NOW - 500 * DAY)) == {"gone", "just gone"}


@pytest.mark.where("string" in settings.SHAPE)
def test_inactive_users__without_date_joined_exclude_users_never_seen() -> None:
    make(PEOPLE)
    assert names(inactive_users(NOW - 90 * DAY)) == {"gone", "just gone"}


def test_inactive_users__is_a_queryset_that_can_be_filtered_and_updated() -> None:
    make(PEOPLE)
    gone = inactive_users(NOW - 100 * DAY).filter(username__contains="gone")
    assert names(gone.exclude(username="just gone")) == {"gone"}
    assert gone.update(password="!") == 1
    assert names(User.objects.filter(password="!")) == {"gone"}


def test_inactive_users__exclude_a_user_seen_in_the_minute_of_the_bound() -> None:
    user = User.objects.create(username="ada")
    bound = datetime(2024, 2, 1, 12, 0, 30, tzinfo=timezone.utc)
    souvenez(user, when=bound - timedelta(seconds=20))  # and possibly seen until 12:00:50
    assert names(inactive_users(bound)) == set()
    assert names(inactive_users(bound + timedelta(seconds=30))) == {"ada"}


def test_inactive_users__exclude_users_seen_since_on_any_store(store: Any) -> None:
    """In Redis the time is updated every minute, in the table every hour."""
    user = User.objects.create(username="ada")
    for minutes in (0, 25, 50):
        with time_machine.travel(NOW.replace(hour=9, minute=minutes, second=0), tick=False):
            souvenez(user)
            if isinstance(store, RedisStore):
                store.flush()
                store.writer.confirm_pending()
    last = NOW.replace(hour=9, minute=50, second=0)
    assert last_seen(user) == site(last)
    assert names(inactive_users(last)) == set()
    assert names(inactive_users(last - timedelta(minutes=40))) == set()
    assert names(inactive_users(NOW.replace(hour=10, minute=0, second=0))) == {"ada"}


def test_inactive_users__takes_datetimes_only() -> None:
    with pytest.raises(TypeError, match="expected a datetime"):
        inactive_users(NOW.date())  # type: ignore[arg-type]


# The command


def run(*args: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("list_inactive_users", *args, stdout=out, **options)
    return out.getvalue()


def listed(output: str) -> set[str]:
    return {row["username"] for row in json.loads(output)}


@has_date_joined
def test_list_inactive_users__lists_the_users_that_the_function_finds() -> None:
    make(PEOPLE)
    expected = names(inactive_users(NOW - 90 * DAY))
    assert listed(run("--older-than", "90d", "--format", "json")) == expected
    assert listed(run(older_than=90 * DAY, format="json")) == expected
    assert "new" in listed(
        run("--older-than", "90d", "--format", "json", "--joined-before", "2024-05-15")
    )


def test_list_inactive_users__formats_have_the_same_content() -> None:
    make(PEOPLE)
    rows = json.loads(run("--older-than", "90d", "--format", "json"))
    table = run("--older-than", "90d")
    cells = list(csv.DictReader(io.StringIO(run("--older-than", "90d", "--format", "csv"))))
    assert len(rows) == len(cells) > 0
    for row, cell in zip(rows, cells):
        assert row["is_active"] is True
        assert cell == {
            **{name: "" if value is None else str(value) for name, value in row.items()},
            "is_active": "true",
        }
        assert f"{row['username']} " in table
        seen = row["last_seen"]
        if seen is not None:
            user = User.objects.get(username=row["username"])
            assert datetime.fromisoformat(seen) == NOW - PEOPLE[user.username][1] * DAY  # type: ignore[operator]
            assert seen in table


def test_list_inactive_users__without_users_is_an_empty_list() -> None:
    make({"here": (400, 0.01), "there": (400, 89)})
    souvenez(User.objects.get(username="here"), when=NOW - 200 * DAY)
    assert json.loads(run("--older-than", "90d", "--format", "json")) == []
    assert run("--older-than", "90d") == "No inactive users.\n"
    assert run("--older-than", "90d", "--format", "csv").splitlines() == [
        "key,username,is_active,joined,last_seen"
    ]


def test_list_inactive_users__exit_code_says_whether_anybody_is_listed() -> None:
    make({"gone": (400, 120)})
    assert "gone" in run("--older-than", "90d")
    with pytest.raises(SystemExit) as error:
        run("--older-than", "90d", "--exit-code")
    assert error.value.code == 3
    souvenez(User.objects.get(username="gone"))
    assert run("--older-than", "90d", "--exit-code") == "No inactive users.\n"


def test_list_inactive_users__refuses_a_time_before_the_record() -> None:
    with pytest.raises(CommandError, match="No users have been recorded yet"):
        run("--older-than", "90d")
    make({"here": (400, 30), "never": (400, None)})
    with pytest.raises(CommandError, match="The record begins at 2024-04-15"):
        run("--older-than", "90d")
    assert "here" in run("--older-than", "29d")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--older-than is required"),
        (["--older-than", "90"], "'90'"),
        (["--older-than", "90d", "--format", "xml"], "invalid choice: 'xml'"),
        (["--older-than", "90d", "--joined-before", "soon"], "--joined-before is 'soon'"),
    ],
)
def test_list_inactive_users__says_which_option_is_wrong(args: list[str], message: str) -> None:
    make({"gone": (400, 120)})
    with pytest.raises(CommandError, match=message):
        run(*args)


@has_date_joined
def test_list_inactive_users__csv_cells_never_start_a_formula() -> None:
    make({"=1+1": (400, 120), "@SUM(1)": (400, 120), "+49": (400, 120), "-2": (400, None)})
    cells = csv.DictReader(io.StringIO(run("--older-than", "90d", "--format", "csv")))
    assert {row["username"] for row in cells} == {"'=1+1", "'@SUM(1)", "'+49", "'-2"}
    assert "=1+1" in listed(run("--older-than", "90d", "--format", "json"))


def test_list_inactive_users__takes_as_many_queries_for_many_as_for_few(
    django_assert_max_num_queries: Any,
) -> None:
    make({f"gone{n}": (400, 120 + n) for n in range(60)})
    with django_assert_max_num_queries(12):
        assert len(json.loads(run("--older-than", "90d", "--format", "json"))) == 60
    assert get_store()
