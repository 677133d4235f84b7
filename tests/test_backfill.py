"""Loading, compared with brute force over the entries."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from threading import Thread
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings as site_settings
from django.core.cache import caches
from django.db import connections
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from souvenirs import backfill, timestamps
from souvenirs.backfill import BackfillError, Entry, RejectedLine, candidates, load, loading
from souvenirs.control import count_active_users, last_seen, souvenez
from souvenirs.models import LastSeen, Souvenir
from souvenirs.periods import Interval
from souvenirs.recording import memory
from tests.people import NOBODY, User, ours, site, with_databases

has_email = pytest.mark.where(not site_settings.SHAPE & {"uuid", "string"})
pytestmark = with_databases

PARIS = ZoneInfo("Europe/Paris")
HOUR = 3_600
T = 1_700_042_400  # the beginning of an hour: 2023-11-15 11:00 in Paris
MIDNIGHT = 1_700_089_200  # the end of that day in Paris
FOLD = 1_729_990_800  # 2024-10-27 03:00 summer time in Paris, when clocks are set back by an hour


@pytest.fixture
def users() -> list[Any]:
    return [User.objects.create(username=name) for name in ("ana", "bob", "eve")]


@pytest.fixture
def ana(users: list[Any]) -> Any:
    return users[0]


def entries(*activities: tuple[Any, float]) -> list[Entry | RejectedLine]:
    return [Entry(line, user.pk, t) for line, (user, t) in enumerate(activities, 1)]


def wall(when: datetime) -> datetime:
    """A time as the database stores it: if USE_TZ is False, the local time without its fold."""
    if site_settings.USE_TZ:
        return when.astimezone(timezone.utc)
    return (when.astimezone(PARIS) if when.tzinfo else when).replace(tzinfo=None, fold=0)


def at(t: float) -> datetime:
    return wall(datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=round(t * 1e6)))


def rows() -> list[tuple[Any, datetime]]:
    found = Souvenir.objects.order_by("when", "user_id").values_list("user_id", "when")
    return [(user_pk, wall(when)) for user_pk, when in found]


def number_of_queries(items: Iterable[Entry | RejectedLine], batch_size: int = 10_000) -> int:
    with ExitStack() as stack:
        found = [stack.enter_context(CaptureQueriesContext(c)) for c in connections.all()]
        load(items, batch_size=batch_size)
    return sum(map(len, found))


def test_load__one_row_per_user_and_slot(users: list[Any]) -> None:
    ana, bob, _ = users
    summary = load(entries((ana, T + 1), (ana, T + 2), (bob, T + 3), (ana, T + HOUR)))
    assert rows() == [(ana.pk, at(T + 1)), (bob.pk, at(T + 3)), (ana.pk, at(T + HOUR))]
    assert summary == backfill.Summary(read=4, added=3, limited=1, first=T + 1, last=T + HOUR)


def test_load__slots_end_at_midnight(ana: Any) -> None:
    with override_settings(SOUVENIRS_RATELIMIT_SECONDS=7 * HOUR):
        assert load(entries((ana, MIDNIGHT - 0.000_001), (ana, MIDNIGHT))).added == 2


def test_load__slot_is_determined_in_whole_microseconds(ana: Any) -> None:
    assert load(entries((ana, T + HOUR - 0.000_000_3), (ana, T + HOUR + 1))).added == 1
    assert rows() == [(ana.pk, at(T + HOUR))]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_load__row_has_the_time_of_the_first_entry(ana: Any, batch_size: int) -> None:
    load(entries((ana, T + 5), (ana, T + 2), (ana, T + 9)), batch_size=batch_size)
    assert rows() == [(ana.pk, at(T + 5))]


def test_load__without_a_limit_every_time_is_a_row(ana: Any) -> None:
    twice = entries((ana, T), (ana, T + 0.000_001), (ana, T), (ana, T + 0.000_000_9))
    with override_settings(SOUVENIRS_RATELIMIT_SECONDS=0):
        assert load(twice).added == 2
        assert load(twice).added == 0
    assert rows() == [(ana.pk, at(T)), (ana.pk, at(T + 0.000_001))]


def test_load__respects_existing_rows(users: list[Any]) -> None:
    ana, bob, _ = users
    Souvenir.objects.create(user_id=ana.pk, when=site(datetime.fromtimestamp(T, timezone.utc)))
    summary = load(entries((ana, T + HOUR - 1), (bob, T + HOUR - 1), (ana, T - 1)))
    assert (summary.added, summary.limited) == (2, 1)


def test_load__again_adds_nothing(users: list[Any]) -> None:
    activities = entries(*((user, T + 977 * i) for i in range(20) for user in users))
    before = load(activities), rows()
    assert load(activities).added == 0
    assert rows() == before[1]


def test_load__updates_last_seen(users: list[Any]) -> None:
    ana, bob, _ = users
    load(entries((ana, T + HOUR), (ana, T), (bob, T)))
    assert last_seen(ana) == site(datetime.fromtimestamp(T + HOUR, timezone.utc))
    load(entries((ana, T - HOUR)))
    assert LastSeen.objects.get(user_id=ana.pk).seen == at(T + HOUR)


def test_load__leaves_the_rate_limit_of_visits_alone(ana: Any) -> None:
    with override_settings(SOUVENIRS_CACHE_NAME="default"):
        load(entries((ana, time.time() - 86_400), (ana, T)))
        assert not memory.recent_users
        assert not getattr(caches["default"], "_cache", None)
        assert souvenez(ana) == "added"


@pytest.mark.parametrize("seconds", [-30, 0, HOUR])
def test_load__when_clocks_are_set_back(ana: Any, seconds: float) -> None:
    """Before, in and after the repeated hour: for a database without time zones, its second pass is
    in the same slot as the first."""
    activities = entries((ana, FOLD - HOUR + seconds), (ana, FOLD + seconds))
    assert load(activities).added == (1 if seconds == 0 and not site_settings.USE_TZ else 2)
    assert load(activities).added == 0
    assert load(list(reversed(activities))).added == 0


@pytest.mark.where(site_settings.USE_TZ or ours().features.supports_timezones)
def test_load__last_seen_knows_which_of_two_equal_hours(ana: Any) -> None:
    load(entries((ana, FOLD + 60)))
    seen = LastSeen.objects.get(user_id=ana.pk).seen
    assert seen is not None
    assert timestamps.to_seconds(seen) == FOLD + 60


# Users


def test_load__users_by_key_or_its_text(users: list[Any]) -> None:
    ana, bob, _ = users
    assert load([Entry(1, str(ana.pk), T), Entry(2, bob.pk, T)]).added == 2
    assert sorted(rows()) == sorted([(ana.pk, at(T)), (bob.pk, at(T))])


def test_load__users_by_username(ana: Any) -> None:
    summary = load([Entry(1, "ana", T, "username"), Entry(2, "ANA", T, "username")])
    assert (summary.added, summary.bad) == (1, Counter({"unknown user": 1}))


def test_load__users_named_in_several_ways_have_one_row(ana: Any) -> None:
    assert load([Entry(1, "ana", T, "username"), Entry(2, ana.pk, T)]).added == 1


@has_email
def test_load__users_by_email() -> None:
    for name, email in [("a", "a@b.org"), ("c", "shared@b.org"), ("d", "shared@b.org"), ("e", "")]:
        User.objects.create(username=name, email=email)
    found: list[RejectedLine] = []
    emails = ["a@b.org", "shared@b.org", "x@b.org", None]
    items = [Entry(n, email, T, "email") for n, email in enumerate(emails, 1)]
    summary = load(items, on_bad=found.append)
    assert summary.added == summary.anonymous == 1
    assert list(map(str, found)) == [
        "line 2: several users have this: 'shared@b.org'",
        "line 3: unknown user: 'x@b.org'",
    ]


@pytest.mark.where("uuid" in site_settings.SHAPE or "string" in site_settings.SHAPE)
def test_load__users_by_email_on_a_model_without_one() -> None:
    with pytest.raises(BackfillError, match=r"cannot be found by email: .* has no field email"):
        load([Entry(1, "a@b.org", T, "email")])


def test_load__users_by_an_unknown_lookup() -> None:
    with pytest.raises(BackfillError, match="must be one of pk, username, email, not 'nick'"):
        load([Entry(1, "ana", T, "nick")])


@pytest.mark.parametrize("user_by", ["pk", "username"])
@pytest.mark.parametrize(
    "name",
    [NOBODY, "x" * 1_000, "a\0b", "\ud800", "9" * 30, "9" * 5_000, "-1", "1e3", "12.0", "İ", "💩"],
    ids=lambda name: ascii(name)[:10],
)
def test_load__unknown_users(ana: Any, name: Any, user_by: str) -> None:
    found: list[RejectedLine] = []
    items = [Entry(1, name, T, user_by), Entry(2, "ana", T, "username")]
    summary = load(items, on_bad=found.append)
    assert (summary.added, summary.bad) == (1, Counter({"unknown user": 1}))
    assert found == [RejectedLine(1, "unknown user", str(name))]


@pytest.mark.parametrize("other", [True, 1.0, Decimal(1), b"1"])
def test_load__users_with_a_key_that_equals_an_invalid_one(other: Any) -> None:
    User.objects.create(pk=1 if isinstance(NOBODY, int) else NOBODY, username="ana")
    found: list[RejectedLine] = []
    items = [Entry(1, other, T), Entry(2, 1, T), Entry(3, other, T)]
    summary = load(items, on_bad=found.append)
    assert summary.added == isinstance(NOBODY, int)
    assert RejectedLine(1, "unknown user", str(other)) in found
    assert RejectedLine(3, "unknown user", str(other)) in found


class Deletes:
    """Deletes a user after the look-up and before the write."""

    def __init__(self, user: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.user, self.real = user, loading.unrecorded
        monkeypatch.setattr(loading, "unrecorded", self)

    def __call__(self, candidates: Any) -> Any:
        if self.user.pk is not None:
            self.user.delete()
        return self.real(candidates)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_load__users_deleted_meanwhile(
    users: list[Any], monkeypatch: pytest.MonkeyPatch, strict: bool, batch_size: int
) -> None:
    ana, bob, _ = users
    items = entries((ana, T), (bob, T), (ana, T + HOUR), (bob, T + HOUR))
    Deletes(ana, monkeypatch)
    summary = load(items, strict=strict, batch_size=1_000 if strict else batch_size)
    assert rows() == [(bob.pk, at(T)), (bob.pk, at(T + HOUR))]
    assert (summary.read, summary.added, summary.limited) == (4, 2, 0)
    assert (summary.bad.total(), summary.first, summary.last) == (2, T, T + HOUR)
    assert summary.bad["user deleted meanwhile"] > 0
    assert not LastSeen.objects.filter(user_id__isnull=False).exclude(user_id=bob.pk).exists()


@pytest.mark.where("postgresql" in site_settings.DATABASES["default"]["ENGINE"])
@pytest.mark.where("routed" not in site_settings.SHAPE)
def test_load__users_deleted_before_the_commit(
    users: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL checks foreign keys at commit."""
    ana, bob, _ = users
    key, inserted = ana.pk, []

    def insert(candidates: Any, real: Callable[[Any], None] = loading.insert) -> None:
        real(candidates)
        inserted.append(candidates)
        if len(inserted) == 1:
            thread = Thread(target=lambda: (ana.delete(), connections.close_all()))
            thread.start()
            thread.join(60)
            assert not thread.is_alive()

    monkeypatch.setattr(loading, "insert", insert)
    summary = load(entries((ana, T), (bob, T)), strict=True, batch_size=1)
    assert rows() == [(bob.pk, at(T))]
    assert (summary.added, summary.bad) == (1, {"user deleted meanwhile": 1})
    assert not LastSeen.objects.filter(user_id=key).exists()


