"""Active users and accounts by current attributes of users, compared with brute force over what
happened."""

from __future__ import annotations

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
from django.core.checks import run_checks
from django.core.exceptions import FieldError
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections, router
from django.db.models import Count
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from souvenirs import reports, timestamps
from souvenirs.checks import TAG
from souvenirs.control import active_users_between, count_active_users, souvenez
from souvenirs.history import pruning
from souvenirs.models import LastSeen, Souvenir
from souvenirs.periods import BUCKET, calendar_period
from souvenirs_metrics import caching, prometheus_history
from souvenirs_metrics.collector import SouvenirsCollector
from souvenirs_metrics.readers.segments import ActiveAccounts, Segments
from tests import settings as site_settings
from tests import stores
from tests.history import DAY, HOUR, MINUTE, at, clear, people, record, roll_up, unix
from tests.people import User, with_databases
from tests.segments.models import Club, ClubMember, Membership, Organization, Subscription

pytestmark = with_databases

joined = pytest.mark.where("routed" not in site_settings.SHAPE)  # segments are read with a join

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

Facts = dict[str, Any]  # the attributes of a user by segment: a value, or a set of values


@pytest.fixture(params=["database", "redis"])
def store(request: Any) -> Iterator[Any]:
    entry = stores.DATABASE
    if request.param == "redis":
        entry = request.getfixturevalue("redis_entry")
    with stores.using(entry) as made:
        yield made


class Site:
    """Users, and the current attributes of each."""

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
    """The set of a user's values on each path; {None} without any."""
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
    """Perform all steps, visits in chronological order. Return the visits, and the attributes of
    the existing users."""
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
    stores.join_resync()
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
def test_metrics__equal_brute_force(store: Any, ops: list[Any]) -> None:
    site = Site()
    visits, have = play(site, ops)
    # With Redis the table only knows the slot, which is an hour of the clock
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


