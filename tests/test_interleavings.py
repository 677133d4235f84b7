"""Other processes change the history between any two of our statements: nothing is lost or made up.

The statements of one database connection are interrupted one after the other, and another
connection does its work there. Whichever has to wait is refused and runs second, like a process
that waits; on SQLite that is the second writer.
"""

from __future__ import annotations

import copy
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections, transaction

from souvenirs import timestamps
from souvenirs.control import souvenez
from souvenirs.history import counting, deletion, maintenance, pruning, repair
from souvenirs.history.marks import GRACE_SECONDS
from souvenirs.models import DirtyBucket, Rollup, Souvenir
from souvenirs.periods import BUCKET, Interval
from souvenirs.recording.throttle import throttle
from tests.flushing import Rows
from tests.history import (
    DAY,
    HOUR,
    Before,
    Rival,
    assert_counts,
    at,
    brute,
    clear,
    people,
    record,
    rivalry,
    roll_up,
    unix,
)
from tests.people import User, ours, with_databases

pytestmark = with_databases

T = unix(2024, 5, 14, 22)  # Paris: midnight of the 15th
NOW = T + HOUR
EARLIER = T - DAY  # on a day that has ended
FIRST, SECOND, THIRD = T, T + BUCKET, T + 2 * BUCKET  # rolled up with late rows; rolled up; due
RANGES = [Interval(EARLIER, NOW), Interval(SECOND, THIRD + BUCKET), Interval(THIRD, NOW)]


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["usual", "strict"])
def rival(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rival]:
    with rivalry(tmp_path, strict=request.param) as rival:
        yield rival


class Story:
    """A history with parts that are rolled up, dirty, and due. Another story can start from the
    same state: see `again`."""

    def __init__(self, rival: Rival) -> None:
        self.rival = rival
        clear()
        User.objects.all().delete()
        clear()
        self.users = people(6)
        self.facts: list[tuple[int, float]] = []
        for who, t in [(0, EARLIER), (0, FIRST + 5), (1, FIRST + 6), (1, SECOND + 7)]:
            self.visit(who, t)
        self.visit(2, SECOND + 8)
        roll_up(THIRD + GRACE_SECONDS)
        for who, t in [(1, THIRD + 5), (3, THIRD + 6)]:
            self.visit(who, t)
        for t in (FIRST + 9, THIRD + 9):
            self.record(3, t)
        self.first_facts, self.first_rows = tuple(self.facts), Rows()

    def again(self) -> Story:
        """A copy of the story before anything else happened in it."""
        self.first_rows.restore()
        throttle.clear()
        story = copy.copy(self)
        story.facts = [*self.first_facts]
        return story

    def visit(self, who: int, t: float) -> None:
        with at(t):
            souvenez(self.users[who], ratelimit=False)
        self.facts.append((who, t))

    def record(self, who: int, t: float) -> None:
        record(self.users[who], t)
        self.facts.append((who, t))

    # What the other process does

    def record_late(self) -> None:
        with transaction.atomic(using=self.rival.alias):
            self.record(4, FIRST + 20)
            self.record(0, SECOND + 20)
            self.record(0, THIRD + 20)

    def delete_user(self) -> None:
        user = User.objects.filter(pk=self.users[1].pk).first()
        if user is not None:
            user.delete()
        else:  # with a separate database, the user is gone and only the rest was refused
            deletion.delete_rows([self.users[1].pk], ours().alias)

    def roll_up(self) -> None:
        maintenance.roll_up()

    def prune(self) -> None:
        pruning.prune(60)

    def roll_up_and_prune(self) -> None:
        maintenance.roll_up()
        pruning.prune(60)

    def repair(self) -> None:
        repair.repair()

    def begin(self) -> None:
        """Begin a transaction that records, and may last."""
        self.rival.begin()
        with self.rival.turn():
            for t in (FIRST + 30, SECOND + 30, THIRD + 30):
                souvenez(self.users[5], when=timestamps.to_datetime(t), ratelimit=False)

    def commit(self) -> None:
        self.rival.commit()
        self.facts += [(5, t) for t in (FIRST + 30, SECOND + 30, THIRD + 30)]

    def check(self) -> None:
        """Nothing is lost, neither now nor after everything is rolled up and pruned."""
        assert_counts(self.facts)
        self.roll_up_and_prune()
        assert_counts(self.facts)
        assert not DirtyBucket.objects.filter(bucket__lt=THIRD + BUCKET).exists()


