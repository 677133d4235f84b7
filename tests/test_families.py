from __future__ import annotations

from prometheus_client import Metric, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from souvenirs_metrics.collector import SouvenirsCollector
from souvenirs_metrics.families import Gauge, GaugeHistogram, Info

# Sample name, type, labels, in the order of the page. Users' queries, dashboards and alerts are
# written against them.
CONTRACT = [
    ("souvenirs_active_users", "gauge", ("window",)),
    ("souvenirs_calendar_active_users", "gauge", ("period",)),
    ("souvenirs_calendar_period_start_timestamp_seconds", "gauge", ("period",)),
    ("souvenirs_last_seen_timestamp_seconds", "gauge", ()),
    ("souvenirs_rollup_lag_seconds", "gauge", ()),
    ("souvenirs_previous_calendar_active_users", "gauge", ("period",)),
    ("souvenirs_registered_users", "gauge", ()),
    ("souvenirs_activated_users", "gauge", ()),
    ("souvenirs_previous_calendar_growth_users", "gauge", ("period", "change")),
    ("souvenirs_retention_cohort_users", "gauge", ("period", "age")),
    ("souvenirs_retention_retained_users", "gauge", ("period", "age")),
    ("souvenirs_active_accounts", "gauge", ("window",)),
    ("souvenirs_calendar_active_accounts", "gauge", ("period",)),
    ("souvenirs_segment_active_users", "gauge", ("segment", "value", "window")),
    ("souvenirs_calendar_segment_active_users", "gauge", ("segment", "value", "period")),
    ("souvenirs_up", "gauge", ()),
    ("souvenirs_collection_part_success", "gauge", ("part",)),
    ("souvenirs_collection_part_duration_seconds", "gauge", ("part",)),
    ("souvenirs_collection_duration_seconds", "gauge", ()),
    ("souvenirs_collection_timestamp_seconds", "gauge", ()),
]


def test_families__are_the_contract() -> None:
    gauges = [family for family in SouvenirsCollector().families if isinstance(family, Gauge)]
    histograms = [f for f in SouvenirsCollector().families if isinstance(f, GaugeHistogram)]
    infos = [family for family in SouvenirsCollector().families if isinstance(family, Info)]
    assert [(g.name, g.family().type, g.labels) for g in gauges] == CONTRACT
    assert [(h.name, h.bounds) for h in histograms] == [
        ("souvenirs_active_days", (1, 2, 3, 5, 7, 10, 14, 21, 28))
    ]
    assert [(i.name, i.family().type) for i in infos] == [("souvenirs_build", "info")]


def test_families__have_a_help_text_that_is_a_sentence() -> None:
    for family in SouvenirsCollector().families:
        assert family.documentation[0].isupper() or family.documentation[0].isdigit()
        assert family.documentation.endswith(".")
        assert "\n" not in family.documentation


def test_gauge__with_a_value_per_label() -> None:
    gauge = Gauge(name="visits", documentation="Visits.", labels=("page",))
    samples = [(s.name, s.labels, s.value) for s in gauge.family({"a": 1, "b": 0}).samples]
    assert samples == [("visits", {"page": "a"}, 1), ("visits", {"page": "b"}, 0)]


def test_gauge__with_one_value() -> None:
    gauge = Gauge(name="visits", documentation="Visits.")
    assert [(s.labels, s.value) for s in gauge.family(0).samples] == [({}, 0)]


def test_gauge__none_means_no_sample_instead_of_zero() -> None:
    assert Gauge(name="visits", documentation="Visits.").family(None).samples == []


def test_gauge__with_several_labels() -> None:
    gauge = Gauge(name="visits", documentation="Visits.", labels=("page", "day"))
    samples = [(s.labels, s.value) for s in gauge.family({("a", "b"): 1}).samples]
    assert samples == [({"page": "a", "day": "b"}, 1)]


def test_gauge_histogram__is_the_same_series_in_both_formats() -> None:
    histogram = GaugeHistogram(name="days", documentation="Days.", bounds=(1, 7))

    class Days(Collector):
        def collect(self) -> list[Metric]:
            return [histogram.family({1: 5, 6: 2, 9: 1})]

    expected = [
        'days_bucket{le="1.0"} 5.0',
        'days_bucket{le="7.0"} 7.0',
        'days_bucket{le="+Inf"} 8.0',
        "days_gcount 8.0",
        "days_gsum 26.0",
    ]
    for encode in (generate_latest, generate_openmetrics):
        lines = encode(Days()).decode().splitlines()
        assert [line for line in lines if not line.startswith("#")] == expected
    assert histogram.family(None).samples == []


def test_info__has_its_values_in_labels() -> None:
    info = Info(name="site", documentation="The site.")
    [sample] = info.family({"version": "1"}).samples
    assert (sample.name, sample.labels, sample.value) == ("site_info", {"version": "1"}, 1)