@pytest.mark.slow
@given(ops=OPS, days=st.integers(0, 41), rolled_up=st.booleans(), pruned=st.booleans())
def test_counts_of_the_past__equal_brute_force(
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
def test_by__an_unknown_path(site: Site, path: str) -> None:
    record(site.users[0], NOON)
    with pytest.raises(FieldError):
        count_active_users(by=path)


def test_by__a_path_to_a_json_field(site: Site) -> None:
    record(site.users[0], NOON)
    user_pk = site.users[0].pk
    Subscription.objects.create(user_id=user_pk, features={"beta": True})
    with pytest.raises(FieldError, match="'subscription__features' leads to documents or lists"):
        count_active_users(by="subscription__features")


def test_by__a_path_with_a_report_function_of_the_site(site: Site) -> None:
    site.set(0, {**EMPTY, "subscription": ("pro", None, None, None)})
    record(site.users[0], NOON)
    with override_settings(SOUVENIRS_USAGE_REPORTS_FUNCTION="tests.test_segments.plain_usage"):
        [usage] = reports.calendar_monthly_usage(
            timestamps.to_datetime(NOON),
            timestamps.to_datetime(NOON + HOUR),
            by="subscription__plan",
        )
    assert usage["usage"] == {"active_users": 1, "ours": True, "active_users_by": {"pro": 1}}


def plain_usage(pairs: list[Any]) -> Iterator[dict[str, Any]]:
    for start, end in pairs:
        usage = {"active_users": 1, "ours": True}
        yield {"period": {"start": start, "end": end}, "usage": usage}


REPORT = {"calendar": True, "after": "2024-05-01", "before": "2024-06-01", "recent": 1}


def show(**options: Any) -> str:
    output = io.StringIO()
    call_command("show_usage", **{**REPORT, "by": "subscription__plan", **options}, stdout=output)
    return output.getvalue()


@pytest.fixture
def site_in_may(site: Site) -> Site:
    """Three users with a plan, one without, and a deleted one."""
    for number, plan in enumerate(["pro", "free", "free"]):
        site.set(number, {**EMPTY, "subscription": (plan, None, None, None)})
    for user in site.users[:5]:
        record(user, NOON)
    site.delete(4)
    return site


def test_show_usage__by_csv(site_in_may: Site) -> None:
    period = "2024-05,2024-05-01,2024-06-01"
    assert show(format="csv").splitlines() == [
        "month,start,end,subscription__plan,active,complete",
        f"{period},free,2,true",
        f"{period},,1,true",
        f"{period},pro,1,true",
        f"{period},deleted,1,true",
    ]


def test_show_usage__by_json(site_in_may: Site) -> None:
    rows = json.loads(show(format="json"))
    assert [(row["subscription__plan"], row["active"]) for row in rows] == [
        ("free", 2), (None, 1), ("pro", 1), ("deleted", 1),
    ]  # fmt: skip


def test_show_usage__by_table_names_a_partial_period_once(site_in_may: Site) -> None:
    with at(NOON + DAY):
        text = show(before=None)
    assert re.search(r"2024-05 +2024-05-01 +2024-05-15 +free +2\n", text)
    assert text.endswith("Partial: 2024-05 (not over yet, or cut by --before)\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "nothing"}, "--by is 'nothing': Cannot resolve keyword"),
        ({"plot": True}, "--plot draws one bar for each period: omit --by"),
    ],
)
def test_show_usage__invalid_by(site_in_may: Site, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        show(**options)


# What may be declared

A_LABEL = "a label must not identify anybody"
TEN_THOUSAND = [f"value{number}" for number in range(10_000)]
BAD_SEGMENTS = [
    (["plan"], "must be a dictionary, not ['plan']"),
    ({1: "subscription__plan"}, "[1]: a segment's name must be a non-empty string"),
    ({"": "subscription__plan"}, "['']: a segment's name must be"),
    ({"x": None}, "['x']: None is neither a path nor a dictionary with FIELD and VALUES"),
    ({"x": {"VALUES": ["a"]}}, "is neither a path nor a dictionary"),
    ({"x": {"FIELD": "subscription__plan", "VALUE": []}}, "is neither a path nor a dictionary"),
    ({"x": ""}, "'' is not a path from the user model: write a path such as 'is_staff'"),
    ({"x": "nothing"}, "'nothing' is not a path from the user model: "),
    ({"x": "subscription__nothing"}, ": segments.Subscription has no field 'nothing'"),
    ({"x": "subscription__plan__lower"}, ": it continues after 'plan', which is not a relation"),
    ({"x": "pk"}, f"'pk' ends at a key, and {A_LABEL}"),
    ({"x": "subscription"}, f"'subscription' ends at a key, and {A_LABEL}"),
    ({"x": "subscription__organization"}, f"ends at a key, and {A_LABEL}"),
    ({"x": "subscription__organization_id"}, f"ends at a key, and {A_LABEL}"),
    ({"x": "subscription__organization__id"}, f"ends at a key, and {A_LABEL}"),
    ({"x": "subscription__user"}, f"ends at a key, and {A_LABEL}"),
    ({"x": "clubs"}, f"ends at a key, and {A_LABEL}"),
    ({"x": "subscription__number"}, f"is different for every user, and {A_LABEL}"),
    ({"x": "memberships__token"}, f"is different for every user, and {A_LABEL}"),
    ({"x": "subscription__features"}, "holds documents or lists, and a label is a single value"),
    ({"x": "clubs__members__username"}, A_LABEL),  # in some shapes it is the key
    ({"x": "memberships__role"}, "role has no choices: list the VALUES"),
    ({"x": {"FIELD": "memberships__role", "VALUES": "owner"}}, "VALUES must be a list, not"),
    ({"x": {"FIELD": "memberships__role", "VALUES": []}}, "VALUES is empty"),
    ({"x": {"FIELD": "memberships__role", "VALUES": [None]}}, "VALUES contains None, which"),
    ({"x": {"FIELD": "memberships__role", "VALUES": [""]}}, "the empty string cannot be a label"),
    ({"x": {"FIELD": "memberships__role", "VALUES": ["a", "a"]}}, "would have the label 'a'"),
    ({"x": {"FIELD": "memberships__role", "VALUES": ["none"]}}, "would have the label 'none'"),
    ({"x": {"FIELD": "memberships__role", "VALUES": ["other"]}}, "would have the label 'other'"),
    ({"x": {"FIELD": "subscription__seats", "VALUES": [1, "1"]}}, "would have the label '1'"),
    ({"x": {"FIELD": "subscription__seats", "VALUES": ["few"]}}, "VALUES contains 'few', which"),
    ({"x": {"FIELD": "memberships__role", "VALUES": TEN_THOUSAND}}, "it has 10000 values, but"),
]


def complaints() -> list[str]:
    return [
        f"{message.id} {message.msg}"
        for message in run_checks(tags=[TAG])
        if str(message.id) in {"souvenirs_metrics.E011", "souvenirs_metrics.E012"}
    ]


@joined
@pytest.mark.parametrize(("value", "problem"), BAD_SEGMENTS)
def test_check__refuses_a_segment(value: Any, problem: str) -> None:
    with override_settings(SOUVENIRS_METRICS_SEGMENTS=value):
        [complaint] = complaints()
    assert complaint.startswith("souvenirs_metrics.E011 SOUVENIRS_METRICS_SEGMENTS")
    assert problem in complaint
    assert complaint.endswith(".")


@joined
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("nothing", "'nothing' is not a path from the user model"),
        (["subscription"], "['subscription'] is not a path from the user model"),
        ("pk", "'pk' is different for every user, so each user would be"),
        ("subscription__user", "is different for every user"),
        ("subscription__number", "is different for every user"),
    ],
)
def test_check__refuses_accounts(value: Any, problem: str) -> None:
    with override_settings(SOUVENIRS_METRICS_ACCOUNTS=value):
        [complaint] = complaints()
    assert complaint.startswith("souvenirs_metrics.E012 SOUVENIRS_METRICS_ACCOUNTS: ")
    assert problem in complaint


