from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import router
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from souvenirs.conf import conf as souvenirs_conf
from souvenirs.control import souvenez
from souvenirs.history import counting, progress, pruning
from souvenirs.models import LastSeen, Souvenir
from souvenirs.periods import BUCKET, NAMES, bucket_containing, calendar_period
from souvenirs.timestamps import to_site
from souvenirs.users import has_date_joined
from souvenirs_metrics import prometheus_history, replay
from souvenirs_metrics.conf import conf
from tests.history import DAY, HOUR, MINUTE, at, clear, people, record, roll_up, to_when, unix
from tests.people import User, ours, with_databases
from tests.test_closed_periods import Samples
from tests.test_closed_periods import brute as brute_closed

pytestmark = with_databases

T = unix(2024, 5, 14)
WINDOWS = {"1h": HOUR, "90m": 90 * MINUTE, "1d": DAY}


FAMILIES = [
    ("souvenirs_active_users", "gauge"),
    ("souvenirs_calendar_active_users", "gauge"),
    ("souvenirs_last_seen_timestamp_seconds", "gauge"),
    ("souvenirs_calendar_period_start_timestamp_seconds", "gauge"),
    ("souvenirs_previous_calendar_active_users", "gauge"),
    ("souvenirs_registered_users", "gauge"),
    ("souvenirs_activated_users", "gauge"),
    ("souvenirs_previous_calendar_growth_users", "gauge"),
    ("souvenirs_retention_cohort_users", "gauge"),
    ("souvenirs_retention_retained_users", "gauge"),
    ("souvenirs_active_days", "gaugehistogram"),
]


def written(instants: range, **labels: str) -> dict[int, Samples]:
    """The written samples by instant, as the reference implementation parses them."""
    text = "".join(prometheus_history.openmetrics(instants, labels))
    gauges, *histogram = re.split("(?=# HELP souvenirs_active_days)", text)
    families = list(text_string_to_metric_families(f"{gauges}# EOF\n" if histogram else gauges))
    for lines in by_instant("".join(histogram)):
        families += text_string_to_metric_families(lines)
    assert [(f.name, f.type) for f in families][: len(FAMILIES)] == FAMILIES
    found: dict[int, Samples] = defaultdict(dict)
    for sample in (sample for family in families for sample in family.samples):
        own = {name: value for name, value in sample.labels.items() if name not in labels}
        assert sample.labels == {**own, **labels}
        key = (
            sample.name.removeprefix("souvenirs_"),
            own.pop("period", ""),
            "".join(own.values()),
        )
        found[int(float(sample.timestamp))][key] = sample.value
    return found


def by_instant(text: str) -> Iterator[str]:
    """Split a family's text by instant: the reference implementation rejects a histogram with
    several, because it takes the samples after the first for duplicates."""
    header = "".join(re.findall("(?m)^# [HT].*\n", text))
    lines: dict[str, str] = defaultdict(str)
    for line in re.findall("(?m)^[^#].*\n", text):
        lines[line.split()[-1]] += line
    for of_instant in lines.values() or [""]:
        yield f"{header}{of_instant}# EOF\n"


def values(instants: range, **labels: str) -> dict[tuple[str, int], float]:
    """The values of the windows."""
    return {
        (label, t): value
        for t, samples in written(instants, **labels).items()
        for (name, _, label), value in samples.items()
        if name == "active_users"
    }


def brute(
    facts: list[tuple[Any, float]], instants: range, limit: int, first: float
) -> dict[tuple[str, int], float]:
    """The active users of each window that does not begin before `first`, with both ends at the
    latest slot boundary at or before them. With limit 0 every instant is a slot boundary."""
    expected = {}
    for name, seconds in conf.windows.items():
        for instant in instants:
            end = instant // limit * limit if limit else instant
            start = (end - seconds) // limit * limit if limit else end - seconds
            if first <= start:
                expected[name, instant] = len({who for who, t in facts if start <= t < end})
    return expected


