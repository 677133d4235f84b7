from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
import time_machine
from django.conf import settings as django_settings
from django.http import HttpRequest
from django.test import RequestFactory
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from souvenirs.models import LastSeen
from souvenirs_metrics.exposition import render
from souvenirs_metrics.formats import FORMATS, negotiate
from tests.people import User, column

RunSite = Callable[..., str]

in_transaction = pytest.mark.django_db(databases=list(django_settings.DATABASES))

TEXT = "text/plain; version=0.0.4; charset=utf-8"
TEXT_1 = "text/plain; version=1.0.0; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

GAUGES = [
    "souvenirs_active_users",
    "souvenirs_calendar_active_users",
    "souvenirs_previous_calendar_active_users",
    "souvenirs_calendar_period_start_timestamp_seconds",
    "souvenirs_registered_users",
    "souvenirs_activated_users",
    "souvenirs_previous_calendar_growth_users",
    "souvenirs_retention_cohort_users",
    "souvenirs_retention_retained_users",
    "souvenirs_active_days",
    "souvenirs_active_accounts",
    "souvenirs_calendar_active_accounts",
    "souvenirs_segment_active_users",
    "souvenirs_calendar_segment_active_users",
    "souvenirs_last_seen_timestamp_seconds",
    "souvenirs_rollup_lag_seconds",
    "souvenirs_up",
    "souvenirs_collection_part_success",
    "souvenirs_collection_part_duration_seconds",
    "souvenirs_collection_duration_seconds",
    "souvenirs_collection_timestamp_seconds",
    "souvenirs_build_info",
]


def families(page: str) -> Counter[str]:
    """How often each family (by the name in its TYPE line) is on a text page."""
    return Counter(re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE))


def samples(parsed: Iterable[Metric]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    all_samples = [sample for metric in parsed for sample in metric.samples]
    by_key = {(s.name, frozenset(s.labels.items())): s.value for s in all_samples}
    assert len(by_key) == len(all_samples)  # no sample is there twice
    return by_key


# Negotiation


def request(accept: str) -> HttpRequest:
    return RequestFactory().get("/metrics", headers={"Accept": accept})


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        pytest.param(
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1"
            ";q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OPENMETRICS,
            id="Prometheus 2.42",
        ),
        pytest.param(
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "application/openmetrics-text;version=0.0.1;q=0.5,"
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,"
            "*/*;q=0.2",
            f"{OPENMETRICS}; escaping=allow-utf-8",
            id="Prometheus 3",
        ),
        pytest.param(
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,*/*;q=0.2",
            f"{TEXT_1}; escaping=allow-utf-8",
            id="Prometheus 3 that prefers text",
        ),
        pytest.param(
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;"
            "encoding=delimited;q=0.7,application/openmetrics-text;version=1.0.0;"
            "escaping=underscores;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            f"{OPENMETRICS}; escaping=underscores",
            id="Prometheus that prefers protobuf",
        ),
        pytest.param("*/*", TEXT, id="curl"),
        pytest.param(
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8",
            TEXT,
            id="browser",
        ),
        pytest.param("", TEXT, id="empty"),
        pytest.param("text/plain", TEXT, id="text of no version"),
        pytest.param("text/plain;version=0.0.4", TEXT, id="text 0.0.4"),
        pytest.param("text/plain;version=1.0.0", TEXT_1, id="text 1.0.0"),
        pytest.param("application/openmetrics-text", OPENMETRICS, id="OpenMetrics of no version"),
        pytest.param(
            'Application/OpenMetrics-Text ; Version="1.0.0"', OPENMETRICS, id="quotes and case"
        ),
        pytest.param(
            "text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4",
            TEXT,
            id="text preferred",
        ),
        pytest.param("application/openmetrics-text;q=0,*/*", TEXT, id="OpenMetrics refused"),
        pytest.param("text/plain;q=0.5,application/openmetrics-text;q=0.5", TEXT, id="a tie"),
        pytest.param("application/openmetrics-text;version=abc", TEXT, id="no version at all"),
        pytest.param("application/openmetrics-text;version=1.abc", TEXT, id="half a version"),
        pytest.param("application/openmetrics-text;version=2.0.0", TEXT, id="a version to come"),
        pytest.param("application/openmetrics-text;version=0.0.1", TEXT, id="an old version"),
        pytest.param("application/openmetrics-text;version=", TEXT, id="an empty version"),
        pytest.param("text/plain;version=99", TEXT, id="text to come"),
        pytest.param("application/openmetrics-text;q=high", OPENMETRICS, id="no quality"),
        pytest.param("application/openmetrics-text;q=nan", OPENMETRICS, id="quality not a number"),
        pytest.param("application/openmetrics-text;q=7", OPENMETRICS, id="quality out of range"),
        pytest.param("text/plain;version=0.0.4;escaping=dots", TEXT, id="text that cannot escape"),
        pytest.param("text/plain;version=1.0.0;escaping=no", TEXT, id="unknown escaping"),
        pytest.param(",;=;,q", TEXT, id="punctuation"),
    ],
)
def test_negotiate__content_type(accept: str, content_type: str) -> None:
    assert negotiate(request(accept)).content_type == content_type


