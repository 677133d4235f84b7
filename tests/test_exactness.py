"""The counts compared with brute force over what happened, which is not the same as the rows."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.conf import settings as django_settings
from django.db import transaction
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from souvenirs import periods
from souvenirs.control import count_active_users, last_seen, souvenez
from souvenirs.history import maintenance
from souvenirs.models import LastSeen, Souvenir
from souvenirs.recording.throttle import throttle
from souvenirs_metrics.collector import SouvenirsCollector
from tests.history import clear
from tests.people import User, ours, with_databases

pytestmark = with_databases

MINUTE, HOUR, DAY = 60, 3_600, 86_400
WINDOWS = {"1h": HOUR, "1d": DAY, "7d": 7 * DAY, "30d": 30 * DAY}


def unix(*args: int) -> int:
    return int(datetime(*args, tzinfo=timezone.utc).timestamp())  # type: ignore[arg-type,misc]


# Times around which things happen: where clocks change, and where periods begin
PLACES = [
    ("America/New_York", unix(2024, 3, 10, 7)),
    ("America/New_York", unix(2024, 11, 3, 6)),
    ("America/New_York", unix(2024, 1, 1, 5)),
    ("Asia/Kolkata", unix(2024, 3, 31, 18, 30)),
    ("Australia/Lord_Howe", unix(2024, 4, 6, 15)),
    ("Australia/Lord_Howe", unix(2024, 10, 5, 15, 30)),
    ("Pacific/Apia", unix(2011, 12, 30, 10)),
    ("Pacific/Apia", unix(2011, 12, 31, 10)),
    ("America/St_Johns", unix(2010, 11, 7, 2, 30)),
    ("America/St_Johns", unix(2010, 11, 7, 2, 31)),
    ("America/St_Johns", unix(2011, 3, 13, 3, 31)),
    ("America/Toronto", unix(1919, 3, 31, 4, 30)),
    ("America/Havana", unix(2024, 3, 10, 5)),
    ("America/Havana", unix(2024, 11, 3, 5)),
    ("Asia/Beirut", unix(2022, 3, 26, 22)),
    ("Asia/Beirut", unix(2022, 10, 29, 21)),
    ("UTC", unix(2024, 4, 1)),
    ("UTC", unix(2024, 7, 1)),  # a Monday and the first of a quarter
]


@dataclass
class Site:
    """A site and everything that happened on it: the counts are compared with `events`."""

    users: list[Any]
    clock: time_machine.Coordinates
    resolution: int = 60
    events: list[tuple[Any, float]] = field(default_factory=list)

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(django_settings.TIME_ZONE)

    def visit(self, user: Any, at: float) -> None:
        """A live visit."""
        self.clock.move_to(at)
        souvenez(user)
        self.events.append((user, time.time()))

    def backfill(self, user: Any, when: float) -> None:
        """An earlier visit, recorded now."""
        souvenez(user, when=datetime.fromtimestamp(when, timezone.utc))
        self.events.append((user, when))

    def users_between(self, start: float, end: float = math.inf) -> int:
        return len({user for user, t in self.events if start <= t < end})

    def repeated_hour(self, t: float) -> periods.RepeatedHour | None:
        """The hour around `t` that occurs twice on local clocks, if the column does not distinguish
        the two passes."""
        if django_settings.USE_TZ or ours().features.supports_timezones:
            return None
        return periods.repeated_hour(t, self.zone)

    def possible_since(self, start: float) -> range:
        """What may be counted from `start` on: never too few."""
        least, hour = self.users_between(start), self.repeated_hour(start)
        return range(least, (self.users_between(hour.start) if hour else least) + 1)

    def gauges(self, at: float) -> dict[tuple[str, str], float]:
        """The scraped values, by metric name (without souvenirs_) and label value."""
        self.clock.move_to(at)
        samples = {
            (sample.name.removeprefix("souvenirs_"), "".join(sample.labels.values())): sample.value
            for family in SouvenirsCollector().collect()
            if family.type == "gauge"
            for sample in family.samples
        }
        assert samples["up", ""] == 1
        return samples

    def roll_up(self, at: float) -> None:
        """Roll up everything; a scrape rolls up only a little."""
        self.clock.move_to(at)
        maintenance.roll_up()

    def check_since(self, at: float) -> None:
        """Compare the windows, the periods to date and last-seen."""
        gauges = self.gauges(at)
        now = time.time()
        step = self.resolution
        for name, seconds in WINDOWS.items():
            start = (now - seconds) // step * step
            counted = gauges["active_users", name]
            assert counted in self.possible_since(start), (name, now)
        for name in periods.NAMES:
            start = periods.calendar_period(name, now, self.zone).start
            counted = gauges["calendar_active_users", name]
            assert counted in self.possible_since(start), (name, now)
            assert gauges["calendar_period_start_timestamp_seconds", name] == start
        if self.events:
            newest = max(t for _, t in self.events)
            hour = self.repeated_hour(newest)
            behind = hour.turn - hour.start if hour else 0
            assert 0 <= newest - gauges["last_seen_timestamp_seconds", ""] < step + behind
        else:
            assert ("last_seen_timestamp_seconds", "") not in gauges

    def check_previous(self, at: float) -> None:
        """Compare the last complete periods."""
        self.roll_up(at)
        gauges = self.gauges(at)
        now = time.time()
        first = Souvenir.objects.order_by("when").first()
        for name in periods.NAMES:
            period = periods.previous_calendar_period(name, now, self.zone)
            known = gauges.get(("previous_calendar_active_users", name))
            if first is None or first.when.timestamp() > period.start:
                assert known is None
            else:
                assert known == self.users_between(*period), (name, now)

    def check_last_seen(self) -> None:
        for user in self.users:
            seen = last_seen(user)
            visits = [t for who, t in self.events if who == user]
            if visits:
                assert seen is not None
                assert 0 <= max(visits) - seen.timestamp() < self.resolution
            else:
                assert seen is None


@pytest.fixture
def users() -> list[Any]:
    return [User.objects.create(username=name) for name in "abcde"]


@contextmanager
def site_in(zone: str, users: list[Any], **overrides: Any) -> Iterator[Site]:
    """A site without a history, whose clock stands still unless it is moved."""
    clear()
    with (
        override_settings(**{"TIME_ZONE": zone, "USE_TZ": True, **overrides}),
        time_machine.travel(0, tick=False) as clock,
    ):
        yield Site(users, clock, overrides.get("SOUVENIRS_LAST_SEEN_SECONDS", 60))
    throttle.clear()


@pytest.fixture
def site(users: list[Any]) -> Iterator[Site]:
    with site_in("America/New_York", users) as site:
        yield site


# Where things happen: on and next to the boundaries of everything

jitter = st.one_of(
    st.sampled_from([0, 0, -0.5, 0.5, -1, 1, -59, 59, -60, 60, -61, 61]),
    st.sampled_from([-1800, 1800, -3599, 3599, -3600, 3600, -3601, 3601, 5400]),
    st.integers(-2 * HOUR, 2 * HOUR),
    st.integers(-2 * DAY, 2 * DAY),
)
DISTANCES = [0, 0, 0, HOUR, DAY, 2 * DAY, 7 * DAY, 8 * DAY, 30 * DAY, 31 * DAY, 91 * DAY, 366 * DAY]
backwards = st.sampled_from(DISTANCES)


@dataclass(frozen=True)
class Story:
    """The events to play: (when, which user, whether the process is restarted first)."""

    zone: str
    visits: list[tuple[float, int, bool]]
    scrapes: list[float]


@st.composite
def stories(draw: st.DrawFn, play: Any) -> Story:
    # Times before 1970 can only be backfilled: Django's local-memory cache does not work then
    places = [place for place in PLACES if place[1] > 0 or play is play_backfill]
    zone, center = draw(st.sampled_from(places))
    # Visits are near the center, near a scrape, or exactly where a window or the previous day
    # begins
    scrapes = sorted(
        center + ahead + draw(jitter)
        for ahead in draw(
            st.lists(st.sampled_from([0, 0, HOUR, DAY, 7 * DAY]), min_size=1, max_size=3)
        )
    )
    instants = st.builds(
        lambda at, back, near: at - back + near,
        st.sampled_from([center, *scrapes]),
        backwards,
        jitter,
    )
    visits = draw(
        st.lists(st.tuples(instants, st.integers(0, 4), st.booleans()), min_size=1, max_size=14)
    )
    return Story(zone, visits, scrapes)


def play_live(site: Site, story: Story, check: Any) -> None:
    """Record all visits when they happen, with the scrapes between them."""
    happenings: list[tuple[float, int, bool] | tuple[float]] = [*story.visits]
    happenings += [(at,) for at in story.scrapes]
    for happening in sorted(happenings, key=lambda item: (item[0], len(item) == 1)):
        if len(happening) == 1:
            check(happening[0])
        else:
            at, user, is_restarted = happening
            if is_restarted:
                throttle.clear()
            site.visit(site.users[user], at)


def play_backfill(site: Site, story: Story, check: Any) -> None:
    """Record all visits afterwards, in any order, then scrape."""
    recorded_at = max(at for at, *_ in story.visits)
    site.clock.move_to(max(recorded_at, 0))
    for at, user, is_restarted in story.visits:
        if is_restarted:
            throttle.clear()
        site.backfill(site.users[user], at)
    for at in story.scrapes:
        if at >= recorded_at:
            check(at)
    check(recorded_at)


def play_mix(site: Site, story: Story, check: Any) -> None:
    """Record every other visit late: at the next live one, or at the scrape."""
    waiting: list[tuple[float, int, bool]] = []

    def backfill_waiting() -> None:
        while waiting:
            at, user, _ = waiting.pop()
            site.backfill(site.users[user], at)

    def backfill_and_check(at: float) -> None:
        site.clock.move_to(at)
        backfill_waiting()
        check(at)

    happenings: list[tuple[float, int, bool] | tuple[float]] = [*story.visits]
    happenings += [(at,) for at in story.scrapes]
    for number, happening in enumerate(
        sorted(happenings, key=lambda item: (item[0], len(item) == 1))
    ):
        if len(happening) == 1:
            backfill_and_check(happening[0])
        elif number % 2:
            waiting.append(happening)
        else:
            site.clock.move_to(happening[0])
            backfill_waiting()
            site.visit(site.users[happening[1]], happening[0])


ways = pytest.mark.parametrize("play", [play_live, play_backfill, play_mix])


@ways
@given(data=st.data())
def test_windows_and_periods_to_date__equal_what_happened(
    users: list[Any], play: Any, data: st.DataObject
) -> None:
    story = data.draw(stories(play))
    with site_in(story.zone, users) as site:
        play(site, story, site.check_since)
        site.check_last_seen()


@pytest.mark.slow
@ways
@given(data=st.data())
def test_previous_periods__equal_what_happened(
    users: list[Any], play: Any, data: st.DataObject
) -> None:
    story = data.draw(stories(play))
    with site_in(story.zone, users) as site:
        play(site, story, site.check_previous)


@ways
@given(data=st.data())
def test_count_active_users__at_midnights_and_slot_boundaries_equals_what_happened(
    users: list[Any], play: Any, data: st.DataObject
) -> None:
    story = data.draw(stories(play))
    with site_in(story.zone, users) as site:
        play(site, story, lambda at: None)
        instants = st.sampled_from([*story.scrapes, *(t for _, t in site.events)])
        for _ in range(4):
            bounds = []
            for _ in range(2):
                t = data.draw(instants) + data.draw(jitter)
                kind = data.draw(st.sampled_from([*periods.NAMES, "slot"]))
                if kind == "slot":
                    bounds.append(periods.slot_containing(t, HOUR, site.zone).start)
                else:
                    bounds.append(periods.calendar_period(kind, t, site.zone).start)
            start, end = sorted(bounds)
            counted = count_active_users(
                datetime.fromtimestamp(start, timezone.utc),
                datetime.fromtimestamp(end, timezone.utc),
            )
            assert counted == site.users_between(start, end)


@pytest.mark.slow
@ways
@given(
    data=st.data(),
    limit=st.sampled_from([0, 0.5, 7, 60, 90, 600, 900, 3599, 3600, 7200, 86_400]),
    resolution=st.sampled_from([1, 7, 60, 300, 3600]),
)
def test_windows__equal_what_happened_for_any_limit_and_resolution(
    users: list[Any], play: Any, data: st.DataObject, limit: float, resolution: int
) -> None:
    story = data.draw(stories(play))
    with site_in(
        story.zone,
        users,
        SOUVENIRS_RATELIMIT_SECONDS=limit,
        SOUVENIRS_LAST_SEEN_SECONDS=resolution,
    ) as site:

        def check(at: float) -> None:
            site.check_since(at)
            site.check_previous(at)

        play(site, story, check)
        site.check_last_seen()


@pytest.mark.slow
@ways
@given(data=st.data())
def test_windows_and_periods_to_date__equal_what_happened_without_use_tz(
    users: list[Any], play: Any, data: st.DataObject
) -> None:
    story = data.draw(stories(play))
    with site_in(story.zone, users, USE_TZ=False) as site:
        play(site, story, site.check_since)


# Examples

MIDNIGHT = unix(2024, 5, 15, 4)  # in New York


def test_count_active_users__user_active_before_and_after_midnight_counts_in_both_days(
    site: Site,
) -> None:
    site.visit(site.users[0], MIDNIGHT - 30 * MINUTE)
    site.visit(site.users[0], MIDNIGHT + 15 * MINUTE)
    midnight = datetime(2024, 5, 15, tzinfo=site.zone)
    assert count_active_users(end=midnight) == 1
    assert count_active_users(start=midnight) == 1


def test_previous_day__user_active_before_and_after_midnight_counts_in_both_days(
    site: Site,
) -> None:
    site.visit(site.users[1], MIDNIGHT - 30 * HOUR)  # otherwise there was no history then
    site.visit(site.users[0], MIDNIGHT - 30 * MINUTE)
    site.visit(site.users[0], MIDNIGHT + 15 * MINUTE)
    site.roll_up(MIDNIGHT + 20 * MINUTE)
    gauges = site.gauges(MIDNIGHT + 20 * MINUTE)
    assert gauges["previous_calendar_active_users", "day"] == 1
    assert gauges["calendar_active_users", "day"] == 1
    site.roll_up(MIDNIGHT + DAY)
    gauges = site.gauges(MIDNIGHT + DAY)
    assert gauges["previous_calendar_active_users", "day"] == 1
    assert gauges["calendar_active_users", "day"] == 0


@pytest.mark.parametrize(("minutes_ago", "count"), [(59, 1), (62, 0)])
def test_window__depends_on_the_last_visit_of_a_session(
    site: Site, minutes_ago: int, count: int
) -> None:
    last = MIDNIGHT + 10 * HOUR
    for minutes in range(41, -1, -1):
        site.visit(site.users[0], last - minutes * MINUTE)
    assert site.gauges(last + minutes_ago * MINUTE)["active_users", "1h"] == count


def test_gauges__day_before_midnight_equals_previous_day_after_it(site: Site) -> None:
    site.visit(site.users[4], MIDNIGHT - 3 * DAY)
    for number, user in enumerate(site.users[:3]):
        site.visit(user, MIDNIGHT - 5 * HOUR + number * 97 * MINUTE)
    site.roll_up(MIDNIGHT - 1)
    before = site.gauges(MIDNIGHT - 1)["calendar_active_users", "day"]
    after = site.gauges(MIDNIGHT + 1)["previous_calendar_active_users", "day"]
    assert before == after == 3


class RollBackError(Exception):
    pass


def visit_and_roll_back(user: Any) -> None:
    with contextlib.suppress(RollBackError), transaction.atomic(using=ours().alias):
        assert souvenez(user) == "added"
        raise RollBackError


def test_souvenez__rolled_back_does_not_count(site: Site) -> None:
    site.clock.move_to(MIDNIGHT)
    visit_and_roll_back(site.users[0])
    assert not Souvenir.objects.exists()
    assert not LastSeen.objects.exists()
    site.check_since(MIDNIGHT + 1)


def test_souvenez__after_a_rollback_is_recorded_again_within_a_minute(site: Site) -> None:
    site.clock.move_to(MIDNIGHT + 10)
    visit_and_roll_back(site.users[0])
    results = []
    for seconds in range(11, 80):
        site.clock.move_to(MIDNIGHT + seconds)
        results.append(souvenez(site.users[0]))
    assert results.count("added") == 1
    assert results.index("added") <= 60 - 1
    row = Souvenir.objects.get()
    assert row.user_id == site.users[0].pk
    assert row.when.timestamp() <= MIDNIGHT + 70


def test_souvenez__first_visit_a_minute_after_a_rollback_is_recorded_at_once(site: Site) -> None:
    site.clock.move_to(MIDNIGHT)
    visit_and_roll_back(site.users[0])
    site.visit(site.users[0], MIDNIGHT + 60)
    assert Souvenir.objects.count() == 1
    site.check_since(MIDNIGHT + 61)


def test_souvenez__visit_soon_after_a_rollback_counts_in_windows(site: Site) -> None:
    site.clock.move_to(MIDNIGHT)
    visit_and_roll_back(site.users[0])
    site.visit(site.users[0], MIDNIGHT + 1)
    site.check_since(MIDNIGHT + 2)


def test_souvenez__committed_transaction_counts(site: Site) -> None:
    site.clock.move_to(MIDNIGHT)
    with transaction.atomic(using=ours().alias):
        site.visit(site.users[0], MIDNIGHT)
        site.visit(site.users[0], MIDNIGHT + 30)
        site.visit(site.users[1], MIDNIGHT + 31)
    assert Souvenir.objects.count() == 2
    site.check_since(MIDNIGHT + 32)
    site.check_last_seen()


def test_souvenez__long_transaction_counts_a_user_once(site: Site) -> None:
    site.clock.move_to(MIDNIGHT)
    with transaction.atomic(using=ours().alias):
        for minutes in range(0, 50, 10):
            site.visit(site.users[0], MIDNIGHT + minutes * MINUTE)
    site.check_since(MIDNIGHT + HOUR)
    site.check_last_seen()
    assert count_active_users() == 1


def test_clock_step_backwards__future_visits_count_again_once_the_user_is_back(site: Site) -> None:
    now = MIDNIGHT + 12 * HOUR
    for user in site.users[:2]:
        site.visit(user, now + 5 * HOUR)  # the clock was wrong
    site.events.clear()
    assert site.gauges(now)["active_users", "1h"] == 0
    site.visit(site.users[0], now + 1)
    site.check_since(now + 2)
    site.check_since(now + HOUR - 60)
    seen = last_seen(site.users[0])
    assert seen is not None
    assert seen.timestamp() == now + 1


def test_clock_step_backwards__short_steps_hide_nobody(site: Site) -> None:
    site.visit(site.users[0], MIDNIGHT + 45)
    gauges = site.gauges(MIDNIGHT)
    assert gauges["active_users", "1h"] == 1
    assert gauges["calendar_active_users", "day"] == 1


@pytest.mark.parametrize("ahead", [61, HOUR, DAY, 400 * DAY])
def test_gauges__future_visits_do_not_count(site: Site, ahead: int) -> None:
    now = MIDNIGHT + 12 * HOUR
    site.clock.move_to(now)
    site.backfill(site.users[0], now + ahead)
    site.events.clear()
    site.check_since(now)
    assert last_seen(site.users[0]) is None


def test_gauges__visit_from_a_clock_slightly_ahead_counts(site: Site) -> None:
    site.clock.move_to(MIDNIGHT)
    site.backfill(site.users[0], MIDNIGHT + 60)
    assert site.gauges(MIDNIGHT)["active_users", "1h"] == 1


def test_souvenez__future_visits_do_not_hide_the_present(site: Site) -> None:
    site.clock.move_to(MIDNIGHT)
    site.backfill(site.users[0], MIDNIGHT + 10 * DAY)
    site.events.clear()
    site.visit(site.users[0], MIDNIGHT + 1)
    site.check_since(MIDNIGHT + 2)
    site.check_last_seen()
