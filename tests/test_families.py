from __future__ import annotations

from souvenirs_metrics.collector import SouvenirsCollector
from souvenirs_metrics.families import Gauge, Info

# Name of the samples, type, label, in the order of the page. People's queries, dashboards and
# alerts are written against it.
CONTRACT = [
    ("souvenirs_active_users", "gauge", "window"),
    ("souvenirs_calendar_active_users", "gauge", "period"),
    ("souvenirs_calendar_period_start_timestamp_seconds", "gauge", "period"),
    ("souvenirs_last_seen_timestamp_seconds", "gauge", ""),
    ("souvenirs_rollup_lag_seconds", "gauge", ""),
    ("souvenirs_previous_calendar_active_users", "gauge", "period"),
    ("souvenirs_registered_users", "gauge", ""),
    ("souvenirs_activated_users", "gauge", ""),
    ("souvenirs_up", "gauge", ""),
    ("souvenirs_collection_part_success", "gauge", "part"),
    ("souvenirs_collection_part_duration_seconds", "gauge", "part"),
    ("souvenirs_collection_duration_seconds", "gauge", ""),
    ("souvenirs_collection_timestamp_seconds", "gauge", ""),
]


def test_families__are_the_contract() -> None:
    gauges = [family for family in SouvenirsCollector().families if isinstance(family, Gauge)]
    infos = [family for family in SouvenirsCollector().families if isinstance(family, Info)]
    assert [(g.name, g.family().type, g.label) for g in gauges] == CONTRACT
    assert [(i.name, i.family().type) for i in infos] == [("souvenirs_build", "info")]


def test_families__have_a_help_text_that_is_a_sentence() -> None:
    for family in SouvenirsCollector().families:
        assert family.documentation[0].isupper() or family.documentation[0].isdigit()
        assert family.documentation.endswith(".")
        assert "\n" not in family.documentation


def test_gauge__with_a_value_per_label() -> None:
    gauge = Gauge(name="visits", documentation="Visits.", label="page")
    samples = [(s.name, s.labels, s.value) for s in gauge.family({"a": 1, "b": 0}).samples]
    assert samples == [("visits", {"page": "a"}, 1), ("visits", {"page": "b"}, 0)]


def test_gauge__with_one_value() -> None:
    gauge = Gauge(name="visits", documentation="Visits.")
    assert [(s.labels, s.value) for s in gauge.family(0).samples] == [({}, 0)]


def test_gauge__none_is_no_sample_and_not_zero() -> None:
    assert Gauge(name="visits", documentation="Visits.").family(None).samples == []


def test_info__tells_by_labels() -> None:
    info = Info(name="site", documentation="The site.")
    [sample] = info.family({"version": "1"}).samples
    assert (sample.name, sample.labels, sample.value) == ("site_info", {"version": "1"}, 1)
