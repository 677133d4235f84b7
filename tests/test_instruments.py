from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path
from prometheus_client import REGISTRY

from souvenirs.control import souvenez
from souvenirs.models import Souvenir
from souvenirs.signals import souvenir_recorded
from souvenirs_metrics.families import RECORDS_RESULTS
from tests.people import User, site, with_databases

pytestmark = with_databases

MissingTable = Callable[[type], AbstractContextManager[None]]
RunSite = Callable[..., str]
MAY = datetime(2024, 5, 15, 12, tzinfo=timezone.utc)


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"hello {request.user.get_username()}")


def nobody(request: HttpRequest, response: HttpResponse) -> bool:
    return False


urlpatterns = [path("hello", hello)]


class Records:
    """The increase of souvenirs_records_total since this object was created."""

    def __init__(self) -> None:
        self.before = self.totals()

    def totals(self) -> dict[str, float]:
        values = {
            result: REGISTRY.get_sample_value("souvenirs_records_total", {"result": result})
            for result in RECORDS_RESULTS
        }
        return {result: value for result, value in values.items() if value is not None}

    def counted(self) -> dict[str, float]:
        totals = self.totals()
        return {
            result: totals[result] - self.before[result]
            for result in totals
            if totals[result] != self.before[result]
        }


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def user() -> Any:
    return User.objects.create(username="ada")


@pytest.fixture
def signed_in(user: Any, client: Client) -> Iterator[Client]:
    client.force_login(user)
    with override_settings(ROOT_URLCONF="tests.test_instruments"):
        yield client


def test_records__added(user: Any, records: Records) -> None:
    assert souvenez(user) == "added"
    assert records.counted() == {"added": 1}


def test_records__rate_limited(user: Any, records: Records) -> None:
    for minute in (1, 2, 3):
        souvenez(user, when=site(MAY.replace(minute=minute)))
    assert records.counted() == {"added": 1, "rate_limited": 2}


def test_records__duplicated(user: Any, records: Records) -> None:
    for _ in range(3):
        souvenez(user, when=site(MAY), ratelimit=False, check_duplicate=True)
    assert records.counted() == {"added": 1, "duplicated": 2}


def test_records__hits_of_process_memory_are_flushed_at_the_scrape(
    user: Any, records: Records, client: Client
) -> None:
    for _ in range(8):
        souvenez(user)
    silent = records.counted()
    client.get("/metrics")
    assert sum(silent.values()) < 8
    assert sum(records.counted().values()) == 8
    assert records.counted()["added"] == 1


def test_records__failed(signed_in: Client, records: Records, missing_table: MissingTable) -> None:
    with missing_table(Souvenir):
        response = signed_in.get("/hello")
    assert response.content == b"hello ada"
    assert records.counted() == {"failed": 1}


def test_records__skipped(signed_in: Client, records: Records) -> None:
    with override_settings(SOUVENIRS_SHOULD_RECORD="tests.test_instruments.nobody"):
        signed_in.get("/hello")
    assert records.counted() == {"skipped": 1}


def test_records__a_failing_receiver_affects_neither_souvenez_nor_the_count(
    user: Any, records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(signal: Any, sender: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("a receiver of the site")

    souvenir_recorded.connect(broken)
    try:
        assert souvenez(user) == "added"
    finally:
        souvenir_recorded.disconnect(broken)
    assert Souvenir.objects.count() == 1
    assert records.counted() == {"added": 1}
    assert "a receiver of the site" in caplog.text


def test_records__all_results_are_on_the_page_at_0_from_the_start(run_site: RunSite) -> None:
    page = run_site('print(Client().get("/metrics").text)')
    start = page.index("# HELP souvenirs_records_total ")
    assert page[start:].splitlines()[1:7] == [
        "# TYPE souvenirs_records_total counter",
        *(f'souvenirs_records_total{{result="{result}"}} 0.0' for result in RECORDS_RESULTS),
    ]


def test_records__counts_in_a_forked_process_from_zero(run_site: RunSite) -> None:
    """A worker that is forked after start-up flushes its own hits, not its parent's again."""
    code = """
import os
from django.contrib.auth.models import User
from django.db import connection
user = User.objects.create(username="ada")
for _ in range(20):
    souvenez(user)
connection.close()
if pid := os.fork():
    os.waitpid(pid, 0)
else:
    from prometheus_client import REGISTRY
    from souvenirs_metrics.instruments import flush
    totals = []
    for prepare in (lambda: None, flush):
        prepare()
        limited = {"result": "rate_limited"}
        totals.append(REGISTRY.get_sample_value("souvenirs_records_total", limited))
    print(totals[1] - totals[0])
"""
    assert run_site(code) == "0.0\n"