# Bad entries


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        (T * 1_000, "after 5138 (milliseconds?)"),
        (1e300, "after 5138 (milliseconds?)"),
        (4_000_000_000, "in the future"),
        (0, "before 1973 (a date without dashes?)"),
        (20_231_115, "before 1973 (a date without dashes?)"),
        (-1e300, "before 1973 (a date without dashes?)"),
    ],
)
def test_load__invalid_times(ana: Any, when: float, reason: str) -> None:
    found: list[RejectedLine] = []
    summary = load([*entries((ana, when)), Entry(2, ana.pk, T)], on_bad=found.append)
    assert [(bad.line, bad.reason) for bad in found] == [(1, reason)]
    assert found[0].value.startswith(f"{ana.pk} at ")
    assert (summary.read, summary.added, summary.bad) == (2, 1, Counter([reason]))


def test_load__accepts_the_present(ana: Any) -> None:
    assert load(entries((ana, time.time()), (ana, time.time() + 60))).bad == {"in the future": 1}


def test_load__reports_bad_entries_in_their_order(ana: Any) -> None:
    found: list[RejectedLine] = []
    items = [
        Entry(1, NOBODY, T),
        RejectedLine(2, "torn", "x"),
        Entry(3, ana.pk, 0),
        Entry(4, NOBODY, T),
    ]
    load(items, on_bad=found.append)
    assert [bad.line for bad in found] == [1, 2, 3, 4]


