from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, ManagementUtility, call_command

from souvenirs.models import Souvenir
from tests.history import DAY, HOUR, assert_counts, at, people, record, unix
from tests.people import with_databases

pytestmark = with_databases

T = unix(2024, 5, 14, 22)  # Paris: midnight of the 15th
NOW = T + 3 * DAY + HOUR
FACTS = [(who, T + who * 7 * HOUR + n * 11 * HOUR) for who in range(3) for n in range(4)]


def run(*args: str) -> str:
    stdout = io.StringIO()
    with at(NOW):
        call_command("prune_souvenirs", *args, stdout=stdout)
    return stdout.getvalue()


@pytest.fixture
def users() -> list[Any]:
    users = people(3)
    for who, t in FACTS:
        record(users[who], t)
    return users


def test_prune_souvenirs__deletes_older_rows_and_keeps_the_counts(users: list[Any]) -> None:
    old = sum(t < (NOW - 2 * DAY) // 900 * 900 for _, t in FACTS)
    assert 0 < old < len(FACTS)
    assert run("--older-than", "2d") == f"Deleted {old} souvenirs.\n"
    assert Souvenir.objects.count() == len(FACTS) - old
    assert_counts(FACTS)
    assert run("--older-than", "2d") == "Nothing to do: there are no souvenirs that old.\n"
    assert_counts(FACTS)


def test_prune_souvenirs__rolls_up_first(users: list[Any]) -> None:
    assert run("--older-than", "1h") == f"Deleted {len(FACTS)} souvenirs.\n"
    assert_counts(FACTS)


def test_prune_souvenirs__dry_run_reports_the_number_and_deletes_nothing(users: list[Any]) -> None:
    assert run("--older-than", "1h", "--dry-run") == "Would delete 0 souvenirs.\n"
    with at(NOW):
        call_command("rollup_souvenirs", stdout=io.StringIO())
    assert run("--older-than", "1h", "--dry-run") == f"Would delete {len(FACTS)} souvenirs.\n"
    assert Souvenir.objects.count() == len(FACTS)


@pytest.mark.parametrize("text", ["0d", "12", "soon", "-1d", ""])
def test_prune_souvenirs__refuses_invalid_durations(text: str, users: list[Any]) -> None:
    with pytest.raises(CommandError, match="is not a duration") as caught:
        run(f"--older-than={text}")
    assert repr(text) in str(caught.value)
    assert Souvenir.objects.count() == len(FACTS)


def test_prune_souvenirs__requires_an_age() -> None:
    with pytest.raises(CommandError, match="--older-than"):
        run()


def test_prune_souvenirs__exits_with_2_for_a_bad_duration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        ManagementUtility(["manage.py", "prune_souvenirs", "--older-than", "soon"]).execute()
    assert caught.value.code == 2
    assert "--older-than: 'soon' is not a duration" in capsys.readouterr().err


def test_prune_souvenirs__writes_nothing_but_its_result_to_a_file(
    users: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run("--older-than", "1h")
    assert capsys.readouterr() == ("", "")


KILLED = """
import os
from django.contrib.auth.models import User
from django.db import connection
from souvenirs import timestamps
from souvenirs.history import counting, maintenance, pruning
from souvenirs.models import Souvenir
from souvenirs.periods import BUCKET, Interval
START = 1_715_724_000
users = [User.objects.create(username=f"user{i}") for i in range(5)]
Souvenir.objects.bulk_create(
    Souvenir(user=user, when=timestamps.to_datetime(START + n * 500 * (i + 1)))
    for i, user in enumerate(users)
    for n in range(60)
)
maintenance.roll_up()
ranges = [Interval(START, START + n * BUCKET) for n in range(200)]
expected = counting.count_users_of_ranges(ranges)
connection.close()
batches = []
def kill(*args):
    batches.append(1)
    if len(batches) == 3:
        os.kill(os.getpid(), 9)
pruning.BATCH_SIZE = 11
for step in ("between batches", "in a transaction"):
    batches.clear()
    child = os.fork()
    if not child:
        if step == "between batches":
            pruning.prune(3600, on_batch=kill)
        else:
            delete = pruning.delete_rows
            pruning.delete_rows = lambda *args: (delete(*args), kill())
            pruning.prune(3600)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == 9, status
    assert counting.count_users_of_ranges(ranges) == expected
    print(Souvenir.objects.count())
    connection.close()
call_command("prune_souvenirs", "--older-than", "1h")
assert counting.count_users_of_ranges(ranges) == expected
assert not Souvenir.objects.exists()
"""


@pytest.mark.own_site
def test_prune_souvenirs__continues_after_kills(run_site: Callable[..., str]) -> None:
    assert run_site(KILLED).splitlines() == ["267", "245", "Deleted 245 souvenirs."]