def at_each_statement(
    rival: Rival, name: str, meanwhile: str, begins: bool = False
) -> Iterator[Story]:
    """For each statement of the story's method `name`, yield a story in which `meanwhile` came
    before it."""
    number = 0
    first = Story(rival)
    while True:
        story = first.again()
        with at(NOW):
            if begins:
                story.begin()
            try:
                rival.interrupt(getattr(story, name), number, getattr(story, meanwhile))
            except StopIteration:
                break
            finally:
                rival.commit()
            yield story
        number += 1
    assert number


WORK = ["roll_up", "prune", "repair", "delete_user"]
MEANWHILE = ["record_late", "delete_user", "roll_up_and_prune", "repair"]
STRICTLY = ["record_late", "delete_user"]
# The part that `make test` runs, where it takes two seconds
IS_SQLITE = ours().vendor == "sqlite"
IS_ROUTED = "routed" in settings.SHAPE
SOON = [("roll_up", "record_late"), ("prune", "record_late"), ("delete_user", "roll_up_and_prune")]


def mark_of(is_strict: bool, work: tuple[str, str]) -> Any:
    """On a server, the isolation level that sites seldom choose only runs in the matrix."""
    if is_strict and not IS_SQLITE:
        return pytest.mark.soak
    return [] if IS_SQLITE and work in SOON and not is_strict else pytest.mark.slow


@pytest.mark.parametrize(
    ("rival", "name", "meanwhile"),
    [
        pytest.param(
            is_strict,
            name,
            meanwhile,
            id=f"{'strict' if is_strict else 'usual'}-{name}-{meanwhile}",
            marks=mark_of(is_strict, (name, meanwhile)),
        )
        for is_strict in (False, True)
        for name in WORK
        for meanwhile in (STRICTLY if is_strict else MEANWHILE)
        if (name, meanwhile) != ("delete_user", "delete_user")
    ],
    indirect=["rival"],
)
def test_work__loses_nothing_to_any_work_between_its_statements(
    rival: Rival, name: str, meanwhile: str
) -> None:
    for story in at_each_statement(rival, name, meanwhile):
        story.check()


@pytest.mark.slow
@pytest.mark.parametrize("name", WORK)
def test_work__loses_nothing_of_a_transaction_committed_between_its_statements(
    rival: Rival, name: str
) -> None:
    for story in at_each_statement(rival, name, "commit", begins=True):
        story.check()


@pytest.mark.slow
@pytest.mark.where(ours().vendor == "mysql" and not IS_ROUTED)
@pytest.mark.parametrize("rival", [False, True], indirect=True)
@pytest.mark.parametrize("t", [EARLIER + 9, THIRD + BUCKET])
def test_delete__loses_nothing_that_was_committed_since_the_transaction_read(
    rival: Rival, t: float
) -> None:
    """The site's transaction has read before, so its snapshot lacks what others commit then."""
    story = Story(rival)
    user = story.users[1]
    with at(NOW):
        with transaction.atomic(using=rival.alias):
            assert Souvenir.objects.filter(user_id=user.pk).exists()
            with rival.turn(), transaction.atomic(using=rival.alias):
                story.record(1, t)
            user.delete()
        assert not Souvenir.objects.filter(user_id=user.pk).exists()
        story.check()


# Counts meanwhile


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rival", "meanwhile", "is_nested"),
    [
        pytest.param(
            is_strict,
            meanwhile,
            is_nested,
            id=f"{'strict' if is_strict else 'usual'}-{meanwhile}-{nested}",
            marks=pytest.mark.soak if is_strict and (is_nested or not IS_SQLITE) else [],
        )
        for is_strict in (False, True)
        for meanwhile in MEANWHILE
        for nested, is_nested in (("autocommit", False), ("nested", True))
    ],
    indirect=["rival"],
)
def test_count__is_right_with_any_work_between_its_statements(
    rival: Rival, meanwhile: str, is_nested: bool
) -> None:
    def count() -> list[int]:
        counts = []
        for each in RANGES:  # one by one, so that each takes separate statements
            with transaction.atomic(using=rival.alias) if is_nested else nullcontext():
                counts += counting.count_users_of_ranges([each])
        return counts

    number = 0
    first = Story(rival)
    while True:
        story = first.again()
        least = [brute(story.facts, *each) for each in RANGES]
        with at(NOW):
            try:
                counted = rival.interrupt(count, number, getattr(story, meanwhile))
            except StopIteration:
                break
        most = [brute(story.facts, *each) for each in RANGES]
        compared = list(zip(least, counted, most))
        assert all(low <= each <= high for low, each, high in compared), (number, compared)
        number += 1
    assert number


# Processes that wait, and continue afterwards


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Rival]:
    """A rival that waits for locks."""
    with rivalry(tmp_path, seconds=60) as rival:
        yield rival


