from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import django
import pytest
import time_machine
from django.conf import settings as django_settings
from django.core.management import call_command
from django.db import connections, models, transaction
from django.db.models.query_utils import DeferredAttribute
from django.test.utils import CaptureQueriesContext, override_settings
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric

import souvenirs
from souvenirs import timestamps
from souvenirs.control import souvenez
from souvenirs.history import maintenance
from souvenirs.models import (
    AccountTotals,
    DeletedMember,
    DirtyBucket,
    LastSeen,
    Rollup,
    Souvenir,
    Watermark,
)
from souvenirs.users import has_constraint, has_date_joined
from souvenirs_metrics.collector import SouvenirsCollector
from souvenirs_metrics.deadline import Deadline, scrape_timeout
from souvenirs_metrics.readers.base import Families, ReadContext, Reader
from souvenirs_metrics.run import CollectionRun
from souvenirs_metrics.upkeep import Upkeep
from tests import servers
from tests.people import User, ours, site, with_databases

MissingTable = Callable[[type], AbstractContextManager[None]]
AddDatabase = Callable[[str, dict[str, Any]], None]
RunSite = Callable[..., str]
Samples = dict[tuple[str, str], float]

in_transaction = pytest.mark.django_db(databases=list(django_settings.DATABASES))

PARIS = ZoneInfo("Europe/Paris")
# A Wednesday; the previous day, week, month, quarter and year are all different periods
NOW = datetime(2024, 5, 15, 12, 34, 56, tzinfo=PARIS)
STARTS = {
    "day": datetime(2024, 5, 15, tzinfo=PARIS),
    "week": datetime(2024, 5, 13, tzinfo=PARIS),
    "month": datetime(2024, 5, 1, tzinfo=PARIS),
    "quarter": datetime(2024, 4, 1, tzinfo=PARIS),
    "year": datetime(2024, 1, 1, tzinfo=PARIS),
}
PREVIOUS_STARTS = {
    "day": datetime(2024, 5, 14, tzinfo=PARIS),
    "week": datetime(2024, 5, 6, tzinfo=PARIS),
    "month": datetime(2024, 4, 1, tzinfo=PARIS),
    "quarter": datetime(2024, 1, 1, tzinfo=PARIS),
    "year": datetime(2023, 1, 1, tzinfo=PARIS),
}
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def collect() -> Samples:
    """Collect; return values by metric name and by the value of the only label ("" without
    labels)."""
    return {
        (sample.name, "".join(sample.labels.values()) if len(sample.labels) < 2 else ""): (
            sample.value
        )
        for metric in SouvenirsCollector().collect()
        for sample in metric.samples
    }


def of(samples: Samples, name: str) -> dict[str, float]:
    return {label: value for (metric, label), value in samples.items() if metric == name}


def make_users(count: int) -> list[Any]:
    taken = User.objects.count()
    people: list[Any] = User.objects.bulk_create(
        User(username=f"u{taken + i}") for i in range(count)
    )
    return people


def see(*times: datetime) -> None:
    """Create a user last seen at each of the times."""
    LastSeen.objects.bulk_create(
        LastSeen(user_id=user.pk, seen=site(when))
        for user, when in zip(make_users(len(times)), times)
    )


def record(user: Any, *times: datetime) -> None:
    Souvenir.objects.bulk_create(Souvenir(user_id=user.pk, when=site(when)) for when in times)


@contextmanager
def capture_queries() -> Iterator[Callable[[], list[str]]]:
    """Yield a function that returns the queries of the block so far, on all databases."""
    with ExitStack() as stack:
        contexts = [stack.enter_context(CaptureQueriesContext(c)) for c in connections.all()]
        yield lambda: [query["sql"] for context in contexts for query in context]


# Registering. These tests have no database at all, so a query would raise


def test_describe__queries_nothing_and_has_no_samples() -> None:
    families = list(SouvenirsCollector().describe())
    assert [sample for family in families for sample in family.samples] == []


def test_register__queries_nothing() -> None:
    CollectorRegistry().register(SouvenirsCollector())


@in_transaction
def test_describe__names_what_is_collected() -> None:
    collector = SouvenirsCollector()
    described = {(f.name, f.type, f.documentation) for f in collector.describe()}
    assert {(f.name, f.type, f.documentation) for f in collector.collect()} == described


# Cost