def test_bad__long_values_are_cut() -> None:
    assert str(RejectedLine(7, "torn", "x" * 1_000)) == f"line 7: torn: '{'x' * 99}…'"


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_load__strict_adds_all_or_nothing(users: list[Any], batch_size: int) -> None:
    ana, bob, _ = users
    good = entries((bob, T), (ana, T), (ana, T + 1), (ana, T + HOUR))
    with pytest.raises(BackfillError, match=r"^line 5: unknown user: "):
        load([*good, Entry(5, NOBODY, T), Entry(6, ana.pk, 0)], strict=True, batch_size=batch_size)
    assert not Souvenir.objects.exists()
    assert not LastSeen.objects.exists()
    summary = load(good, strict=True, batch_size=batch_size)
    assert (summary.added, summary.limited) == (3, 1)
    assert len(rows()) == 3
    assert LastSeen.objects.get(user_id=ana.pk).seen == at(T + HOUR)
    assert load(good, strict=True, batch_size=batch_size).added == 0


def test_load__strict_adds_nothing_if_writing_fails(
    users: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []

    def insert(candidates: Any, real: Callable[[Any], None] = loading.insert) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(real(candidates))

    monkeypatch.setattr(loading, "insert", insert)
    with pytest.raises(KeyboardInterrupt):
        load(entries(*((user, T) for user in users)), strict=True, batch_size=1)
    assert len(written) == 2
    assert not Souvenir.objects.exists()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_load__dry_run_reports_what_would_be_added(users: list[Any], batch_size: int) -> None:
    ana, bob, _ = users
    load(entries((bob, T)))
    items = [
        *entries((bob, T + 1), (ana, T + 1), (ana, T + 2)),
        Entry(4, None, 0),
        RejectedLine(5, "?", ""),
    ]
    items += entries((ana, T + 3), (bob, T + HOUR))
    promised = load(items, dry_run=True, batch_size=batch_size)
    assert len(rows()) == 1
    assert not LastSeen.objects.filter(user_id=ana.pk).exists()
    assert load(items, batch_size=batch_size) == promised
    assert (promised.added, promised.limited, promised.anonymous) == (2, 3, 1)


def test_load__can_be_repeated_after_an_interruption(users: list[Any]) -> None:
    whole = entries(*((user, T + 600 * i) for i in range(30) for user in users))

    def torn() -> Iterator[Entry | RejectedLine]:
        yield from whole[:50]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(torn(), batch_size=20)
    at_first = len(rows())
    assert 0 < at_first < 15
    assert load(whole, batch_size=20).added == 15 - at_first
    assert len(rows()) == 15


# Brute force


@given(data=st.data(), limit=st.sampled_from([0, 60, 900, HOUR, 7 * HOUR]))
def test_load__any_order_and_splits(data: st.DataObject, limit: int) -> None:
    Souvenir.objects.all().delete()
    people = [User.objects.get_or_create(username=name)[0] for name in ("ana", "bob", "eve")]
    instants = st.builds(
        lambda place, seconds, micros: place + seconds + micros / 1e6,
        st.sampled_from([T, MIDNIGHT, FOLD]),
        st.one_of(st.integers(-5, 5), st.integers(-3 * HOUR, 3 * HOUR)),
        st.sampled_from([0, 0, 1, 250_000, 999_999]),
    )
    activities = data.draw(st.lists(st.tuples(st.sampled_from(people), instants), max_size=25))
    runs = data.draw(st.integers(1, 4))
    repeated = [data.draw(st.permutations(activities)) for _ in range(runs)]
    batch_size = data.draw(st.sampled_from([1, 2, 7, 1_000]))
    cut = data.draw(st.integers(0, len(activities)))
    order = [*repeated[0][:cut], *(each for run in repeated for each in run)]

    expected: dict[Any, Any] = {}
    for user, t in order:
        seen = at(t)
        local = seen.replace(tzinfo=seen.tzinfo or PARIS)
        t = (local - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds()
        slot = (int(t // limit), local.astimezone(PARIS).date()) if limit else seen
        expected.setdefault((user.pk, slot), (user.pk, seen))

    with override_settings(SOUVENIRS_RATELIMIT_SECONDS=limit):
        added = load(entries(*repeated[0][:cut]), batch_size=batch_size).added
        for run in repeated:
            strict = data.draw(st.booleans())
            added += load(entries(*run), batch_size=batch_size, strict=strict).added
    assert sorted(rows(), key=str) == sorted(expected.values(), key=str)
    assert added == len(expected)
    for place in (T, MIDNIGHT):
        start, end = (datetime.fromtimestamp(place + d, timezone.utc) for d in (-HOUR, HOUR))
        active = {user.pk for user, t in order if place - HOUR <= t < place + HOUR}
        if HOUR % (limit or 1) == 0:
            assert count_active_users(start, end) == len(active)


# Bounds


def stream(users: list[Any], number: int) -> Iterator[Entry | RejectedLine]:
    """Sorted by time, all within four hours, whatever their number."""
    for n in range(number):
        yield Entry(n + 1, users[n % 3].pk, T + 4 * HOUR * n / number)


def test_load__queries_grow_with_batches_not_lines(users: list[Any]) -> None:
    first = number_of_queries(stream(users, 30))
    assert number_of_queries(stream(users, 30)) < first
    again = number_of_queries(stream(users, 3_000))
    assert again < first
    assert number_of_queries(stream(users, 3_000), 300) <= 10 * again


def test_load__queries_do_not_grow_with_gaps(users: list[Any]) -> None:
    shuffled = entries(*((users[n % 3], T + 5 * HOUR * n) for n in range(400)))
    load(shuffled)
    random.Random(1).shuffle(shuffled)
    assert number_of_queries(shuffled) <= candidates.MAX_SPANS + 5


@pytest.mark.slow
def test_load__memory_is_a_batch(users: list[Any]) -> None:
    def peak(number: int) -> int:
        tracemalloc.start()
        try:
            load(stream(users, number), batch_size=500)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1_000)  # allocations made only once
    assert peak(20_000) < 1.3 * peak(2_000)


def test_recorded__pages(users: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    activities = [(user, T + n) for n in (0, 0.5, 0.5, 7) for user in users]
    with override_settings(SOUVENIRS_RATELIMIT_SECONDS=0):
        load(entries(*activities))
    everything = list(candidates.recorded(Interval(T, T + 8)))
    assert len(everything) == 9
    for page in (1, 2, 3, 8, 9, 10):
        monkeypatch.setattr(candidates, "PAGE_SIZE", page)
        assert list(candidates.recorded(Interval(T, T + 8))) == everything
        assert list(candidates.recorded(Interval(T, T + 7))) == everything[:6]


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ([], []),
        ([(0, 10)], [(0, 10)]),
        ([(20, 30), (0, 10), (10, 20)], [(0, 30)]),
        ([(0, 10), (30, 40), (50, 60)], [(0, 10), (30, 40), (50, 60)]),
        ([(0, 10), (15, 20), (40, 50), (55, 60), (90, 99)], [(0, 20), (40, 60), (90, 99)]),
    ],
)
def test_spans(slots: Any, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MAX_SPANS", 3)
    assert candidates.spans(Interval(*slot) for slot in slots) == expected
