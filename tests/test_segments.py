"""Active users and accounts by what users have now, against brute force over what happened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import FieldError
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from souvenirs import reports, timestamps
from souvenirs.control import count_active_users, souvenez
from souvenirs.history import pruning
from souvenirs.models import Souvenir
from souvenirs.periods import BUCKET, calendar_period
from souvenirs_metrics.collector import SouvenirsCollector
from tests import settings as site_settings
from tests import stores
from tests.history import DAY, HOUR, MINUTE, at, clear, people, record, roll_up, unix
from tests.people import User, with_databases
from tests.segments.models import Club, ClubMember, Membership, Organization, Subscription

pytestmark = with_databases

joined = pytest.mark.where("routed" not in site_settings.SHAPE)  # segments are read by a join

NOON = unix(2024, 5, 14, 10)  # in Paris
PLANS = ["free", "pro"]  # of the choices, "team" is left out
SEGMENTS = {
    "plan": {"FIELD": "subscription__plan", "VALUES": PLANS},
    "any_plan": "subscription__plan",
    "trial": "subscription__is_trial",
    "seats": {"FIELD": "subscription__seats", "VALUES": [1, 2]},
    "sector": {"FIELD": "subscription__organization__sector", "VALUES": ["health"]},
    "role": {"FIELD": "memberships__role", "VALUES": ["owner"]},
    "club": {"FIELD": "clubs__name", "VALUES": ["chess"]},
}
SECTORS = ["health", "law", None]
CLUBS = ["chess", "go", "tennis"]
ROLES = ["owner", "editor", "guest"]

Facts = dict[str, Any]  # what a user has, by segment: a value, or a set of values


@pytest.fixture(params=["database", "redis"])
def store(request: Any) -> Iterator[Any]:
    entry = stores.DATABASE
    if request.param == "redis":
        entry = request.getfixturevalue("redis_entry")
    with stores.using(entry) as made:
        yield made


class Site:
    """Users, and what each of them has now."""

    def __init__(self) -> None:
        for model in (Subscription, Membership, ClubMember, Club, Organization):
            model._base_manager.all().delete()
        User.objects.all().delete()
        clear()
        self.organizations = [
            Organization.objects.create(slug=f"o{n}", sector=sector)
            for n, sector in enumerate(SECTORS)
        ]
        self.clubs = [Club.objects.create(name=name) for name in CLUBS]
        self.users = people(6)

    def set(self, number: int, have: Facts) -> None:
        user = self.users[number]
        if user.pk is None:
            return
        self.forget(user)
        if have["subscription"]:
            plan, trial, seats, organization = have["subscription"]
            Subscription.objects.create(
                user_id=user.pk, plan=plan, is_trial=trial, seats=seats,
                organization=None if organization is None else self.organizations[organization],
            )  # fmt: skip
        for role, organization in have["memberships"]:
            Membership.objects.create(
                user_id=user.pk, role=role, organization=self.organizations[organization]
            )
        for club in have["clubs"]:
            ClubMember.objects.create(user_id=user.pk, club=self.clubs[club])

    def forget(self, user: Any) -> None:
        for model in (Subscription, Membership, ClubMember):
            model._base_manager.filter(user_id=user.pk).delete()

    def delete(self, number: int) -> None:
        if self.users[number].pk is not None:
            key = self.users[number].pk
            self.users[number].delete()
            assert not User.objects.filter(pk=key).exists()


def values_of(have: Facts) -> dict[str, set[Any]]:
    """The set of a user's values on each path; {None} where there is nothing."""
    plan, trial, seats, organization = have["subscription"] or (None, None, None, None)
    roles = {role for role, _ in have["memberships"]}
    clubs = {CLUBS[club] for club in have["clubs"]}
    return {
        "subscription__plan": {plan},
        "subscription__is_trial": {trial},
        "subscription__seats": {seats},
        "subscription__organization__sector": {
            None if organization is None else SECTORS[organization]
        },
        "subscription__organization__slug": {None if organization is None else f"o{organization}"},
        "memberships__role": roles or {None},
        "memberships__organization__slug": {f"o{o}" for _, o in have["memberships"]} or {None},
        "clubs__name": clubs or {None},
    }


HAVE = st.fixed_dictionaries(
    {
        "subscription": st.none()
        | st.tuples(
            st.sampled_from(["free", "pro", "team", None]),
            st.sampled_from([True, False, None]),
            st.sampled_from([1, 2, 3, None]),
            st.sampled_from([0, 1, 2, None]),
        ),
        "memberships": st.lists(st.tuples(st.sampled_from(ROLES), st.integers(0, 2)), max_size=3),
        "clubs": st.sets(st.integers(0, 2)),
    }
)
USER = st.integers(0, 5)
OPS = st.lists(
    st.tuples(st.just("visit"), USER, st.integers(0, 40 * 24 * 60))  # minutes before now
    | st.tuples(st.just("set"), USER, HAVE)
    | st.tuples(st.just("delete"), USER),
    max_size=30,
)
EMPTY: Facts = {"subscription": None, "memberships": [], "clubs": set()}


def play(site: Site, ops: list[Any]) -> tuple[dict[int, list[float]], dict[int, Facts]]:
    """Do it all, visits in the order of time. Return the visits, and what existing users have."""
    visits: dict[int, list[float]] = defaultdict(list)
    have = dict.fromkeys(range(6), EMPTY)
    for _, number, ago in sorted((op for op in ops if op[0] == "visit"), key=lambda op: -op[2]):
        with at(NOON - ago * MINUTE):
            souvenez(site.users[number])
        visits[number].append(NOON - ago * MINUTE)
    for op, number, *rest in ops:
        if op == "set" and number in have:
            site.set(number, *rest)
            (have[number],) = rest
        elif op == "delete" and number in have:
            site.delete(number)
            del have[number]
    return visits, have