@pytest.mark.slow
@in_transaction
@pytest.mark.parametrize(
    ("users", "windows"),
    [(users, [f"{hours}h" for hours in range(1, n + 1)]) for users, n in [(1, 1), (2_000, 30)]],
    ids=["few", "many"],
)
def test_collect__takes_a_fixed_number_of_queries(users: int, windows: list[str]) -> None:
    see(*[NOW - i * HOUR for i in range(users)])
    Souvenir.objects.bulk_create(
        Souvenir(user_id=user.pk, when=site(when))
        for user in User.objects.all()
        for when in (NOW - 800 * DAY, NOW - 8 * DAY, NOW - 2 * DAY)
    )
    with time_machine.travel(NOW, tick=False):
        maintenance.roll_up()
        with (
            override_settings(SOUVENIRS_METRICS_WINDOWS=windows),
            capture_queries() as queries,
        ):
            samples = collect()
    assert samples["souvenirs_registered_users", ""] == users
    assert samples["souvenirs_up", ""] == 1
    assert len(of(samples, "souvenirs_previous_calendar_active_users")) == 5
    # last-seen; the lag (2); the first record (2); the state (2, and 1 in a transaction); the
    # choice of rollups of months and of days (2), their bitmaps; accounts. Closed periods: the
    # revision; the state (3), the choice of rollups (2), their bitmaps, the first record (2), the
    # users who joined before it
    joined = (1 if has_constraint() else 2) if has_date_joined() else 0
    assert len(queries()) == 21 + joined
    of_last_seen = sum("souvenirs_lastseen" in sql for sql in queries())
    assert of_last_seen == 1 + bool(joined)


@pytest.mark.slow
@with_databases
@time_machine.travel(NOW, tick=False)
def test_collect__rolls_up_one_due_hour() -> None:
    (user,) = make_users(1)
    record(user, STARTS["day"], STARTS["day"] + 2 * HOUR)
    hours = (NOW - STARTS["day"]) // HOUR
    lags = [collect()["souvenirs_rollup_lag_seconds", ""] for _ in range(hours + 3)]
    first = (NOW - STARTS["day"]).total_seconds() - 900
    assert lags[:3] == [first, first - 3_600, first - 2 * 3_600]
    assert lags[-2:] == [0, 0]
    assert sum(rollup.active_users for rollup in Rollup.objects.all()) == 2


@with_databases
@time_machine.travel(NOW, tick=False)
def test_collect__rolls_up_nothing_in_an_open_transaction() -> None:
    record(make_users(1)[0], STARTS["day"])
    with transaction.atomic(using=ours().alias):
        collect()
    assert not Watermark.objects.exists()


@pytest.mark.slow
@with_databases
def test_collect__the_previous_day_equals_its_day_to_date_at_its_end() -> None:
    people = make_users(3)
    for user in people:
        record(user, STARTS["day"] - HOUR)
    with time_machine.travel(STARTS["day"] - timedelta(seconds=1), tick=False) as clock:
        before = of(collect(), "souvenirs_calendar_active_users")["day"]
        clock.shift(2)
        after = of(collect(), "souvenirs_previous_calendar_active_users").get("day")
    assert (before, after) == (3, None)  # the history starts during that day
    with time_machine.travel(STARTS["day"] + DAY - timedelta(seconds=1), tick=False) as clock:
        for user in people[1:]:
            souvenez(user)
        while collect()["souvenirs_rollup_lag_seconds", ""]:
            pass
        before = of(collect(), "souvenirs_calendar_active_users")["day"]
        clock.shift(2)
        after = of(collect(), "souvenirs_previous_calendar_active_users")["day"]
    assert before == after == 2


@in_transaction
@time_machine.travel(NOW, tick=False)
def test_collect__reads_last_seen_from_its_index() -> None:
    see(*[NOW - i * HOUR for i in range(2_000)])
    with capture_queries() as queries:
        collect()
    [statement] = [sql for sql in queries() if "souvenirs_lastseen" in sql]
    with ours().cursor() as cursor:
        if ours().vendor == "postgresql":  # it prefers to read a small table whole
            cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
            cursor.execute(f"EXPLAIN {statement}")
            accesses = [row[0] for row in cursor.fetchall() if " on souvenirs_lastseen" in row[0]]
            good = "Index Only Scan"
        elif ours().vendor == "mysql":
            cursor.execute(f"EXPLAIN {statement}")
            # the newest time is read from the end of the index, without an access
            extras = [row[-1] for row in cursor.fetchall() if row[1] == "SUBQUERY"]
            accesses = [x.replace("Select tables optimized away", "Using index") for x in extras]
            good = "Using index"
        else:
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}")
            accesses = [row[3] for row in cursor.fetchall() if "souvenirs_lastseen" in row[3]]
            good = "SEARCH souvenirs_lastseen USING COVERING INDEX souvenirs_lastseen_seen"
    # The newest time, and either one scan for everything or nine slices between nine cut points and
    # now
    assert len(accesses) == (2 if ours().vendor == "postgresql" else 10)
    assert [access for access in accesses if good not in access] == []