def test_negotiate__without_the_header() -> None:
    assert negotiate(RequestFactory().get("/metrics")).content_type == TEXT


ITEMS = st.builds(
    "{};version={};escaping={};q={}".format,
    st.sampled_from(["text/plain", "application/openmetrics-text", "*/*"]),
    st.sampled_from(["0.0.4", "1.0.0", "2.0.0", "1", "abc", ""]),
    st.sampled_from(["allow-utf-8", "underscores", "dots", "values", "none"]),
    st.sampled_from(["1", "0.5", "0", "nan", "-1", "abc"]),
)
PUNCTUATION = st.sampled_from([",", ";", "=", '"', " "])
REGISTRY_OF_ONE = CollectorRegistry()
Gauge("a.b", "Its name needs to be escaped.", registry=REGISTRY_OF_ONE).set(7)
NAMES = {"underscores": "a_b", "dots": "a_dot_b", "values": "U__a_2e_b", "allow-utf-8": '{"a.b"}'}


@given(st.lists(ITEMS | PUNCTUATION | st.text(max_size=5), max_size=5).map(",".join))
@example("text/plain;version=1.0.0;escaping=allow-utf-8")
@example("text/plain;version*=nowhere''1%41")
@example("application/openmetrics-text;version=1.0.0;escaping=values")
@example("application/openmetrics-text;version=\uff11.0.0")
@example("application/openmetrics-text;version=1.0.0\r\nSet-Cookie: a=b")
def test_negotiate__body_matches_the_content_type(accept: str) -> None:
    chosen = negotiate(request(accept))
    body = chosen.encode(REGISTRY_OF_ONE).decode()
    matched = re.fullmatch(
        r"(text/plain|application/openmetrics-text); version=(.+); charset=utf-8"
        r"(?:; escaping=([a-z8-]+))?",
        chosen.content_type,
        re.ASCII,
    )
    assert matched
    media_type, version, escaping = matched.groups()
    name = NAMES[escaping or "underscores"]
    assert f"\n{name} 7.0\n" in body
    if media_type == "text/plain":
        assert version in ("0.0.4", "1.0.0")
        assert version == "1.0.0" or not escaping
        assert "# EOF" not in body
        [family] = parse_text(body)
    else:
        assert version == "1.0.0"
        [family] = parse_openmetrics(body)
    assert [sample.value for sample in family.samples] == [7]


# The page


@in_transaction
@time_machine.travel(datetime(2024, 5, 15, tzinfo=timezone.utc), tick=False)
def test_render__both_formats_parse_and_have_the_same_values() -> None:
    user = User.objects.create(username="ada")
    LastSeen.objects.create(user_id=user.pk, seen=column(1_715_700_000))
    text = render().decode()
    openmetrics = render(FORMATS["application/openmetrics-text;version=1.0.0"]).decode()

    def lasting(
        parsed: dict[tuple[str, frozenset[tuple[str, str]]], float],
    ) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        moving = ("process_", "python_gc_", "souvenirs_collection_")
        return {key: value for key, value in parsed.items() if not key[0].startswith(moving)}

    expected = lasting(samples(parse_text(text)))
    assert expected["souvenirs_last_seen_timestamp_seconds", frozenset()] == 1_715_700_000
    assert ("souvenirs_records_created", frozenset({("result", "added")})) in expected
    assert lasting(samples(parse_openmetrics(openmetrics))) == expected


@in_transaction
def test_render__our_families_once_and_all_of_the_default_registry() -> None:
    gauge = Gauge("of_the_site", "A metric of the site's own.")
    try:
        page = render().decode()
    finally:
        REGISTRY.unregister(gauge)
    counts = families(page)
    assert {name: counts[name] for name in GAUGES} == dict.fromkeys(GAUGES, 1)
    assert {name for name in counts if name.startswith("souvenirs_")} == {
        *GAUGES,
        "souvenirs_records_total",
        "souvenirs_records_created",
        "souvenirs_queued_visits_total",
        "souvenirs_queued_visits_created",
        "souvenirs_write_errors_total",
        "souvenirs_write_errors_created",
    }
    assert counts["of_the_site"] == counts["python_info"] == counts["souvenirs_records_total"] == 1


class Broken(Collector):
    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        raise ZeroDivisionError("it divides by zero")