def brute_to_date(
    facts: list[tuple[Any, float]], instant: int, limit: int, first: float
) -> dict[str, int]:
    """The same for the users since each calendar period began. Midnights are slot boundaries
    too."""
    starts = {name: calendar_period(name, instant, souvenirs_conf.zone).start for name in NAMES}
    end = max(instant // limit * limit, starts["day"]) if limit else instant
    return {
        name: len({who for who, t in facts if start <= t < end})
        for name, start in starts.items()
        if first <= start
    }


def of(samples: Samples, name: str) -> dict[str, float]:
    return {p or label: v for (metric, p, label), v in samples.items() if metric == name}


CLOSED = {
    "previous_calendar_growth_users",
    "retention_cohort_users",
    "retention_retained_users",
    "active_days_bucket",
    "active_days_gcount",
    "active_days_gsum",
}

moments = st.integers(T, T + 2 * DAY) | st.integers(0, 2 * 24 * 4).map(lambda n: T + n * BUCKET)
activity = st.lists(st.tuples(st.integers(0, 4), moments), max_size=20)


@pytest.mark.slow
@given(
    before=activity,
    after=activity,
    rolled_up=st.none() | moments,
    pruned=st.none() | st.integers(HOUR, DAY),
    deleted=st.sets(st.integers(0, 4), max_size=2),
    limit=st.sampled_from([3600, 900, 300, 0, 7200]),
    step=st.sampled_from([300, 900, 3600]),
    start=moments,
    zone=st.sampled_from(["UTC", "Europe/Paris", "Asia/Kolkata", "Australia/Lord_Howe"]),
)
def test_openmetrics__equals_brute_force(
    before: list[tuple[int, int]],
    after: list[tuple[int, int]],
    rolled_up: int | None,
    pruned: int | None,
    deleted: set[int],
    limit: int,
    step: int,
    start: int,
    zone: str,
) -> None:
    with override_settings(
        TIME_ZONE=zone,
        SOUVENIRS_RATELIMIT_SECONDS=limit,
        SOUVENIRS_METRICS_WINDOWS=tuple(WINDOWS),
    ):
        clear()
        users = people(5)
        try:
            for who, t in before:
                souvenez(users[who], when=to_when(t))
            if rolled_up is not None:
                roll_up(rolled_up)
                if pruned is not None:
                    with at(rolled_up):
                        pruning.prune(older_than=pruned)
            for who, t in after:
                souvenez(users[who], when=to_when(t))
            for who in deleted:
                users[who].delete()
            first = counting.first_recorded()
            without_rows = progress.watermark(router.db_for_read(Souvenir)).pruned
            facts = [
                # To the quarter: they count when it has ended, as long as a window contains part of
                # it
                (
                    who,
                    bucket_containing(t) + BUCKET - 1 if who in deleted or t < without_rows else t,
                )
                for who, t in before + after
            ]
            instants = range(-(-start // step) * step, T + 60 * HOUR, step)
            found = written(instants)
            windows = {} if first is None else brute(facts, instants, limit, first)
            for instant in instants if first is not None else ():
                samples = found[instant]
                of_windows = {w: windows[w, instant] for w in WINDOWS if (w, instant) in windows}
                assert of(samples, "active_users") == of_windows
                assert first is not None
                to_date = brute_to_date(facts, instant, limit, first)
                assert of(samples, "calendar_active_users") == to_date
                if instant % HOUR == 0:
                    closed = brute_closed(facts, set(), instant)
                    assert {k: v for k, v in samples.items() if k[0] in CLOSED} == closed
        finally:
            for user in users:
                if user.pk is not None:
                    user.delete()


def test_openmetrics__counts_a_user_whose_last_seen_row_was_lost() -> None:
    ada, bob = people(2)
    for user in (ada, bob):
        record(user, T + 5, T + HOUR + 5, T + 2 * HOUR + 5)
    LastSeen.objects.filter(user_id=ada.pk).delete()
    found = values(range(T + 2 * HOUR, T + 27 * HOUR, HOUR))
    assert found["1h", T + 2 * HOUR] == 2
    assert found["1d", T + 26 * HOUR] == 2


@override_settings(SOUVENIRS_RATELIMIT_SECONDS=0, SOUVENIRS_METRICS_WINDOWS=["1h"])
@pytest.mark.parametrize("start", [T, T + 125 * MINUTE])  # a window begins in the quarter
@pytest.mark.parametrize("state", ["rows", "rolled up", "pruned"])
def test_openmetrics__counts_deleted_users_and_pruned_rows_to_the_quarter(
    start: int, state: str
) -> None:
    ada, bob = people(2)
    for user in (ada, bob):
        record(user, T, T + 62 * MINUTE)
    if state != "rows":
        roll_up(T + DAY)
    if state == "pruned":
        with at(T + DAY):
            pruning.prune(older_than=HOUR)
    ada.delete()
    to_the_quarter = [T + 15 * MINUTE - 1, T + 75 * MINUTE - 1]
    facts: list[tuple[Any, float]] = [("ada", t) for t in to_the_quarter]
    of_bob = to_the_quarter if state == "pruned" else [T, T + 62 * MINUTE]
    facts += [("bob", t) for t in of_bob]
    instants = range(start, T + 4 * HOUR, 300)
    assert values(instants) == brute(facts, instants, 0, T)


def test_openmetrics__escapes_labels() -> None:
    [user] = people(1)
    record(user, T)
    instants = range(T + HOUR, T + 2 * HOUR, HOUR)
    awkward = 'a "quoted" \\n back\\slash\nand a line, in Zürich'
    assert values(instants, job=awkward, instance="a:1") == {("1h", T + HOUR): 1}


@override_settings(SOUVENIRS_METRICS_WINDOWS=["1h", "1d"])
def test_openmetrics__writes_series_by_series_in_chronological_order() -> None:
    [user] = people(1)
    record(user, T)
    instants = range(T + DAY + 1500, T + DAY + 4500, 1500)
    lines = "".join(prometheus_history.openmetrics(instants, {"job": "a"}))
    begin = lines[: lines.index("# HELP souvenirs_calendar_active_users")]
    assert begin == (
        "# HELP souvenirs_active_users Distinct users seen in the rolling window that ends now.\n"
        "# TYPE souvenirs_active_users gauge\n"
        f'souvenirs_active_users{{job="a",window="1h"}} 0 {T + DAY + 1500}\n'
        f'souvenirs_active_users{{job="a",window="1h"}} 0 {T + DAY + 3000}\n'
        f'souvenirs_active_users{{job="a",window="1d"}} 1 {T + DAY + 1500}\n'
        f'souvenirs_active_users{{job="a",window="1d"}} 1 {T + DAY + 3000}\n'
    )
    assert lines.endswith("# EOF\n")


def test_openmetrics__writes_closed_periods_once_an_hour_instant_by_instant() -> None:
    [user] = people(1)
    start = int(calendar_period("day", T, souvenirs_conf.zone).end)
    end = start + 28 * DAY
    record(user, *range(start, end, 2 * DAY))
    roll_up(end)
    found = written(range(end - 300, end + 2 * HOUR, 300))
    of_days = {t: of(samples, "active_days_bucket") for t, samples in found.items()}
    full = {**dict.fromkeys(["1.0", "2.0", "3.0", "5.0", "7.0", "10.0"], 0)}
    full |= dict.fromkeys(["14.0", "21.0", "28.0", "+Inf"], 1)
    assert {t: counts for t, counts in of_days.items() if counts} == {end: full, end + HOUR: full}


def test_openmetrics__writes_accounts_as_they_were_at_midnight() -> None:
    ada, bob, eve = people(3)
    record(ada, T)
    if not has_date_joined():
        assert all(not of(s, "registered_users") for s in written(range(T, T + DAY, HOUR)).values())
        return
    for user, joined in ((ada, T - DAY), (bob, T + HOUR), (eve, T + 26 * HOUR)):
        User.objects.filter(pk=user.pk).update(date_joined=to_site(to_when(joined)))
    found = written(range(T + DAY - HOUR, T + 2 * DAY + HOUR, HOUR))
    with_zone = calendar_period("day", T, souvenirs_conf.zone).end
    assert of(found[T + DAY - HOUR], "registered_users") == {"": 1 + (with_zone <= T + DAY - HOUR)}
    assert of(found[T + DAY], "registered_users") == {"": 2}
    assert of(found[T + 2 * DAY], "registered_users") == {"": 3}
    assert of(found[T + 2 * DAY], "activated_users") == {"": 3}


def test_openmetrics__has_a_week_that_began_in_another_year() -> None:
    [user] = people(1)
    new_year = unix(2026, 1, 1)  # a Thursday
    record(user, new_year - 10 * DAY, new_year - 3 * DAY)
    instants = range(new_year + DAY, new_year + 2 * DAY, HOUR)
    expected = {"day": 0, "week": 1, "month": 0, "quarter": 0, "year": 0}
    for t, samples in written(instants).items():
        assert of(samples, "calendar_active_users") == expected, t


@override_settings(TIME_ZONE="Asia/Kolkata")  # Days begin at 18:30 UTC
def test_openmetrics__may_begin_between_midnight_and_the_next_slot() -> None:
    [user] = people(1)
    midnight = T + 18 * HOUR + 30 * MINUTE
    record(user, midnight - 8 * DAY, midnight - HOUR)
    instants = range(midnight + 15 * MINUTE, midnight + 25 * MINUTE, 300)
    for samples in written(instants).values():
        assert of(samples, "active_users")["1d"] == 1
        assert of(samples, "calendar_active_users")["day"] == 0


def test_openmetrics__last_seen_is_to_the_slot() -> None:
    [user] = people(1)
    record(user, T + HOUR + 70, T + 3 * HOUR)
    instants = range(T + 2 * HOUR, T + 5 * HOUR, 1800)
    found = written(instants)
    assert [of(found[t], "last_seen_timestamp_seconds")[""] - T for t in instants] == [
        *[2 * HOUR] * 4,
        *[4 * HOUR] * 2,
    ]
    assert (
        of(written(range(T + HOUR, T + 2 * HOUR, HOUR))[T + HOUR], "last_seen_timestamp_seconds")
        == {}
    )


def test_openmetrics__without_souvenirs_has_no_samples() -> None:
    assert values(range(T, T + DAY, 300)) == {}


def test_openmetrics__reads_each_day_in_nine_queries_at_most() -> None:
    users = people(3)
    days = 10
    for user in users:
        record(user, *range(T, T + days * DAY, HOUR))
    roll_up(T + days * DAY)
    instants = range(T + 8 * DAY, T + days * DAY, 300)
    with CaptureQueriesContext(ours()) as captured:
        assert values(instants)["7d", T + 9 * DAY] == 3
    selects = [query["sql"] for query in captured if query["sql"].startswith("SELECT")]
    assert len(selects) <= 9 * days + 20
    rows = [sql for sql in selects if re.search('"?when"? >=', sql.replace("`", '"'))]
    assert not any("souvenirs_lastseen" in sql for sql in rows)  # everything is rolled up


@pytest.mark.own_site
@pytest.mark.parametrize(
    ("step", "limit", "size"),
    [
        (300, 3600, 3600),
        (300, 900, 900),
        (300, 1000, 1000),
        (300, 60, 300),
        (300, 300, 300),
        (300, 70, 280),
        (300, 0, 300),
        (86_400, 0, 1800),  # 90 minutes is not a multiple of an hour
        (86_400, 3600, 3600),
        (86_400, 900, 1800),
        (86_400, 0.5, 1800),
    ],
)
def test_block_size__is_a_multiple_of_the_slot(step: int, limit: float, size: float) -> None:
    assert replay.block_size(step, WINDOWS.values(), limit) == size


@pytest.mark.own_site
@given(
    blocks=st.lists(st.sets(st.integers(0, 6)), max_size=40),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
)
def test_count_since__counts_the_users_from_a_block_on(
    blocks: list[set[int]], lengths: list[int]
) -> None:
    wanted = [[max(0, n - length) for length in lengths] for n in range(len(blocks) + 1)]
    expected = [
        {first: len(set().union(*blocks[first:n])) for first in firsts}
        for n, firsts in enumerate(wanted)
    ]
    given = (replay.Block(list(users), []) for users in blocks)
    found = list(replay.count_since(given, wanted))
    assert [counts.since for counts in found] == expected
    assert [counts.newest for counts in found] == [
        max((n for n, users in enumerate(blocks[:end]) if users), default=None)
        for end in range(len(blocks) + 1)
    ]
