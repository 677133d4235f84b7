"""Whatever happens to a site, in whatever order, its counts equal what happened."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings as django_settings
from django.db import transaction
from django.test import override_settings
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from souvenirs import backfill, timestamps
from souvenirs.control import active_users_between, souvenez
from souvenirs.history import counting, maintenance, pruning, repair
from souvenirs.history.cohorts import Series
from souvenirs.history.figures import KeptFigures, read_figures
from souvenirs.models import Souvenir
from souvenirs.periods import BUCKET, Interval, bucket_containing, calendar_period
from tests.growth import calendar
from tests.history import DAY, HOUR, MINUTE, at, brute, clear, people, to_when, unix
from tests.people import User, ours, with_databases

pytestmark = with_databases

# Clocks are set forward at the end of the second day; if USE_TZ is False, a later start is simpler
START = unix(2024, 3, 29, 22) if django_settings.USE_TZ else unix(2024, 5, 29, 22)
ZONES = ["Europe/Paris", "UTC", "America/St_Johns", "Pacific/Chatham", "Pacific/Apia"]
PEOPLE = 4

who = st.integers(0, PEOPLE - 1)
ago = st.sampled_from([0, 1, BUCKET, HOUR, DAY]) | st.integers(0, 40 * DAY)
elapsed = st.sampled_from([1, MINUTE, 17 * MINUTE, HOUR, DAY]) | st.integers(1, 3 * DAY)


class RollBackError(Exception):
    pass


class Machine(RuleBasedStateMachine):
    """`facts` is everything that happened. Deleted users stay in it, and a user who replaces one
    has the same number but a new name."""

    @initialize()
    def begin(self) -> None:
        clear()
        User.objects.all().delete()
        clear()
        self.now = float(START)
        self.kept = KeptFigures()
        self.users = people(PEOPLE)
        self.names = list(range(PEOPLE))
        self.facts: list[tuple[int, float]] = []
        # otherwise exact to the bucket: something was pruned, or a user deleted
        self.is_exact = True
        self.zone = override_settings(TIME_ZONE="Europe/Paris")
        self.zone.enable()

    def teardown(self) -> None:
        if hasattr(self, "zone"):
            self.zone.disable()

    def happened(self, number: int, t: float) -> None:
        self.facts.append((self.names[number], t))

    @rule(seconds=elapsed)
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(number=who)
    def visit(self, number: int) -> None:
        with at(self.now):
            if souvenez(self.users[number]) == "added":
                self.happened(number, self.now)

    @rule(number=who, seconds=ago)
    def record_late(self, number: int, seconds: int) -> None:
        t = self.now - seconds
        with at(self.now):
            souvenez(self.users[number], when=to_when(t), ratelimit=False)
        self.happened(number, t)

    @rule(number=who, seconds=ago, is_kept=st.booleans())
    def record_in_a_transaction(self, number: int, seconds: int, is_kept: bool) -> None:
        t = self.now - seconds
        with at(self.now), suppress(RollBackError), transaction.atomic(using=ours().alias):
            souvenez(self.users[number], when=to_when(t), ratelimit=False)
            if not is_kept:
                raise RollBackError
        if is_kept:
            self.happened(number, t)

    @rule(visits=st.lists(st.tuples(who, ago), max_size=5))
    def create_in_bulk(self, visits: list[tuple[int, int]]) -> None:
        times = [(number, self.now - seconds) for number, seconds in visits]
        with at(self.now):
            Souvenir.objects.bulk_create(
                Souvenir(user_id=self.users[number].pk, when=to_when(t)) for number, t in times
            )
        for number, t in times:
            self.happened(number, t)

    @rule(visits=st.lists(st.tuples(who, ago), max_size=5))
    def load_a_backfill(self, visits: list[tuple[int, int]]) -> None:
        numbers = {user.pk: number for number, user in enumerate(self.users)}
        before = set(Souvenir.objects.values_list("pk", flat=True))
        entries = [
            backfill.Entry(line, str(self.users[number].pk), self.now - seconds)
            for line, (number, seconds) in enumerate(visits)
        ]
        with at(self.now):
            backfill.load(entries)
        for row in Souvenir.objects.exclude(pk__in=before):
            self.happened(numbers[row.user_id], timestamps.to_seconds(row.when))

    @rule(buckets=st.none() | st.integers(1, 5))
    def roll_up(self, buckets: int | None) -> None:
        with at(self.now):
            maintenance.roll_up(buckets)

    @rule(seconds=st.sampled_from([0, HOUR, DAY, 10 * DAY]))
    def prune(self, seconds: int) -> None:
        with at(self.now):
            if pruning.prune(seconds):
                self.is_exact = False

    @rule(number=who)
    def delete(self, number: int) -> None:
        with at(self.now):
            self.users[number].delete()
        name = max(self.names) + 1
        self.users[number] = User.objects.create(username=f"user{name}")
        self.names[number] = name
        self.is_exact = False

    @rule()
    def repair(self) -> None:
        with at(self.now):
            repair.repair()

    # otherwise the stored times would change their meaning
    @precondition(lambda self: django_settings.USE_TZ)
    @rule(name=st.sampled_from(ZONES))
    def move(self, name: str) -> None:
        self.zone.disable()
        self.zone = override_settings(TIME_ZONE=name)
        self.zone.enable()

    @rule()
    def read_kept_figures(self) -> None:
        zone = ZoneInfo(django_settings.TIME_ZONE)
        with at(self.now):
            today = calendar_period("day", self.now, zone).start
            days = {"day": Series(calendar("day", self.now - 30 * DAY, today, zone), (1,), 7)}
            assert self.kept.read(days, ours().alias) == read_figures(days, ours().alias)

    def to_bounds(self, bounds: tuple[int, int]) -> Interval:
        start, end = (self.now - seconds for seconds in bounds)
        if not self.is_exact:
            start, end = bucket_containing(start), bucket_containing(end)
        return Interval(start, end)

    @rule(queried=st.lists(st.tuples(ago, ago), min_size=1, max_size=10))
    def count(self, queried: list[tuple[int, int]]) -> None:
        ranges = [self.to_bounds(bounds) for bounds in queried]
        with at(self.now):
            counted = counting.count_users_of_ranges(ranges)
        assert counted == [brute(self.facts, *each) for each in ranges]

    @rule(bounds=st.tuples(ago, ago))
    def list_users(self, bounds: tuple[int, int]) -> None:
        start, end = self.to_bounds(bounds)
        found = {user.pk for user in active_users_between(to_when(start), to_when(end))}
        active = {name for name, t in self.facts if start <= t < end}
        assert found == {
            user.pk for name, user in zip(self.names, self.users, strict=True) if name in active
        }

    @invariant()
    def all_are_counted(self) -> None:
        if hasattr(self, "facts"):
            everything = Interval(START - 100 * DAY, bucket_containing(self.now) + BUCKET)
            assert counting.count_users_of_ranges([everything]) == [brute(self.facts, *everything)]


@pytest.mark.slow
def test_history__counts_equal_what_happened() -> None:
    machine: Any = Machine
    run_state_machine_as_test(machine, settings=settings(stateful_step_count=60))
