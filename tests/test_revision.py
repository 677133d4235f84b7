"""The revision of closed history changes with each transaction that changes closed history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import router, transaction

from souvenirs import backfill
from souvenirs.control import souvenez
from souvenirs.history import deletion, maintenance, progress, pruning, repair
from souvenirs.history.progress import Revision
from souvenirs.models import DirtyBucket, Souvenir, UserDeletion, Watermark
from tests.history import DAY, HOUR, MINUTE, at, people, record, roll_up, to_when, unix
from tests.people import ours, with_databases

pytestmark = with_databases

TODAY = unix(2024, 5, 14, 22)  # midnight in Paris
NOW = TODAY + 10 * HOUR
PAST = TODAY - 3 * DAY + HOUR


def revision() -> Revision:
    return progress.revision(TODAY, router.db_for_read(Souvenir))


def load(user: Any) -> None:
    backfill.load([backfill.Entry(1, str(user.pk), PAST)])


def create(user: Any) -> None:
    Souvenir.objects.create(user_id=user.pk, when=to_when(PAST))


def souvenez_late(user: Any) -> None:
    souvenez(user, when=to_when(PAST))


def souvenez_in_a_transaction(user: Any) -> None:
    with transaction.atomic(using=ours().alias):
        souvenez(user, when=to_when(PAST))


def delete(user: Any) -> None:
    user.delete()


def delete_from_another_database(user: Any) -> None:
    deletion.delete_rows([user.pk], ours().alias)


def insert_raw_and_repair(user: Any) -> None:
    Souvenir.objects.filter(user_id=user.pk).update(when=to_when(PAST))
    repair.repair()


CHANGES: list[Callable[[Any], object]] = [
    load,
    create,
    lambda user: record(user, PAST),
    souvenez_late,
    souvenez_in_a_transaction,
    delete,
    delete_from_another_database,
    insert_raw_and_repair,
    lambda user: pruning.prune(DAY),
]


@pytest.mark.parametrize("change", CHANGES)
def test_revision__differs_after_a_change_of_closed_history(
    change: Callable[[Any], object],
) -> None:
    users = people(2)
    for user in users:
        record(user, PAST - DAY, NOW - 3 * HOUR)
    roll_up(NOW)
    with at(NOW):
        before = revision()
        change(users[0])
        after = revision()
        assert after != before
        maintenance.roll_up()  # what is marked as dirty
        assert revision()[:1] != before[:1] or after.deletions != before.deletions


def test_revision__differs_after_closed_history_is_rolled_up() -> None:
    [user] = people(1)
    record(user, PAST, NOW - 3 * HOUR)
    with at(NOW):
        DirtyBucket.objects.all().delete()
        before = revision()
        maintenance.roll_up(buckets=4)
        assert revision() != before
        maintenance.roll_up()
        before = revision()
        record(user, PAST)
        marked = revision()
        maintenance.roll_up()
        assert revision() not in (before, marked)


def test_revision__stays_while_the_present_is_recorded_and_rolled_up() -> None:
    users = people(2)
    record(users[0], PAST)
    roll_up(NOW)
    before = revision()
    for minutes in range(0, 120, 20):
        with at(NOW + minutes * MINUTE):
            souvenez(users[minutes % 2])
            record(users[1], NOW + minutes * MINUTE)
            maintenance.roll_up()
            maintenance.roll_up(buckets=4)
    assert Watermark.objects.get().rolled_up > NOW
    assert revision() == before


def test_revision__differs_after_a_transaction_of_yesterday_commits() -> None:
    """It begins, and writes its mark, before that day has ended."""
    [user] = people(1)
    record(user, PAST)
    roll_up(TODAY - HOUR)
    with at(TODAY - 20 * MINUTE):
        block = transaction.atomic(using=ours().alias)
        block.__enter__()
        souvenez(user)
    with at(TODAY + HOUR):
        block.__exit__(None, None, None)
    with at(TODAY + HOUR):
        after = revision()
    DirtyBucket.objects.all().delete()
    assert after != revision()


def test_revision__notices_rows_without_a_mark_around_midnight() -> None:
    users = people(2)
    record(users[0], PAST)
    roll_up(TODAY - HOUR)
    with at(TODAY - 1):
        souvenez(users[0])
        before = revision()
        souvenez(users[1])
        assert not DirtyBucket.objects.filter(bucket__gt=PAST + DAY).exists()
        assert revision() != before


def test_revision__counts_each_deletion_once() -> None:
    users = people(4)
    record(users[0], PAST)
    roll_up(NOW)
    with at(NOW):
        before = revision().deletions
        users.pop().delete()
        users.pop().delete()
        assert revision().deletions == before + 2
    roll_up(NOW + HOUR)
    assert not UserDeletion.objects.exists()
    assert revision().deletions == before + 2
    with at(NOW + HOUR):
        users.pop().delete()
    assert revision().deletions == before + 3


def test_revision__differs_after_the_tables_were_emptied() -> None:
    [user] = people(1)
    record(user, PAST)
    roll_up(NOW)
    before = revision()
    Watermark.objects.all().delete()
    roll_up(NOW + 1)
    assert revision().raised != before.raised
