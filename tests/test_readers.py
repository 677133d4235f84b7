"""The readers of the page's subjects: each is a module that no other code names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import override_settings
from prometheus_client import Metric

from souvenirs_metrics import families, readers
from souvenirs_metrics.collector import SouvenirsCollector
from souvenirs_metrics.conf import conf
from souvenirs_metrics.families import Gauge, GaugeHistogram, Info
from souvenirs_metrics.readers import load_readers

in_transaction = pytest.mark.django_db(databases=list(settings.DATABASES))

READER = """
from souvenirs_metrics.conf import conf
from souvenirs_metrics.families import Gauge
from souvenirs_metrics.readers.base import Reader

MOON = Gauge(name="souvenirs_moon", documentation="Of the site.")

class Moon(Reader):
    name, order, families = "moon", 35, (MOON,)

    def read(self, now, context):
        return [MOON.family(7)]
"""


@pytest.fixture
def moon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An additional module in the package."""
    (tmp_path / "moon.py").write_text(READER)
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path)])
    yield
    del sys.modules["souvenirs_metrics.readers.moon"], readers.moon  # type: ignore[attr-defined]


@in_transaction
def test_module__in_the_package_is_a_subject_of_the_page(moon: None) -> None:
    collector = SouvenirsCollector()
    assert [reader.name for reader in load_readers()] == [
        "recording", "build", "active_users", "rollup_lag", "moon", "previous_periods", "accounts",
        "closed_periods", "active_accounts", "segments",
    ]  # fmt: skip
    collected: dict[str, Metric] = {family.name: family for family in collector.collect()}
    assert collected["souvenirs_moon"].samples[0].value == 7
    assert collected["souvenirs_up"].samples[0].value == 1
    assert "souvenirs_moon" in {family.name for family in collector.describe()}


@in_transaction
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SOUVENIRS_SHOULD_RECORD", "nowhere.hook"),
        ("SOUVENIRS_CACHE_NAME", "nowhere"),
        ("CACHES", {"default": {"BACKEND": "nowhere.Cache"}}),
    ],
)
def test_setting__that_fails_each_visit_shows_on_the_page(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with override_settings(**{name: value}):
        collected = {family.name: family for family in SouvenirsCollector().collect()}
    assert collected["souvenirs_up"].samples[0].value == 0
    assert len(collected["souvenirs_active_users"].samples) == len(conf.windows)
    (record,) = caplog.records
    assert record.message.startswith("Left recording out of the metrics: SOUVENIRS_")
    assert "nowhere" in record.message


def test_readers__have_unique_names_and_places() -> None:
    for values in ([r.name for r in load_readers()], [r.order for r in load_readers()]):
        assert len(set(values)) == len(values)


def test_families__of_the_contract_are_each_read_once() -> None:
    kinds = (Gauge, GaugeHistogram, Info)
    contract = [value for value in vars(families).values() if isinstance(value, kinds)]
    read = SouvenirsCollector().families
    assert sorted(f.name for f in read) == sorted(f.name for f in contract)
