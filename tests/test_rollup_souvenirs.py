from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test.utils import CaptureQueriesContext

from souvenirs.history import maintenance, progress
from souvenirs.models import DirtyBucket, Rollup, Souvenir
from souvenirs.periods import Interval
from tests.history import (
    DAY,
    HOUR,
    assert_counts,
    at,
    clear,
    people,
    record,
    to_when,
    unix,
)
from tests.people import User, ours, with_databases

pytestmark = with_databases

T = unix(2024, 5, 14, 22)  # Paris: midnight of the 15th
NOW = T + 3 * DAY + HOUR
FACTS = [(who, T + who * 7 * HOUR + n * 11 * HOUR) for who in range(3) for n in range(4)]


def run(*args: str, stderr: io.StringIO | None = None) -> str:
    stdout = io.StringIO()
    with at(NOW):
        call_command("rollup_souvenirs", *args, stdout=stdout, stderr=stderr or io.StringIO())
    return stdout.getvalue()


@pytest.fixture
def users() -> list[Any]:
    users = people(3)
    for who, t in FACTS:
        record(users[who], t)
    return users


def test_rollup_souvenirs__rolls_up_everything(users: list[Any]) -> None:
    told = run()
    assert told == f"The history is rolled up ({Rollup.objects.count()} intervals).\n"
    assert progress.watermark(ours().alias).rolled_up == progress.due_until(NOW)
    assert not DirtyBucket.objects.exists()
    assert_counts(FACTS)
    assert run() == "Nothing to do: the history is rolled up.\n"


def test_rollup_souvenirs__without_souvenirs_says_so() -> None:
    assert run() == "There are no souvenirs.\n"
    assert run("--repair") == "There are no souvenirs.\n"


def test_rollup_souvenirs__repairs(users: list[Any]) -> None:
    run()
    Souvenir.objects.filter(user_id=users[0].pk).update(when=to_when(T + 2 * DAY))
    run()
    facts = [(who, T + 2 * DAY if who == 0 else t) for who, t in FACTS]
    with pytest.raises(AssertionError):
        assert_counts(facts)
    assert run("--repair").startswith("The history is rolled up (")
    assert_counts(facts)


def test_rollup_souvenirs__reports_that_there_was_nothing_to_do(users: list[Any]) -> None:
    assert run().startswith("The history is rolled up (")
    assert run() == "Nothing to do: the history is rolled up.\n"
    assert run("--repair").startswith("The history is rolled up (")


def test_rollup_souvenirs__refuses_unknown_options() -> None:
    with pytest.raises(CommandError, match="--fast"):
        run("--fast")


def test_roll_up__continues_where_it_was_interrupted(users: list[Any]) -> None:
    def interrupt(step: Interval) -> None:
        raise KeyboardInterrupt

    steps: list[Interval] = []
    with at(NOW):
        with pytest.raises(KeyboardInterrupt):
            maintenance.roll_up(on_step=interrupt)
        assert progress.watermark(ours().alias).rolled_up == T + DAY
        assert_counts(FACTS)
        maintenance.roll_up(on_step=steps.append)
        assert steps[0].start == T + DAY
        assert_counts(FACTS)


def queries_of(days: int, souvenirs: int) -> int:
    users = people(souvenirs // 10)
    for day in range(days):
        for n, user in enumerate(users):
            record(user, *(T + day * DAY + n + each * 2 * HOUR for each in range(10)))
    DirtyBucket.objects.all().delete()
    with at(T + days * DAY + HOUR), CaptureQueriesContext(ours()) as captured:
        maintenance.roll_up()
    assert_counts(
        (who, T + day * DAY + who + n * 2 * HOUR)
        for day in range(days)
        for who in range(len(users))
        for n in range(10)
    )
    return len(captured)


def test_roll_up__takes_queries_per_day_not_per_souvenir() -> None:
    taken = {}
    for days, souvenirs in [(1, 10), (1, 300), (2, 10), (4, 10)]:
        taken[days, souvenirs] = queries_of(days, souvenirs)
        clear()
        User.objects.all().delete()
        clear()
    assert taken[1, 10] == taken[1, 300]
    each = taken[2, 10] - taken[1, 10]
    assert taken[4, 10] - taken[2, 10] == 2 * each
    assert each <= 22


KILLED = """
import os, sys, time
from django.contrib.auth.models import User
from django.db import connection
from souvenirs import timestamps
from souvenirs.history import maintenance, progress
from souvenirs.models import Souvenir
users = [User.objects.create(username=f"user{i}") for i in range(3)]
Souvenir.objects.bulk_create(
    Souvenir(user=user, when=timestamps.to_datetime(1_715_724_000 + n * 20_000 + i))
    for i, user in enumerate(users)
    for n in range(30)
)
connection.close()
def kill(step):
    os.kill(os.getpid(), 9)
child = os.fork()
if not child:
    maintenance.roll_up(on_step=kill)
_, status = os.waitpid(child, 0)
assert os.WTERMSIG(status) == 9, status
call_command("rollup_souvenirs")
from souvenirs.control import count_active_users
print(count_active_users(), Souvenir.objects.count())
"""


@pytest.mark.own_site
def test_rollup_souvenirs__continues_after_a_kill(run_site: Callable[..., str]) -> None:
    told = run_site(KILLED)
    assert told.splitlines()[-1] == "3 90"
    assert told.startswith("The history is rolled up (")