# Rolling windows, periods to date


@in_transaction
@time_machine.travel(NOW, tick=False)
def test_collect__empty_site() -> None:
    samples = collect()
    assert of(samples, "souvenirs_active_users") == {"1h": 0, "1d": 0, "7d": 0, "30d": 0}
    assert of(samples, "souvenirs_calendar_active_users") == dict.fromkeys(STARTS, 0)
    assert of(samples, "souvenirs_previous_calendar_active_users") == {}
    assert of(samples, "souvenirs_last_seen_timestamp_seconds") == {}
    assert samples["souvenirs_registered_users", ""] == 0
    assert samples["souvenirs_up", ""] == 1


@in_transaction
@time_machine.travel(NOW, tick=False)
def test_collect__windows_begin_on_the_minute() -> None:
    see(NOW.replace(hour=11, minute=33, second=59), NOW.replace(hour=11, minute=34, second=0))
    assert of(collect(), "souvenirs_active_users")["1h"] == 1


@in_transaction
@pytest.mark.parametrize("period", STARTS)
@time_machine.travel(NOW, tick=False)
def test_collect__calendar_period_begins_with_its_first_second(period: str) -> None:
    see(STARTS[period], STARTS[period] - timedelta(seconds=1))
    assert of(collect(), "souvenirs_calendar_active_users")[period] == 1


@in_transaction
@time_machine.travel(NOW, tick=False)
def test_collect__exposes_when_periods_began() -> None:
    starts = of(collect(), "souvenirs_calendar_period_start_timestamp_seconds")
    assert starts == {name: start.timestamp() for name, start in STARTS.items()}


