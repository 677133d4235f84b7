"""The number of accounts at the end of a day does not depend on what happens to them later."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from souvenirs.conf import conf
from souvenirs.history import accounts, progress
from souvenirs.history.accounts import Totals, as_of_all
from souvenirs.models import AccountTotals
from souvenirs.periods import calendar_period
from souvenirs.reports import calendar_daily_usage
from tests import settings as site_settings
from tests.history import DAY, HOUR, MINUTE, at, roll_up, to_when, unix
from tests.people import User, ours, with_databases

pytestmark = with_databases

has_date_joined = pytest.mark.where("string" not in site_settings.SHAPE)

T = unix(2024, 5, 14, 22)  # Paris: midnight of the 15th
CLOSED = 3 * MINUTE  # after midnight, when the day gets closed


def join(name: str, t: float, is_active: bool = True) -> Any:
    return User.objects.create(username=name, date_joined=to_when(t), is_active=is_active)


def close(t: float) -> None:
    with at(t):
        accounts.close_days(progress.due_until(t))


@has_date_joined
def test_close_days__takes_a_snapshot_of_the_day_that_ended() -> None:
    join("ada", T - 5)
    join("grace", T - 5, is_active=False)
    join("mary", T)
    close(T + CLOSED)
    [snapshot] = AccountTotals.objects.all()
    assert (snapshot.date, snapshot.end) == (date(2024, 5, 14), T)
    assert (snapshot.registered, snapshot.activated) == (2, 1)
    close(T + HOUR)
    assert AccountTotals.objects.count() == 1


@has_date_joined
def test_close_days__waits_for_the_grace_period() -> None:
    close(T + MINUTE)
    assert [snapshot.end for snapshot in AccountTotals.objects.all()] == [T - DAY]


@has_date_joined
def test_close_days__is_done_when_history_is_rolled_up() -> None:
    join("ada", T - 5)
    roll_up(T + HOUR)
    assert AccountTotals.objects.get().end == T


@has_date_joined
def test_totals__of_closed_days_stay_when_users_leave() -> None:
    ada, grace, _ = (join(name, T - 5) for name in ("ada", "grace", "mary"))
    close(T + CLOSED)
    ada.delete()
    User.objects.filter(pk=grace.pk).update(is_active=False)
    assert as_of_all([T]) == [Totals(3, 3)]
    assert accounts.as_of(to_when(T)) == Totals(2, 1)
    close(T + DAY + CLOSED)
    assert as_of_all([T, T + DAY]) == [Totals(3, 3), Totals(2, 1)]


@has_date_joined
def test_totals__are_shown_by_reports() -> None:
    ada = join("ada", T - 5)
    join("grace", T - 5)
    close(T + CLOSED)
    ada.delete()
    with at(T + DAY):
        usage, *_ = calendar_daily_usage(to_when(T - DAY), to_when(T + 1))
    assert usage["usage"]["registered_users"] == 2


@has_date_joined
def test_totals__before_the_first_snapshot_count_existing_users() -> None:
    join("ada", T - 5 * DAY)
    grace = join("grace", T - 5 * DAY)
    close(T + CLOSED)
    assert as_of_all([T - DAY, T]) == [Totals(2, 2), Totals(2, 2)]
    grace.delete()
    assert as_of_all([T - DAY, T]) == [Totals(1, 1), Totals(2, 2)]


@has_date_joined
def test_totals__after_the_last_snapshot_count_existing_users() -> None:
    ada = join("ada", T - 5)
    close(T + CLOSED)
    ada.delete()
    join("grace", T + 5)
    assert as_of_all([T, T + 6]) == [Totals(1, 1), Totals(1, 1)]


@has_date_joined
def test_totals__between_snapshots_add_users_who_joined_since() -> None:
    ada = join("ada", T - 5)
    close(T + CLOSED)
    join("grace", T + HOUR)
    join("mary", T + 2 * HOUR, is_active=False)
    close(T + DAY + CLOSED)
    ada.delete()
    ends = [T, T + HOUR, T + HOUR + 1, T + 3 * HOUR, T + DAY]
    assert as_of_all(ends) == [
        Totals(1, 1),
        Totals(1, 1),
        Totals(2, 2),
        Totals(3, 2),
        Totals(3, 2),
    ]


@has_date_joined
def test_close_days__late_takes_the_snapshots_of_all_days_since() -> None:
    join("ada", T - 5)
    close(T + CLOSED)
    join("grace", T + DAY + 5)
    close(T + 3 * DAY + HOUR)
    totals = AccountTotals.objects.order_by("end").values_list("end", "registered")
    assert list(totals) == [(T, 1), (T + DAY, 1), (T + 2 * DAY, 2), (T + 3 * DAY, 2)]


@has_date_joined
def test_close_days__twice_is_the_same_as_once() -> None:
    snapshot = AccountTotals(date=date(2024, 5, 15), end=T + DAY, registered=7, activated=5)
    join("ada", T - 5)
    close(T + CLOSED)
    snapshot.save()  # by another process
    close(T + 2 * DAY + CLOSED)
    totals = AccountTotals.objects.order_by("end").values_list("end", "registered")
    assert list(totals) == [(T, 1), (T + DAY, 7), (T + 2 * DAY, 1)]


@has_date_joined
@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"])
def test_close_days__ends_days_in_the_sites_time_zone(zone: str) -> None:
    with override_settings(TIME_ZONE=zone):
        start = unix(2024, 10, 4, 3)
        close(start)
        close(start + 40 * DAY)
        days = [calendar_period("day", start + n * DAY, conf.zone) for n in range(39)]
        ends = list(AccountTotals.objects.order_by("end").values_list("end", flat=True))
        assert ends[1:39] == [day.end for day in days[:38]]


@has_date_joined
def test_close_days__skips_a_day_that_the_time_zone_skipped() -> None:
    with override_settings(TIME_ZONE="Pacific/Apia"):
        close(unix(2011, 12, 29, 12))
        close(unix(2012, 1, 1, 12))
        dates = AccountTotals.objects.order_by("end").values_list("date", flat=True)
        days = [28, 29, 31]
        assert list(dates) == [*(date(2011, 12, day) for day in days), date(2012, 1, 1)]


@has_date_joined
def test_close_days__continues_after_a_change_of_the_time_zone() -> None:
    close(T + CLOSED)
    for zone in ("Asia/Tokyo", "America/New_York"):
        with override_settings(TIME_ZONE=zone):
            for n in range(4):
                close(T + n * DAY + 12 * HOUR)
    ends = list(AccountTotals.objects.order_by("end").values_list("end", flat=True))
    assert len(ends) == len(set(ends)) >= 4


@has_date_joined
def test_totals__take_as_many_queries_for_any_number_of_ends() -> None:
    join("ada", T - 5)
    close(T + CLOSED)
    close(T + 20 * DAY)
    taken = []
    for count in (2, 300):
        with CaptureQueriesContext(ours()) as captured:
            as_of_all([T - 5 * DAY + n * HOUR for n in range(count)])
        taken.append(len(captured))
    assert taken[0] == taken[1]
    assert as_of_all([]) == []


@pytest.mark.where("string" in site_settings.SHAPE)
def test_totals__without_date_joined_are_unknown() -> None:
    User.objects.create(username="ada")
    close(T + CLOSED)
    assert not AccountTotals.objects.exists()
    assert as_of_all([T, T + DAY]) == [(None, None), (None, None)]


@has_date_joined
def test_totals__without_is_active_count_everybody_as_active(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    column = accounts.column
    monkeypatch.setattr(
        accounts, "column", lambda name: None if name == "is_active" else column(name)
    )
    join("ada", T - 5, is_active=False)
    close(T + CLOSED)
    assert as_of_all([T]) == [Totals(1, 1)]