TABLES = {
    "roll_up": r"(INSERT INTO|UPDATE) .souvenirs_rollup.",
    "prune": r"DELETE",
    "repair": r"(DELETE FROM|UPDATE) .souvenirs_rollup.",
}


@pytest.mark.parametrize("theirs", ["roll_up", "prune", "repair"])
@pytest.mark.parametrize("name", ["roll_up", "prune", "repair"])
def test_work__waits_for_another_process(patient: Rival, name: str, theirs: str) -> None:
    story = Story(patient)
    jobs = []

    def start() -> None:
        jobs.append(patient.start(getattr(story, theirs)))
        jobs[0].wait_until_blocked()

    with at(NOW):
        with patient.ours.execute_wrapper(Before(TABLES[name], start)):
            getattr(story, name)()
        jobs[0].finish()
        story.check()


def test_prune__and_a_deletion_that_waits_for_it_both_succeed(patient: Rival) -> None:
    clear()
    users = people(50)  # enough for databases to use their indexes
    facts = [(who, T + who + n * BUCKET) for who in range(len(users)) for n in range(30)]
    for who, user in enumerate(users):
        record(user, *(t for other, t in facts if other == who))
    jobs = []

    def delete() -> None:
        jobs.append(patient.start(User.objects.get(pk=users[7].pk).delete))
        jobs[0].wait_until_blocked()

    with at(T + DAY):
        maintenance.roll_up()
        with patient.ours.execute_wrapper(Before(TABLES["prune"], delete)):
            pruning.prune(60)
        jobs[0].finish()
        assert not Souvenir.objects.exists()
        assert User.objects.count() == len(users) - 1
        assert_counts(facts)


def test_prune__skips_rows_that_are_being_deleted(patient: Rival) -> None:
    story = Story(patient)
    if patient.is_sqlite:
        return  # on SQLite nobody prunes meanwhile: see above
    with at(NOW):
        story.roll_up()
        patient.begin()
        with patient.turn():
            story.delete_user()
        story.prune()
        left = set(Souvenir.objects.values_list("user_id", flat=True))
        assert left == {story.users[1].pk}
        patient.commit()
        story.check()


def test_roll_up__first_time_in_several_processes(patient: Rival) -> None:
    clear()
    [user] = people(1)
    with at(T):
        souvenez(user)
    jobs = []

    def start() -> None:
        jobs.append(patient.start(maintenance.roll_up))
        jobs[0].wait_until_blocked()

    with at(NOW):
        first = Before("INSERT .*INTO .souvenirs_rollup.", start)
        with patient.ours.execute_wrapper(first):
            maintenance.roll_up()
        jobs[0].finish()
        assert_counts([(0, T)])
    assert Rollup.objects.filter(kind=Rollup.BUCKET).count() == 1


# Slow writers


def late(
    monkeypatch: pytest.MonkeyPatch, traveller: Any, t: float, do: Callable[[], object]
) -> None:
    """Delay the next commit until `t`, and call `do` before it."""
    connection = ours()
    commit = connection.commit

    def slow_commit() -> None:
        monkeypatch.undo()
        traveller.move_to(t)
        do()
        commit()

    monkeypatch.setattr(connection, "commit", slow_commit)