@in_transaction
def test_render__a_broken_collector_of_the_site_does_not_affect_our_gauges(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Broken()
    REGISTRY.register(broken)
    try:
        page = render().decode()
    finally:
        REGISTRY.unregister(broken)
    assert set(GAUGES) <= families(page).keys()
    assert "\nsouvenirs_up 1.0\n" in page
    [line] = caplog.records
    assert "it divides by zero" in line.getMessage()


# What is decided when a process starts

PRINT_PAGE = 'print(Client().get("/metrics").text)\n'
PRINT_DEFAULT_REGISTRY = """
import prometheus_client
print(prometheus_client.generate_latest().decode())
"""
ADD_USERS = """
from django.contrib.auth.models import User
for name in "{names}".split():
    print(souvenez(User.objects.create(username=name)))
"""


def assert_once(page: str, names: Iterable[str]) -> None:
    counts = families(page)
    assert {name: counts[name] for name in names} == dict.fromkeys(names, 1)


def test_register__is_off_by_default(run_site: RunSite) -> None:
    page = run_site(PRINT_DEFAULT_REGISTRY)
    assert not families(page).keys() & set(GAUGES)
    assert_once(page, ["souvenirs_records_total", "python_info"])


def test_register__puts_our_families_in_the_default_registry_once(run_site: RunSite) -> None:
    again = "from souvenirs_metrics.exposition import register; register()\n"
    page = run_site(again + PRINT_DEFAULT_REGISTRY, "SOUVENIRS_METRICS_REGISTER = True")
    assert_once(page, [*GAUGES, "souvenirs_records_total", "python_info"])


@pytest.mark.parametrize("register", [False, True])
def test_page__with_django_prometheus_has_both_once(register: bool, run_site: RunSite) -> None:
    page = run_site(
        PRINT_PAGE,
        "INSTALLED_APPS.insert(0, 'django_prometheus')\n"
        "MIDDLEWARE = ['django_prometheus.middleware.PrometheusBeforeMiddleware',\n"
        "    'django_prometheus.middleware.PrometheusAfterMiddleware']\n"
        f"SOUVENIRS_METRICS_REGISTER = {register}",
    )
    theirs = "django_http_requests_before_middlewares_total"
    assert_once(page, [*GAUGES, "souvenirs_records_total", theirs, "python_info"])


@pytest.mark.parametrize("register", [False, True])
def test_multiprocess__counters_add_up_and_gauges_appear_once(
    register: bool, run_site: RunSite, tmp_path: Path
) -> None:
    (tmp_path / "multiprocess").mkdir()
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "multiprocess")}
    setting = f"SOUVENIRS_METRICS_REGISTER = {register}"
    assert run_site(ADD_USERS.format(names="a b"), setting, **environ) == "added\n" * 2
    assert run_site(ADD_USERS.format(names="c"), setting, **environ) == "added\n"
    page = run_site(PRINT_PAGE, setting, **environ)
    assert_once(page, [*GAUGES, "souvenirs_records_total"])
    assert 'souvenirs_records_total{result="added"} 3.0\n' in page
    assert 'souvenirs_records_total{result="failed"} 0.0\n' in page
    assert "\nsouvenirs_registered_users 3.0\n" in page
    assert 'souvenirs_active_users{window="1h"} 3.0\n' in page
    assert not re.search(r"^souvenirs.*pid=", page, re.MULTILINE)


def test_multiprocess__openmetrics(run_site: RunSite, tmp_path: Path) -> None:
    (tmp_path / "multiprocess").mkdir()
    page = run_site(
        ADD_USERS.format(names="a").replace("print", "")
        + 'headers = {"Accept": "application/openmetrics-text;version=1.0.0"}\n'
        + 'print(Client().get("/metrics", headers=headers).text, end="")',
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "multiprocess"),
    )
    parsed = samples(parse_openmetrics(page))
    assert parsed["souvenirs_records_total", frozenset({("result", "added")})] == 1
    assert parsed["souvenirs_registered_users", frozenset()] == 1


@pytest.mark.parametrize("directory", ["missing", ""])
def test_multiprocess__without_its_directory_the_site_works_and_the_check_complains(
    directory: str, run_site: RunSite, tmp_path: Path
) -> None:
    output = run_site(
        ADD_USERS.format(names="a")
        + 'response = Client().get("/metrics")\n'
        + "print(response.status_code)\n"
        + "print(response.text)\n"
        + "from django.core.management.base import SystemCheckError\n"
        + 'try:\n    call_command("check")\n'
        + "except SystemCheckError as error:\n    print(error)\n",
        PROMETHEUS_MULTIPROC_DIR=directory and str(tmp_path / directory),
    )
    assert output.startswith("added\n200\n")
    assert_once(output, GAUGES)
    assert "\nsouvenirs_up 1.0\n" in output
    assert "(souvenirs_metrics.E004) PROMETHEUS_MULTIPROC_DIR must be" in output
    assert list(tmp_path.glob("*.db")) == []  # nor is anything counted in the working directory
