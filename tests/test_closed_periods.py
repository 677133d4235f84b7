"""Growth, retention and active days on the page: brute force, what is cached, and what is left
out."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import router
from django.test import TestCase, override_settings
from hypothesis import given
from hypothesis import strategies as st

from souvenirs.conf import conf
from souvenirs.control import souvenez
from souvenirs.history import pruning
from souvenirs.models import Souvenir
from souvenirs.periods import NAMES, Interval, bucket_containing, previous_calendar_period
from souvenirs.users import has_date_joined
from souvenirs_metrics.readers.base import Reader
from souvenirs_metrics.readers.closed_periods import AGES, ClosedPeriods
from tests.history import DAY, HOUR, at, clear, people, record, roll_up, to_when, unix
from tests.people import User, site, with_databases

Facts = list[tuple[int, float]]
Samples = dict[tuple[str, str, str], float]  # metric, period, change or age or le

in_transaction = pytest.mark.django_db(databases=list(django_settings.DATABASES))

T = unix(2024, 1, 1)
BOUNDS = (1, 2, 3, 5, 7, 10, 14, 21, 28)


def read(reader: Reader, now: float) -> Samples:
    with at(now):
        families = reader.read(now, nullcontext)
    return {
        (
            sample.name.removeprefix("souvenirs_"),
            sample.labels.get("period", ""),
            next((sample.labels[n] for n in ("change", "age", "le") if n in sample.labels), ""),
        ): sample.value
        for family in families
        for sample in family.samples
    }


def brute(facts: Facts, founders: set[int], now: float) -> Samples:
    """Computed from the definitions. `founders` had joined before the first fact."""
    record = bucket_containing(min(t for _, t in facts))
    settled = record if has_date_joined() else record + 28 * DAY

    def before(period: Interval, name: str, times: int = 1) -> Interval:
        for _ in range(times):
            period = previous_calendar_period(name, period.start, conf.zone)
        return period

    def active(period: Interval) -> set[int]:
        return {who for who, t in facts if period.start <= t < period.end}

    def new(period: Interval) -> set[int] | None:
        if period.start < settled:
            return None
        return active(period) - {who for who, t in facts if t < period.start} - founders

    found: Samples = {}
    for name in NAMES:
        last = previous_calendar_period(name, now, conf.zone)
        previous, users = before(last, name), active(last)
        if record <= previous.start:
            metric, joined = "previous_calendar_growth_users", new(last)
            found[metric, name, "retained"] = len(users & active(previous))
            found[metric, name, "churned"] = len(active(previous) - users)
            if joined is not None:
                found[metric, name, "new"] = len(joined)
                found[metric, name, "resurrected"] = len(users - active(previous) - joined)
        for age in AGES.get(name, ()):
            cohort = new(before(last, name, age))
            if cohort is not None:
                found["retention_cohort_users", name, str(age)] = len(cohort)
                found["retention_retained_users", name, str(age)] = len(cohort & users)
    days = [previous_calendar_period("day", now, conf.zone)]
    while len(days) < 28:
        days.append(before(days[-1], "day"))
    if record <= days[-1].start:
        often = Counter(Counter(who for day in days for who in active(day)).values())
        for bound in BOUNDS:
            users_below = sum(n for times, n in often.items() if times <= bound)
            found["active_days_bucket", "", f"{bound}.0"] = users_below
        found["active_days_bucket", "", "+Inf"] = often.total()
        found["active_days_gcount", "", ""] = often.total()
        found["active_days_gsum", "", ""] = sum(times * n for times, n in often.items())
    return found


@pytest.mark.slow
@in_transaction
@given(
    past=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 120 * DAY)), min_size=1, max_size=15),
    founders=st.sets(st.integers(0, 5), max_size=2),
    steps=st.lists(
        st.tuples(
            st.sampled_from([1, HOUR, DAY, 5 * DAY, 31 * DAY]),  # the time that passes
            st.lists(  # what is recorded then: (who, how long ago)
                st.tuples(st.integers(0, 5), st.sampled_from([0, HOUR, DAY, 9 * DAY, 200 * DAY])),
                max_size=3,
            ),
            st.sampled_from(["", "roll up", "prune", "delete"]),
        ),
        max_size=4,
    ),
    zone=st.sampled_from(["UTC", "Europe/Paris", "Asia/Kolkata"]),
)
def test_read__equals_brute_force_at_each_step_of_a_replay(
    past: Facts,
    founders: set[int],
    steps: list[tuple[int, Facts, str]],
    zone: str,
) -> None:
    with override_settings(TIME_ZONE=zone, SOUVENIRS_RATELIMIT_SECONDS=0):
        User.objects.all().delete()
        clear()
        users: list[Any] = people(6)
        if has_date_joined():
            for number in founders:
                User.objects.filter(pk=users[number].pk).update(date_joined=site(to_when(0)))
        else:
            founders = set()
        facts = [(who, float(T + seconds)) for who, seconds in past]
        for who, t in facts:
            record(users[who], t)
        kept = ClosedPeriods()
        now = float(T + 120 * DAY + 1)
        roll_up(now)
        assert read(kept, now) == brute(facts, founders, now)
        deleted: set[int] = set()
        for seconds, recorded, happening in steps:
            now += seconds
            for who, ago in recorded:
                if who not in deleted:
                    with at(now):
                        souvenez(users[who], when=to_when(now - ago))
                    facts.append((who, now - ago))
            if happening == "roll up":
                roll_up(now)
            elif happening == "prune":
                roll_up(now)
                with at(now):
                    pruning.prune(older_than=10 * DAY)
            elif happening == "delete":
                # If users are in another database, ours is written when theirs commits
                aliases = {router.db_for_write(model) for model in (User, Souvenir)}
                with at(now), ExitStack() as stack:
                    for alias in aliases:
                        commit = TestCase.captureOnCommitCallbacks(using=alias, execute=True)
                        stack.enter_context(commit)
                    users[5 - len(deleted)].delete()
                deleted.add(5 - len(deleted))
                founders = founders - deleted
            found, expected = read(kept, now), brute(facts, founders, now)
            if happening in ("roll up", "prune") or found:
                assert found == expected
            roll_up(now)
            assert read(kept, now) == expected


@with_databases
def test_read__has_the_figures_at_midnight() -> None:
    ann, bob, eve = people(3)
    midnight = T + 400 * DAY
    for user, days in ((ann, (1, 2)), (bob, (2,)), (eve, (1,))):
        for ago in (*days, *((399,) if user is bob else ())):
            souvenez(user, when=to_when(midnight - ago * DAY + HOUR))
    with override_settings(TIME_ZONE="UTC"):
        roll_up(midnight - HOUR)
        souvenez(eve, when=to_when(midnight - 5))
        souvenez(bob, when=to_when(midnight + 0.5))
        kept = ClosedPeriods()
        for now in (midnight + 1, midnight + HOUR):
            found = read(kept, now)
            of_day = {
                change: found.get(("previous_calendar_growth_users", "day", change))
                for change in ("new", "retained", "resurrected", "churned")
            }
            if has_date_joined():
                assert of_day == {"new": 1, "retained": 1, "resurrected": 0, "churned": 1}
            roll_up(now)


@in_transaction
def test_read__has_nothing_if_the_history_is_not_rolled_up() -> None:
    (ann,) = people(1)
    record(ann, *(T + day * DAY for day in range(0, 90, 3)))
    assert read(ClosedPeriods(), T + 90 * DAY) == {}
    roll_up(T + 60 * DAY)
    assert read(ClosedPeriods(), T + 90 * DAY) == {}


@in_transaction
def test_read__has_nothing_without_souvenirs() -> None:
    assert read(ClosedPeriods(), T) == {}