def test_souvenez__leaves_a_mark_if_it_returns_after_the_bucket_is_due(
    rival: Rival, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear()
    [user] = people(1)
    with at(T + BUCKET - 1) as traveller:
        roll_up_meanwhile = partial(rival.do, maintenance.roll_up)
        late(monkeypatch, traveller, T + BUCKET + GRACE_SECONDS, roll_up_meanwhile)
        souvenez(user)
        assert list(DirtyBucket.objects.values_list("bucket", flat=True)) == [T]
        rival.settle()
        assert_counts([(0, T + BUCKET - 1)])
        maintenance.roll_up()
        assert_counts([(0, T + BUCKET - 1)])
        assert not DirtyBucket.objects.exists()


@pytest.mark.parametrize(("seconds", "marks"), [(-1, 0), (59, 0), (61, 1), (500, 1)])
def test_souvenez__leaves_a_mark_if_it_returns_half_the_grace_period_late(
    monkeypatch: pytest.MonkeyPatch, seconds: int, marks: int
) -> None:
    [user] = people(1)
    with at(T + BUCKET - 1) as traveller:
        late(monkeypatch, traveller, T + BUCKET + seconds, lambda: None)
        souvenez(user)
    assert DirtyBucket.objects.count() == marks


def test_souvenez__of_a_bucket_that_has_ended_leaves_a_mark() -> None:
    [user] = people(1)
    with at(T + BUCKET):
        souvenez(user, when=timestamps.to_datetime(T + BUCKET - 1))
    assert [mark.bucket for mark in DirtyBucket.objects.all()] == [T]


def test_souvenez__in_a_transaction_always_leaves_a_mark() -> None:
    [user] = people(1)
    with at(T), transaction.atomic(using=ours().alias):
        souvenez(user)
    assert [mark.bucket for mark in DirtyBucket.objects.all()] == [T]


def test_souvenez__usually_leaves_no_mark() -> None:
    [user] = people(1)
    with at(T):
        souvenez(user)
    assert Souvenir.objects.exists()
    assert not DirtyBucket.objects.exists()


# Everything at the same time

SECONDS = 4
WRITERS = 4
STAYERS = 6


class Crowd:
    """Threads that record, roll up, prune, delete and count until the time is over. `facts` is the
    activity that was recorded successfully."""

    def __init__(self) -> None:
        self.start = int(time.time()) // BUCKET * BUCKET - 30 * BUCKET
        self.users = people(STAYERS)
        # Everybody was here before: the first rows of two users at once can deadlock on MariaDB
        self.facts: list[tuple[Any, float]] = []
        for who, user in enumerate(self.users):
            record(user, self.start)
            self.facts.append((who, self.start))
        self.errors: list[str] = []
        self.is_over = threading.Event()
        self.done: Counter[str] = Counter()

    def any_time(self, chance: random.Random) -> float:
        return self.start + chance.randrange(30 * BUCKET)

    def write(self, chance: random.Random) -> None:
        who, t = chance.randrange(STAYERS), self.any_time(chance)
        user, way = self.users[who], chance.randrange(3)
        if way == 0:
            souvenez(user, when=timestamps.to_datetime(t), ratelimit=False)
        elif way == 1:
            with transaction.atomic(using=ours().alias):
                souvenez(user, when=timestamps.to_datetime(t), ratelimit=False)
                time.sleep(chance.random() / 50)
        else:
            record(user, t)
        self.facts.append((who, t))

    def roll_up(self, chance: random.Random) -> None:
        maintenance.roll_up(chance.choice([None, 1, 5]))
        time.sleep(0.01)

    def prune(self, chance: random.Random) -> None:
        pruning.prune(1)
        time.sleep(0.02)

    def repair(self, chance: random.Random) -> None:
        repair.repair()
        time.sleep(0.3)

    def delete(self, chance: random.Random) -> None:
        name = f"leaver{chance.getrandbits(60)}"
        user = User.objects.create(username=name)
        times = [self.any_time(chance) for _ in range(5)]
        record(user, *times)
        self.facts += [(name, t) for t in times]
        if chance.random() < 0.5:
            time.sleep(0.05)
        user.delete()

    def count(self, chance: random.Random) -> None:
        """A user who was counted once is counted from then on."""
        first, last = sorted(chance.sample(range(31), 2))
        span = Interval(self.start + first * BUCKET, self.start + last * BUCKET)
        least = brute(list(self.facts), *span)
        with transaction.atomic(using=ours().alias) if chance.random() < 0.5 else nullcontext():
            [counted] = counting.count_users_of_ranges([span])
        assert counted >= least

    def run(self) -> None:
        work = [self.write] * WRITERS + [self.roll_up] * 2
        work += [self.prune, self.repair, self.delete, self.count]

        def loop(number: int) -> None:
            chance = random.Random(number)
            try:
                while True:
                    work[number](chance)
                    self.done[work[number].__name__] += 1
                    if self.is_over.is_set():  # each has done its work at least once
                        return
            except BaseException as error:
                self.errors.append(f"{work[number].__name__}: {error!r}")
            finally:
                connections.close_all()

        threads = [threading.Thread(target=loop, args=[n]) for n in range(len(work))]
        for thread in threads:
            thread.start()
        self.is_over.wait(SECONDS)
        self.is_over.set()
        for thread in threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.where("sqlite" not in ours().settings_dict["ENGINE"])  # on SQLite they only wait
def test_all_at_once__loses_nothing_and_raises_nothing() -> None:
    crowd = Crowd()
    crowd.run()
    assert crowd.errors == []
    assert set(crowd.done) == {"write", "roll_up", "prune", "repair", "delete", "count"}
    buckets = [
        Interval(crowd.start + n * BUCKET, crowd.start + (n + 1) * BUCKET) for n in range(30)
    ]
    for follow_up in (lambda: None, maintenance.roll_up, lambda: pruning.prune(1), repair.repair):
        follow_up()
        expected = [brute(crowd.facts, *each) for each in buckets]
        assert counting.count_users_of_ranges(buckets) == expected
        assert_counts(crowd.facts)