@joined
@pytest.mark.parametrize(
    "accounts", [None, "subscription__organization", "clubs", "subscription__organization__slug"]
)
def test_check__allows(accounts: Any) -> None:
    entry = {"FIELD": "clubs__name", "VALUES": [f"club{number}" for number in range(20)]}
    with override_settings(
        SOUVENIRS_METRICS_SEGMENTS={**SEGMENTS, "clubs": entry}, SOUVENIRS_METRICS_ACCOUNTS=accounts
    ):
        assert complaints() == []


@pytest.mark.where("routed" in site_settings.SHAPE)
def test_check__refuses_users_in_another_database() -> None:
    with override_settings(
        SOUVENIRS_METRICS_SEGMENTS={"plan": "subscription__plan"},
        SOUVENIRS_METRICS_ACCOUNTS="subscription__organization",
    ):
        segments, accounts = complaints()
    problem = "is in 'default', but last-seen times are in another database"
    assert problem in segments
    assert problem in accounts


# On the page


def lines(name: str) -> dict[str, float]:
    return {" ".join(labels): value for labels, value in samples()[name].items()}


@joined
@override_settings(SOUVENIRS_METRICS_SEGMENTS={"plan": SEGMENTS["plan"], "lost": "nothing"})
def test_page__an_unreadable_segment_does_not_affect_the_others(
    site_in_may: Site, caplog: pytest.LogCaptureFixture
) -> None:
    shown = samples()
    assert shown["segment_active_users"]["plan", "free", "1d"] == 2
    assert {labels[0] for labels in shown["segment_active_users"]} == {"plan"}
    assert shown["collection_part_success"]["segments",] == 0
    assert shown["collection_part_success"]["active_users",] == 1
    assert shown["up"] == {(): 0}
    assert "Left segments lost out of the metrics: " in caplog.text
    assert "'nothing' is not a path from the user model" in caplog.text


@joined
def test_page__has_no_segments_unless_declared(site_in_may: Site) -> None:
    shown = samples()
    assert not {name for name in shown if "segment" in name or "accounts" in name}
    assert shown["collection_part_success"]["segments",] == 1
    assert shown["up"] == {(): 1}


@joined
@override_settings(
    SOUVENIRS_METRICS_SEGMENTS={"plan": SEGMENTS["plan"]},
    SOUVENIRS_METRICS_ACCOUNTS="subscription__organization",
)
def test_page__caches_a_reading_for_a_minute_but_not_over_midnight(site_in_may: Site) -> None:
    site_in_may.set(0, {**EMPTY, "subscription": ("pro", None, None, 1)})
    using = router.db_for_write(LastSeen)

    def read(now: float) -> tuple[int, float]:
        """The number of queries, and today's users with the plan "free"."""
        with CaptureQueriesContext(connections[using]) as queries:
            users = segments.read(now, nullcontext)[1]
            accounts.read(now, nullcontext)
        values = {tuple(sample.labels.values()): sample.value for sample in users.samples}
        return len(queries), values["plan", "free", "day"]

    segments, accounts = Segments(), ActiveAccounts()
    midnight = calendar_period("day", NOON, timestamps.conf.zone).end
    clock = Clock()
    with mock.patch.object(caching.time, "monotonic", clock):
        assert read(NOON) == (2, 2)
        site_in_may.set(1, EMPTY)
        clock.now += 59
        assert read(NOON + 59) == (0, 2)
        clock.now += 2
        assert read(NOON + 61) == (2, 1)
        clock.now += 10
        assert read(midnight) == (2, 0)


scope_name = "a"


def scope() -> str:
    return scope_name