def samples() -> dict[str, dict[tuple[str, ...], float]]:
    """The samples of each of our families, by their labels."""
    found: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    with at(NOON):
        for family in SouvenirsCollector().collect():
            for sample in family.samples:
                name = sample.name.removeprefix("souvenirs_")
                found[name][tuple(sample.labels.values())] = sample.value
    stores.join_filling()
    return found


def label(value: Any, declared: list[Any]) -> str:
    if value is None:
        return "none"
    return str(value).lower() if value in declared else "other"


DECLARED: dict[str, list[Any]] = {
    "plan": PLANS, "any_plan": ["free", "pro", "team"], "trial": [True, False], "seats": [1, 2],
    "sector": ["health"], "role": ["owner"], "club": ["chess"],
}  # fmt: skip
LENGTHS = {"1h": HOUR, "1d": DAY, "7d": 7 * DAY, "30d": 30 * DAY}


@joined
@given(ops=OPS)
@override_settings(
    SOUVENIRS_METRICS_SEGMENTS=SEGMENTS, SOUVENIRS_METRICS_ACCOUNTS="memberships__organization"
)
def test_metrics__are_what_brute_force_counts(store: Any, ops: list[Any]) -> None:
    site = Site()
    visits, have = play(site, ops)
    # With Redis the table knows the slot, which is an hour of the clock
    slot = HOUR if store.name == "redis" else MINUTE
    starts = {
        **{("window", name): (NOON - s) // slot * slot for name, s in LENGTHS.items()},
        **{
            ("period", name): calendar_period(name, NOON, timestamps.conf.zone).start
            for name in ("day", "week", "month", "quarter", "year")
        },
    }
    if store.name == "redis":
        del starts["window", "1h"]
    expected: dict[str, Counter[tuple[str, ...]]] = {"window": Counter(), "period": Counter()}
    accounts: dict[str, dict[tuple[str, ...], int]] = {"window": {}, "period": {}}
    for (kind, name), start in starts.items():
        seen = [n for n in have if any(t >= start for t in visits[n])]
        for segment, declared in DECLARED.items():
            entry: Any = SEGMENTS[segment]
            path = entry if isinstance(entry, str) else entry["FIELD"]
            for each in [*(label(v, declared) for v in declared), "none", "other"]:
                expected[kind][segment, each, name] += 0
            for number in seen:
                for each in {label(value, declared) for value in values_of(have[number])[path]}:
                    expected[kind][segment, each, name] += 1
        slugs = {o for n in seen for o in values_of(have[n])["memberships__organization__slug"]}
        accounts[kind][(name,)] = len(slugs - {None})
    shown = samples()
    assert shown["segment_active_users"] == dict(expected["window"])
    assert shown["calendar_segment_active_users"] == dict(expected["period"])
    assert shown["active_accounts"] == accounts["window"]
    assert shown["calendar_active_accounts"] == accounts["period"]
    assert shown["up"] == {(): 1}


@given(ops=OPS, days=st.integers(0, 41), rolled_up=st.booleans(), pruned=st.booleans())
def test_counts_of_the_past__are_what_brute_force_counts(
    ops: list[Any], days: int, rolled_up: bool, pruned: bool
) -> None:
    site = Site()
    visits, have = play(site, ops)
    if rolled_up:
        roll_up(NOON)
        if pruned:
            with at(NOON):
                pruning.prune(NOON - 20 * DAY)
    start = calendar_period("day", NOON - days * DAY, timestamps.conf.zone).start
    active = [n for n, times in visits.items() if any(start <= t < NOON + BUCKET for t in times)]
    bounds = timestamps.to_datetime(start), timestamps.to_datetime(NOON + BUCKET)
    for path in values_of(EMPTY):
        expected = Counter(value for n in active if n in have for value in values_of(have[n])[path])
        if deleted := sum(n not in have for n in active):
            expected["deleted"] = deleted
        counted = count_active_users(*bounds, by=path)
        assert counted == expected
        [usage] = reports.usage_for_periods([bounds], by=path)
        assert usage["usage"]["active_users_by"] == expected
        assert usage["usage"]["active_users"] == len(active) == count_active_users(*bounds)
    rows = Souvenir.objects.filter(when__gte=bounds[0])
    by_rows = count_active_users(qs=rows, by="memberships__role")
    assert by_rows == Counter(
        value
        for n in set(active)
        if n in have and (not pruned or any(t >= max(start, NOON - 20 * DAY) for t in visits[n]))
        for value in values_of(have[n])["memberships__role"]
    )


# Counts of the past


@pytest.fixture
def site() -> Site:
    return Site()


def test_by__a_relation_counts_by_its_key(site: Site) -> None:
    site.set(0, {**EMPTY, "subscription": ("pro", None, None, 1)})
    record(site.users[0], NOON)
    record(site.users[1], NOON)
    counts = count_active_users(by="subscription__organization")
    assert counts == {site.organizations[1].pk: 1, None: 1}


@pytest.mark.parametrize("path", ["plan", "subscription__plann", "username__", ""])
def test_by__a_path_that_leads_nowhere(site: Site, path: str) -> None:
    record(site.users[0], NOON)
    with pytest.raises(FieldError):
        count_active_users(by=path)