@in_transaction
@given(
    offsets=st.lists(st.integers(0, 500 * 86_400) | st.integers(0, 8_000), max_size=20),
    now=st.datetimes(datetime(2022, 1, 1), datetime(2026, 1, 1), timezones=st.just(PARIS)),
    windows=st.sets(st.sampled_from(["1m", "30m", "1h", "1h30m", "2h", "1d", "7d", "52w", "1y"])),
)
def test_collect__equals_brute_force(offsets: list[int], now: datetime, windows: set[str]) -> None:
    LastSeen.objects.all().delete()
    now = now.astimezone(timezone.utc)
    see(*[now - timedelta(seconds=offset) for offset in offsets])
    with (
        time_machine.travel(now, tick=False),
        override_settings(SOUVENIRS_METRICS_WINDOWS=tuple(windows)),
    ):
        samples = collect()
    seconds = {"1m": 60, "30m": 1800, "1h": 3600, "1h30m": 5400, "2h": 7200, "1d": 86_400}
    seconds |= {"7d": 604_800, "52w": 31_449_600, "1y": 31_536_000}
    seen = [timestamps.to_seconds(t) for t in LastSeen.objects.values_list("seen", flat=True)]
    cuts = {w: (now.timestamp() - seconds[w]) // 60 * 60 for w in windows}
    assert of(samples, "souvenirs_active_users") == {
        w: sum(t >= cut for t in seen) for w, cut in cuts.items()
    }
    today = now.astimezone(PARIS).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    starts = {
        "day": today,
        "week": today - today.weekday() * DAY,
        "month": today.replace(day=1),
        "quarter": today.replace(day=1, month=[1, 4, 7, 10][(today.month - 1) // 3]),
        "year": today.replace(day=1, month=1),
    }
    assert of(samples, "souvenirs_calendar_active_users") == {
        name: sum(t >= start.timestamp() for t in seen) for name, start in starts.items()
    }


@in_transaction
@time_machine.travel(NOW, tick=False)
@override_settings(SOUVENIRS_METRICS_WINDOWS=("30m", "2h", "1h30m"))
def test_collect__windows_setting() -> None:
    see(*[NOW - timedelta(minutes=minutes) for minutes in (10, 60, 100, 200)])
    assert of(collect(), "souvenirs_active_users") == {"30m": 1, "2h": 3, "1h30m": 2}


@in_transaction
@time_machine.travel(NOW, tick=False)
@override_settings(SOUVENIRS_METRICS_WINDOWS=())
def test_collect__without_windows() -> None:
    see(NOW)
    samples = collect()
    assert of(samples, "souvenirs_active_users") == {}
    assert of(samples, "souvenirs_calendar_active_users")["day"] == 1
    assert samples["souvenirs_up", ""] == 1


@in_transaction
@time_machine.travel(NOW, tick=False)
def test_collect__newest_last_seen() -> None:
    see(NOW - 5 * HOUR, NOW - HOUR, NOW - 3 * HOUR)
    newest = collect()["souvenirs_last_seen_timestamp_seconds", ""]
    assert newest == (NOW - HOUR).timestamp()


@in_transaction
@time_machine.travel(NOW, tick=False)
def test_collect__users_seen_in_the_future_or_never_are_not_counted() -> None:
    see(NOW + HOUR)
    LastSeen.objects.create(user_id=make_users(1)[0].pk, seen=None)
    samples = collect()
    assert set(of(samples, "souvenirs_active_users").values()) == {0}
    assert set(of(samples, "souvenirs_calendar_active_users").values()) == {0}
    assert of(samples, "souvenirs_last_seen_timestamp_seconds") == {}


@in_transaction
@time_machine.travel(NOW, tick=False)
def test_collect__has_no_timestamps_but_exposes_its_time() -> None:
    families = list(SouvenirsCollector().collect())
    assert {sample.timestamp for family in families for sample in family.samples} == {None}
    assert collect()["souvenirs_collection_timestamp_seconds", ""] == NOW.timestamp()
    assert 0 < collect()["souvenirs_collection_duration_seconds", ""] < 10


# Previous periods


@in_transaction
@time_machine.travel(NOW, tick=False)
def test_collect__previous_periods_count_users_once_and_only_those_inside() -> None:
    ann, bob, eve = make_users(3)
    record(ann, PREVIOUS_STARTS["year"], PREVIOUS_STARTS["year"] + HOUR)
    record(bob, STARTS["day"] - timedelta(microseconds=1), STARTS["week"] - HOUR)
    record(eve, STARTS["day"], STARTS["day"] - DAY, STARTS["day"] - DAY - timedelta(microseconds=1))
    maintenance.roll_up()
    assert of(collect(), "souvenirs_previous_calendar_active_users") == {
        "day": 2,  # Bob, Eve
        "week": 1,  # Bob
        "month": 0,
        "quarter": 0,
        "year": 1,  # Ann
    }


@in_transaction
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("period", PREVIOUS_STARTS)
@time_machine.travel(NOW, tick=False)
def test_collect__previous_periods_are_absent_if_they_began_before_the_first_record(
    period: str, late: bool
) -> None:
    first = PREVIOUS_STARTS[period] + timedelta(microseconds=late)
    record(make_users(1)[0], first)
    maintenance.roll_up()
    assert of(collect(), "souvenirs_previous_calendar_active_users").keys() == {
        name for name, start in PREVIOUS_STARTS.items() if start >= first
    }


# Accounts, versions


@in_transaction
def test_collect__activated_users_are_those_with_is_active() -> None:
    make_users(3)
    can_be_deactivated = isinstance(User.is_active, DeferredAttribute)
    if can_be_deactivated:
        User.objects.filter(username__in=["u0", "u1"]).update(is_active=False)
    samples = collect()
    assert samples["souvenirs_registered_users", ""] == 3
    assert samples["souvenirs_activated_users", ""] == (1 if can_be_deactivated else 3)


def test_collect__without_is_active_all_users_are_activated(
    run_site: RunSite, tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "__init__.py").touch()
    (tmp_path / "plain" / "models.py").write_text(
        "from django.db import models\n"
        "from django.contrib.auth.models import AbstractBaseUser, BaseUserManager\n"
        "class Person(AbstractBaseUser):\n"
        "    name = models.CharField(max_length=9, unique=True)\n"
        "    objects = BaseUserManager()\n"
        "    USERNAME_FIELD = 'name'\n"
    )
    page = run_site(
        "from plain.models import Person\n"
        "Person.objects.create(name='ada')\n"
        "print(Client().get('/metrics').text)",
        "AUTH_USER_MODEL = 'plain.Person'\nINSTALLED_APPS += ['plain']",
    )
    assert "\nsouvenirs_activated_users 1.0\n" in page


@in_transaction
def test_collect__build_info() -> None:
    [build] = [f for f in SouvenirsCollector().collect() if f.name == "souvenirs_build"]
    [sample] = build.samples
    assert sample.labels.pop("python").startswith("3.")
    assert (sample.name, sample.value, sample.labels) == (
        "souvenirs_build_info",
        1,
        {
            "version": souvenirs.__version__,
            "django": django.get_version(),
            "database": ours().vendor,
            "last_seen_store": "database",
        },
    )


# Parts that cannot be read

ACTIVITY = {
    "souvenirs_active_users",
    "souvenirs_calendar_active_users",
    "souvenirs_calendar_period_start_timestamp_seconds",
    "souvenirs_last_seen_timestamp_seconds",
}
LAG = {"souvenirs_rollup_lag_seconds"}
PREVIOUS = {"souvenirs_previous_calendar_active_users"}
ACCOUNTS = {"souvenirs_registered_users", "souvenirs_activated_users"}
GROWTH = {
    "souvenirs_previous_calendar_growth_users",
    "souvenirs_retention_cohort_users",
    "souvenirs_retention_retained_users",
    "souvenirs_active_days",
}
ALWAYS = {
    "souvenirs_build_info",
    "souvenirs_collection_part_success",
    "souvenirs_collection_part_duration_seconds",
    "souvenirs_collection_duration_seconds",
    "souvenirs_collection_timestamp_seconds",
    "souvenirs_up",
}


def names(samples: Iterable[tuple[str, str]]) -> set[str]:
    return {re.sub("_(bucket|gcount|gsum)$", "", name) for name, _ in samples}


@with_databases
@pytest.mark.parametrize(
    ("model", "lost", "part"),
    [
        (LastSeen, ACTIVITY, "active_users"),
        (Souvenir, PREVIOUS, "previous_periods"),
        (User, ACCOUNTS, "accounts"),
    ],
)
def test_collect__leaves_out_a_part_that_fails(
    model: type[models.Model],
    lost: set[str],
    part: str,
    missing_table: MissingTable,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with time_machine.travel(NOW, tick=False):
        see(NOW)
        record(User.objects.get(), NOW - 800 * DAY)
        maintenance.roll_up()
        with missing_table(model):
            samples = collect()
    parts = [part]
    if model is Souvenir or has_date_joined():  # growth needs the dates at which users joined
        parts, lost = [part, "closed_periods"], lost | GROWTH
    everything = ACTIVITY | LAG | PREVIOUS | ACCOUNTS | GROWTH | ALWAYS
    assert names(samples) == everything - lost
    assert samples["souvenirs_up", ""] == 0
    success = of(samples, "souvenirs_collection_part_success")
    assert [name for name, value in success.items() if not value] == parts
    [line] = caplog.records
    assert (line.name, line.levelno) == ("souvenirs_metrics", logging.ERROR)
    assert line.getMessage().startswith(f"Left {', '.join(parts)} out of the metrics: ")
    assert model._meta.db_table in line.getMessage()


@with_databases
def test_collect__is_up_again_after_a_failure(missing_table: MissingTable) -> None:
    collector = SouvenirsCollector()

    def up() -> float:
        [family] = [f for f in collector.collect() if f.name == "souvenirs_up"]
        return family.samples[0].value

    with missing_table(LastSeen):
        assert up() == 0
    assert up() == 1


def unreachable(path: Path) -> dict[str, Any]:
    """The DATABASES entry of a database, of the engine in use, that cannot be connected to."""
    if ours().vendor == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": path / "missing" / "db.sqlite3"}
    wanted = {"ENGINE", "NAME", "USER", "HOST"}
    entry = {key: value for key, value in ours().settings_dict.items() if key in wanted}
    return {**entry, "PORT": servers.free_port()}


@with_databases
@override_settings(DATABASE_ROUTERS=[])
def test_collect__without_a_connection(
    add_database: AddDatabase,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_database("replica", unreachable(tmp_path))
    with override_settings(SOUVENIRS_METRICS_DATABASE="replica"):
        samples = collect()
    assert names(samples) == ALWAYS
    assert samples["souvenirs_up", ""] == 0
    [line] = [line for line in caplog.records if line.getMessage().startswith("Left")]
    left, _, cause = line.getMessage().partition(" out of the metrics: ")
    assert left == "Left active_users, rollup_lag, previous_periods, accounts, closed_periods"
    assert cause.startswith("OperationalError")


@in_transaction
@override_settings(SOUVENIRS_METRICS_WINDOWS=("1h", "soon"))
def test_collect__with_an_invalid_window(caplog: pytest.LogCaptureFixture) -> None:
    samples = collect()
    assert names(samples) == LAG | ACCOUNTS | ALWAYS
    assert samples["souvenirs_up", ""] == 0
    [line] = caplog.records
    assert "'soon' is not a duration" in line.getMessage()


SLOW_SECONDS = 0.1


@pytest.fixture(autouse=True)
def finished_collections() -> Iterator[None]:
    """No collection goes on into another test, whose log it would write to."""
    yield
    for thread in threading.enumerate():
        if thread.name == "souvenirs-collection":
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def deadlines(monkeypatch: pytest.MonkeyPatch) -> list[Deadline]:
    """The deadlines of all collections; the last one is in progress."""
    made: list[Deadline] = []

    def make(*args: Any, **options: Any) -> Deadline:
        made.append(Deadline(*args, **options))
        return made[-1]

    monkeypatch.setattr("souvenirs_metrics.collector.Deadline", make)
    return made


class Waiting(Reader):
    """With `deadlines` it is slow: it takes all the remaining time, which it shortens."""

    def __init__(self, name: str, deadlines: list[Deadline] | None = None) -> None:
        self.name, self.deadlines = name, deadlines  # type: ignore[misc]

    def read(self, now: float, context: ReadContext) -> Families:
        with context(ours().alias):
            if self.deadlines:
                self.deadlines[-1]._at = time.monotonic() + SLOW_SECONDS
            while self.deadlines:
                with ours().cursor() as cursor:
                    cursor.execute("SELECT 1")
                time.sleep(0.01)
        return [Metric(self.name, "Of the test.", "gauge")]


def parts_of(families: dict[str, Metric], name: str) -> dict[str, float]:
    samples = families[f"souvenirs_collection_part_{name}"].samples
    return {sample.labels["part"]: sample.value for sample in samples}


@pytest.mark.slow
@with_databases
def test_collect__a_slow_part_costs_the_others_one_collection_at_most(
    deadlines: list[Deadline],
) -> None:
    parts = [Waiting("first"), Waiting("slow", deadlines), Waiting("last")]
    collector = SouvenirsCollector(lambda: parts)

    def success() -> tuple[dict[str, float], dict[str, Metric]]:
        families = families_within(collector, 30)
        assert set(families) >= {n for n, s in parts_of(families, "success").items() if s}
        assert not is_complete(families)
        return parts_of(families, "success"), families

    found, families = success()
    assert found == {"first": 1, "slow": 0, "last": 0}
    seconds = parts_of(families, "duration_seconds")
    whole = families["souvenirs_collection_duration_seconds"].samples[0].value
    assert seconds["last"] < SLOW_SECONDS <= seconds["slow"] < whole
    for _ in range(2):
        assert success()[0] == {"first": 1, "slow": 0, "last": 1}
    parts[1].deadlines = None
    families = families_within(collector, 30)
    assert is_complete(families)
    assert [name for name in families if name in {"first", "slow", "last"}] == [
        "first", "slow", "last",
    ]  # fmt: skip


@pytest.mark.slow
@with_databases
@pytest.mark.usefixtures("no_upkeep")
def test_collect__slow_parts_do_not_take_turns_before_the_others(
    deadlines: list[Deadline],
) -> None:
    slow = [Waiting("slow", deadlines), Waiting("slower", deadlines)]
    collector = SouvenirsCollector(lambda: [*slow, Waiting("last")])
    read = [parts_of(families_within(collector, 30), "success")["last"] for _ in range(5)]
    assert read == [0, 0, 1, 1, 1]


@pytest.mark.usefixtures("no_upkeep")
def test_collect__exposes_the_duration_of_a_part_that_still_runs() -> None:
    slow, last = Slow(), Slow()
    last.name = "last"  # type: ignore[misc]
    last.may_end.set()
    collector = SouvenirsCollector(lambda: [slow, last])
    families = families_within(collector, 0.2)
    seconds = parts_of(families, "duration_seconds")
    assert seconds["last"] == 0 < 0.1 < seconds["slow"]
    assert parts_of(families, "success") == {"slow": 0, "last": 0}
    slow.may_end.set()


# The database it reads from


@with_databases
@override_settings(DATABASE_ROUTERS=[])
@time_machine.travel(NOW, tick=False)
def test_collect__reads_from_the_configured_database(
    add_database: AddDatabase, tmp_path: Path
) -> None:
    entry = {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "replica.sqlite3"}
    add_database("replica", entry)
    call_command("migrate", database="replica", verbosity=0)
    make_users(2)
    user = User(username="of the replica")
    user.save(using="replica")
    LastSeen.objects.using("replica").create(user_id=user.pk, seen=site(NOW))
    Souvenir.objects.using("replica").create(user_id=user.pk, when=site(NOW - 800 * DAY))
    with (
        capture_queries() as queries,
        override_settings(SOUVENIRS_METRICS_DATABASE="replica"),
    ):
        samples = collect()
    # Only rolling up uses the database for writes
    tables = (Watermark, DirtyBucket, DeletedMember, AccountTotals, Souvenir, User)
    queried = {name for sql in queries() for name in re.findall(r'FROM ["`](\w+)', sql)}
    assert queried <= {model._meta.db_table for model in tables}
    assert samples["souvenirs_up", ""] == 1
    assert samples["souvenirs_active_users", "1h"] == 1
    assert samples["souvenirs_registered_users", ""] == 1


# Sharing


class Slow(Reader):
    """Waits until it may end, and counts how often it is read."""

    name = "slow"

    def __init__(self) -> None:
        self.times = 0
        self.begun, self.may_end = threading.Event(), threading.Event()

    def read(self, now: float, context: ReadContext) -> Families:
        self.times += 1
        self.begun.set()
        assert self.may_end.wait(30)
        return [Metric("times", "How often.", "gauge")]


@pytest.fixture
def no_upkeep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collections that read from no database."""
    monkeypatch.setattr(Upkeep, "run", lambda self, deadline: None)


class WatchedCollector(SouvenirsCollector):
    """Notes the scrapes that wait for a collection."""

    def reset(self) -> None:
        super().reset()
        self.waits: list[CollectionRun] = []

    def _current(self, seconds: float) -> CollectionRun:
        current = super()._current(seconds)
        self.waits.append(current)
        return current

    def wait_for_scrapes(self, times: int) -> None:
        servers.wait_until(lambda: len(self.waits) == times)


def families_of(collector: SouvenirsCollector) -> list[Metric]:
    return list(collector.collect())


@pytest.mark.usefixtures("no_upkeep")
def test_collect__a_scrape_while_it_runs_gets_its_result() -> None:
    slow = Slow()
    collector = WatchedCollector(lambda: [slow])
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(families_of, collector)
        assert slow.begun.wait(30)
        others = [pool.submit(families_of, collector) for _ in range(19)]
        collector.wait_for_scrapes(20)
        slow.may_end.set()
        assert all(other.result(30)[0] is first.result()[0] for other in others)
    assert slow.times == 1
    families_of(collector)
    assert slow.times == 2


@pytest.mark.usefixtures("no_upkeep")
def test_collect__max_age() -> None:
    slow = Slow()
    slow.may_end.set()
    collector = SouvenirsCollector(lambda: [slow])
    with override_settings(SOUVENIRS_METRICS_MAX_AGE_SECONDS=3600):
        assert families_of(collector)[0] is families_of(collector)[0]
        assert slow.times == 1
    with override_settings(SOUVENIRS_METRICS_MAX_AGE_SECONDS=0):
        families_of(collector)
    assert slow.times == 2


def families_within(collector: SouvenirsCollector, seconds: float) -> dict[str, Metric]:
    """The families, by name, that a scraper with this timeout gets."""
    token = scrape_timeout.set(seconds)
    try:
        return {family.name: family for family in collector.collect()}
    finally:
        scrape_timeout.reset(token)


def is_complete(families: dict[str, Metric]) -> bool:
    return families["souvenirs_up"].samples[0].value == 1


@pytest.mark.usefixtures("no_upkeep")
def test_collect__a_scraper_without_time_does_not_shorten_it_for_others() -> None:
    slow = Slow()
    collector = WatchedCollector(lambda: [slow])
    assert "times" not in families_within(collector, 0.000001)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(families_within, collector, 30)
        collector.wait_for_scrapes(2)
        slow.may_end.set()
        assert is_complete(other.result(30))


@pytest.mark.usefixtures("no_upkeep")
def test_collect__a_scraper_with_less_time_gets_the_parts_read_by_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("souvenirs.logs.REPEAT_SECONDS", 0)
    quick, slow = Slow(), Slow()
    quick.name = "quick"  # type: ignore[misc]
    quick.may_end.set()
    collector = SouvenirsCollector(lambda: [quick, slow])
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(families_within, collector, 60)
        assert slow.begun.wait(30)
        for _ in range(3):
            families = families_within(collector, 0.01)
            assert parts_of(families, "success") == {"quick": 1, "slow": 0}
            assert "times" in families
        slow.may_end.set()
        assert is_complete(patient.result(30))
    # It depends on the scraper's configuration, so it is logged once
    assert caplog.messages == ["Left slow out of a page that was due within 0.0 s"]


@pytest.mark.usefixtures("no_upkeep")
def test_collect__does_not_join_an_overdue_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("souvenirs_metrics.collector.MIN_COLLECTION_SECONDS", 0.1)
    slow = Slow()
    collector = SouvenirsCollector(lambda: [slow])
    assert not is_complete(families_within(collector, 0.1))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(families_within, collector, 30)
        servers.wait_until(lambda: slow.times == 2)  # while the first is still blocked
        slow.may_end.set()
        assert is_complete(other.result(30))


@pytest.mark.usefixtures("no_upkeep")
@override_settings(SOUVENIRS_METRICS_MAX_AGE_SECONDS=3600)
def test_collect__caches_only_complete_results() -> None:
    class Failing(Slow):
        def read(self, now: float, context: ReadContext) -> Families:
            super().read(now, context)
            if self.times == 1:
                raise ConnectionError("away")
            return []

    failing = Failing()
    failing.may_end.set()
    collector = SouvenirsCollector(lambda: [failing])
    assert [is_complete(families_within(collector, 30)) for _ in range(3)] == [False, True, True]
    assert failing.times == 2


@pytest.mark.usefixtures("no_upkeep")
def test_collect__logs_a_cause_once_however_often_it_is_scraped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(Slow):
        def read(self, now: float, context: ReadContext) -> Families:
            raise ConnectionError("away")

    collector = SouvenirsCollector(lambda: [Failing()])
    for _ in range(5):
        families_within(collector, 30)
    slow = Slow()
    hasty = SouvenirsCollector(lambda: [slow])
    for _ in range(5):
        families_within(hasty, 0.000001)
    slow.may_end.set()
    for line in (
        "Left slow out of the metrics: ConnectionError: away",
        "Left slow out of a page that was due within 0.0 s",
    ):
        assert caplog.messages.count(line) == 1


@pytest.mark.usefixtures("no_upkeep")
def test_collect__does_not_share_an_aborted_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)

    class Breaking(Slow):
        def read(self, now: float, context: ReadContext) -> Families:
            self.times += 1
            raise SystemExit

    breaking = Breaking()
    collector = SouvenirsCollector(lambda: [breaking])
    for times in (1, 2):
        families = {family.name: family for family in families_of(collector)}
        assert families["souvenirs_up"].samples[0].value == 0
        assert breaking.times == times


@in_transaction
def test_collect__does_not_share_accounts_counted_in_a_transaction() -> None:
    collector = SouvenirsCollector()

    def registered() -> float:
        families = {family.name: family for family in collector.collect()}
        return families["souvenirs_registered_users"].samples[0].value

    make_users(1)
    assert registered() == 1
    make_users(2)
    assert registered() == 3


@with_databases
@time_machine.travel(NOW, tick=False)
def test_collect__does_not_wait_again_for_rolling_up_that_failed(
    missing_table: MissingTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    roll_up = maintenance.roll_up

    def counted(buckets: int) -> None:
        tried.append(1)
        roll_up(buckets=buckets)

    monkeypatch.setattr(maintenance, "roll_up", counted)
    record(make_users(1)[0], NOW - DAY)
    collector = SouvenirsCollector()
    with missing_table(Watermark):
        for _ in range(3):
            list(collector.collect())
        assert len(tried) == 1
    collector.reset()
    for _ in range(3):
        list(collector.collect())
    assert len(tried) == 4


@with_databases
def test_collect__accounts_are_counted_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = SouvenirsCollector()
    now = [1000.0]
    clock = SimpleNamespace(
        monotonic=lambda: now[0], time=time.time, perf_counter=time.perf_counter
    )
    monkeypatch.setattr("souvenirs_metrics.readers.accounts.time", clock)

    def registered() -> float:
        families = {family.name: family for family in collector.collect()}
        now[0] += 0.001
        return families["souvenirs_registered_users"].samples[0].value

    assert registered() == 0
    make_users(2)
    now[0] += 59
    assert registered() == 0
    now[0] += 1
    assert registered() == 2