@joined
@override_settings(
    SOUVENIRS_SCOPE="tests.test_segments.scope",
    SOUVENIRS_METRICS_SEGMENTS={"plan": SEGMENTS["plan"]},
)
def test_page__caches_a_reading_per_scope(
    site_in_may: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = SouvenirsCollector()
    connection = connections[router.db_for_write(LastSeen)]

    def queries(name: str) -> int:
        monkeypatch.setattr("tests.test_segments.scope_name", name)
        with at(NOON), CaptureQueriesContext(connection) as captured:
            list(collector.collect())
        return sum("segments_subscription" in query["sql"] for query in captured)

    assert [queries(name) for name in "aaba"] == [1, 0, 1, 0]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("took", "kept_for"), [(0.1, 60), (3, 60), (10, 200)])
def test_kept__is_read_at_most_a_twentieth_of_the_time(took: float, kept_for: float) -> None:
    clock, reading = Clock(), caching.CachedReading[float]()

    def read() -> float:
        clock.now += took
        return clock.now

    with mock.patch.object(caching.time, "monotonic", clock):
        first = reading.get("key", read)
        clock.now += kept_for - 1
        assert reading.get("key", read) == first
        clock.now += 1
        assert reading.get("key", read) > first


def test_kept__does_not_retry_a_failure_at_once() -> None:
    clock, reading = Clock(), caching.CachedReading[int]()
    tries = []

    def read() -> int:
        tries.append(clock.now)
        clock.now += 9
        raise TimeoutError("too late")

    with mock.patch.object(caching.time, "monotonic", clock):
        for wait, cause in ((0, "too late"), (179, "not tried again yet"), (1, "too late")):
            clock.now += wait
            with pytest.raises(Exception, match=cause):
                reading.get("key", read)
    assert len(tries) == 2


# Past values, for Prometheus


@joined
@override_settings(SOUVENIRS_METRICS_SEGMENTS={n: SEGMENTS[n] for n in ("plan", "club")})
def test_history__has_segments_by_current_values_on_request(site: Site) -> None:
    site.set(0, {**EMPTY, "subscription": ("pro", None, None, None), "clubs": {0, 1}})
    site.set(1, {**EMPTY, "subscription": ("team", None, None, None)})
    visits = {0: [NOON - 30 * HOUR], 1: [NOON - 3 * HOUR], 2: [NOON - 2 * HOUR], 3: [NOON - HOUR]}
    for number, times in visits.items():
        record(site.users[number], *times)
    roll_up(NOON - DAY)
    site.delete(3)
    instants = range(NOON - 6 * HOUR, NOON + 1, HOUR)
    with at(NOON):
        plain = list(prometheus_history.openmetrics(instants, {"job": "a"}))
        text = "".join(prometheus_history.openmetrics(instants, {"job": "a"}, with_segments=True))
    assert not any("segment" in line for line in plain)
    found: dict[float, dict[tuple[str, str], float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if "segment" in labels and labels.get("window") == "1d":
                assert sample.timestamp is not None
                found[float(sample.timestamp)][labels["segment"], labels["value"]] = sample.value
    have = {0: ["pro", "chess", "other"], 1: ["other", "none"], 2: ["none", "none"]}
    values = {"plan": [*PLANS, "none", "other"], "club": ["chess", "none", "other"]}
    for t in instants:
        seen = [n for n in have if any(t - DAY <= v < t for v in visits[n])]
        assert found[t] == {
            (segment, value): sum(
                value in (have[n][:1] if segment == "plan" else have[n][1:]) for n in seen
            )
            for segment in values
            for value in values[segment]
        }


@joined
def test_history__segments_must_be_declared(site: Site) -> None:
    record(site.users[0], NOON)
    with pytest.raises(CommandError, match="requires the setting SOUVENIRS_METRICS_SEGMENTS"):
        call_command("souvenirs_history", segments=True)


def test_active_users_between__composes_with_the_orm(site_in_may: Site) -> None:
    site_in_may.set(1, {**EMPTY, "subscription": ("free", None, None, 2)})
    start, end = timestamps.to_datetime(NOON), timestamps.to_datetime(NOON + HOUR)
    active = active_users_between(start, end)
    assert active.filter(subscription__plan="free").count() == 2
    by_plan = active.values("subscription__plan").annotate(users=Count("pk"))
    assert {row["subscription__plan"]: row["users"] for row in by_plan} == {
        "free": 2, "pro": 1, None: 1,
    }  # fmt: skip
    idle = Organization.objects.exclude(subscription__user__in=active)
    assert {each.slug for each in idle} == {"o0", "o1"}
