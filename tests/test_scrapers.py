"""What scrapers send, and what strangers might send, over real HTTP to the exporter of a small
site."""

from __future__ import annotations

import gzip
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.conftest import SETTINGS, START, site_environ
from tests.test_exporter import exporter

pytestmark = pytest.mark.own_site

RunSite = Callable[..., str]

TOKEN = "the-token-of-the-tests"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
TEXT_1 = "text/plain; version=1.0.0; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True)
class Answer:
    """A response with its body decompressed."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")

    def samples(self) -> dict[tuple[str, str], float]:
        """By name and label values. Fails if the body does not match the Content-Type."""
        text = self.body.decode()
        families: list[Metric]
        if self.content_type.startswith("application/openmetrics-text; version=1.0.0;"):
            assert text.endswith("# EOF\n")
            families = list(parse_openmetrics(text))
        else:
            assert self.content_type.startswith("text/plain; version=")
            assert "# EOF" not in text
            families = list(parse_text(text))
        samples = [sample for family in families for sample in family.samples]
        by_key = {(s.name, " ".join(s.labels.values())): s.value for s in samples}
        assert len(by_key) == len(samples)  # no sample is there twice
        return by_key


def ask(port: int, request: bytes) -> Answer:
    """Send these bytes, and read the response."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        response = HTTPResponse(connection, method=request.split(b" ")[0].decode("latin-1"))
        response.begin()
        body = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
    if headers.get("content-encoding") == "gzip" and body:
        body = gzip.decompress(body)
    return Answer(response.status, headers, body)


def get(port: int, headers: dict[str, str], target: str = "/metrics") -> Answer:
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ask(port, "\r\n".join([*lines, "", ""]).encode("latin-1"))


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the exporter of a site with three active users, whose /metrics requires TOKEN."""
    directory = tmp_path_factory.mktemp("site")
    (directory / "site_settings.py").write_text(
        f"{SETTINGS}SOUVENIRS_METRICS_TOKEN = {TOKEN!r}\nLOGGING_CONFIG = None\n"
    )
    code = """
from django.contrib.auth.models import User
for name in "abc":
    souvenez(User.objects.create(username=name))
"""
    environment = site_environ(directory)
    command = [sys.executable, "-W", "error", "-c", START + code]
    subprocess.run(command, cwd=directory, env=environment, check=True, timeout=60)
    with exporter(directory, ":0") as (url, _):
        yield int(url.rpartition(":")[2])


# Known scrapers


def prometheus_3(escaping: str) -> str:
    return (
        f"application/openmetrics-text;version=1.0.0;escaping={escaping};q=0.6,"
        "application/openmetrics-text;version=0.0.1;q=0.5,"
        f"text/plain;version=1.0.0;escaping={escaping};q=0.4,text/plain;version=0.0.4;q=0.3,"
        "*/*;q=0.2"
    )


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)
# Accept, Accept-Encoding (None: not sent), and the expected Content-Type
SCRAPERS: dict[str, tuple[str | None, str | None, str]] = {
    "Prometheus 2.5 to 2.39": (
        "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        "gzip",
        TEXT,
    ),
    "Prometheus 2.42, Grafana Agent": (PROMETHEUS_2, "gzip", OPENMETRICS),
    "Prometheus 2.42 with native histograms": (
        f"{PROTOBUF},application/openmetrics-text;version=1.0.0;q=0.8,"
        "application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,"
        "*/*;q=0.1",
        "gzip",
        OPENMETRICS,
    ),
    "Prometheus 2.49": (
        "application/openmetrics-text;version=1.0.0;q=0.5,"
        "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
        "gzip",
        OPENMETRICS,
    ),
    # The OpenTelemetry collector's receiver and Grafana Alloy scrape with Prometheus's code
    "Prometheus 3, OpenTelemetry collector, Alloy": (
        prometheus_3("allow-utf-8"),
        "gzip",
        f"{OPENMETRICS}; escaping=allow-utf-8",
    ),
    "Prometheus 3, enable_compression: false": (
        prometheus_3("allow-utf-8"),
        "identity",
        f"{OPENMETRICS}; escaping=allow-utf-8",
    ),
    "Prometheus 3, metric_name_escaping_scheme: underscores": (
        prometheus_3("underscores"),
        "gzip",
        f"{OPENMETRICS}; escaping=underscores",
    ),
    # These two would rename metrics that need no escaping, and thus leave dashboards without data
    "Prometheus 3, metric_name_escaping_scheme: dots": (prometheus_3("dots"), "gzip", OPENMETRICS),
    "Prometheus 3, metric_name_escaping_scheme: values": (
        prometheus_3("values"),
        "gzip",
        OPENMETRICS,
    ),
    "Prometheus 3 with native histograms": (
        f"{PROTOBUF};q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
        "application/openmetrics-text;version=0.0.1;q=0.4,"
        "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,"
        "*/*;q=0.1",
        "gzip",
        f"{OPENMETRICS}; escaping=allow-utf-8",
    ),
    "Prometheus 3, scrape_protocols: [PrometheusProto]": (
        f"{PROTOBUF};q=0.6,*/*;q=0.5",
        "gzip",
        TEXT,
    ),
    "Prometheus 3, scrape_protocols: [OpenMetricsText1.0.0]": (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.5",
        "gzip",
        f"{OPENMETRICS}; escaping=allow-utf-8",
    ),
    "Prometheus 3, scrape_protocols: [OpenMetricsText0.0.1]": (
        "application/openmetrics-text;version=0.0.1;q=0.6,*/*;q=0.5",
        "gzip",
        TEXT,
    ),
    "Prometheus 3, scrape_protocols: [PrometheusText1.0.0]": (
        "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.5",
        "gzip",
        f"{TEXT_1}; escaping=allow-utf-8",
    ),
    "Prometheus 3, scrape_protocols: [PrometheusText0.0.4]": (
        "text/plain;version=0.0.4;q=0.6,*/*;q=0.5",
        "gzip",
        TEXT,
    ),
    "vmagent, Netdata": ("text/plain;version=0.0.4;q=1,*/*;q=0.1", "gzip", TEXT),
    "Telegraf": (f"{PROTOBUF};q=0.7,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", "gzip", TEXT),
    "Datadog agent": ("text/plain", "gzip, deflate", TEXT),
    "Datadog agent 7.46": (PROMETHEUS_2, "gzip, deflate", OPENMETRICS),
    "Datadog agent, use_latest_spec": (
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1",
        "gzip, deflate",
        OPENMETRICS,
    ),
    "curl": ("*/*", None, TEXT),
    "curl --compressed": ("*/*", "deflate, gzip, br, zstd", TEXT),
    "Chromium": (
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/jxl,image/avif,image/webp,"
        "image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7",
        "gzip, deflate, br, zstd",
        TEXT,
    ),
    "Firefox": (
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "gzip, deflate, br, zstd",
        TEXT,
    ),
    "netcat": (None, None, TEXT),
}


@pytest.mark.parametrize("scraper", SCRAPERS)
def test_scraper__gets_what_it_can_read(scraper: str, port: int) -> None:
    accept, accept_encoding, content_type = SCRAPERS[scraper]
    sent = {"Accept": accept, "Accept-Encoding": accept_encoding}
    headers = {name: value for name, value in sent.items() if value is not None}
    # Most send "10", but this is how vmagent writes it
    timeout = {"X-Prometheus-Scrape-Timeout-Seconds": "10.000"}
    answer = get(port, {"Authorization": f"Bearer {TOKEN}", **headers, **timeout})
    assert answer.status == 200
    assert answer.content_type == content_type
    assert answer.headers.get("content-encoding") == (
        "gzip" if "gzip" in (accept_encoding or "") else None
    )
    samples = answer.samples()
    assert samples["souvenirs_up", ""] == 1
    assert samples["souvenirs_active_users", "1h"] == samples["souvenirs_registered_users", ""] == 3
    assert ("souvenirs_records_total", "added") not in samples  # this one is counted by the site


# Arbitrary requests

# Header values may contain any byte except those that end the line
BYTES = st.binary(max_size=40).map(lambda value: re.sub(rb"[\r\n]", b"", value))
ACCEPTS = st.one_of(
    st.sampled_from([accept.encode() for accept, _, _ in SCRAPERS.values() if accept]),
    st.lists(
        st.sampled_from(
            [b"text/plain", b"application/openmetrics-text", b"*/*", b";version=", b"1.0.0",
             b"0.0.4", b";escaping=", b"dots", b";q=", b"0.5", b"nan", b",", b"="]
        ) | BYTES,
        max_size=12,
    ).map(b"".join),
)  # fmt: skip
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        b"Accept": ACCEPTS,
        b"Accept-Encoding": st.sampled_from([b"gzip", b"identity", b"gzip;q=0", b"*"]) | BYTES,
        b"Authorization": BYTES | BYTES.map(lambda value: b"Bearer " + value),
        b"Content-Length": st.sampled_from([b"0", b"-1", b"x", b"9" * 30]) | BYTES,
        b"Content-Type": st.sampled_from(
            [b"text/plain; charset=" + name for name in (b"hex", b"undefined", b"utf-16", b"no")]
        )
        | BYTES,
        b"Cookie": BYTES,
        b"X-Forwarded-For": BYTES,
        b"X-Prometheus-Scrape-Timeout-Seconds": st.floats().map(lambda x: str(x).encode())
        | st.sampled_from([b"0", b"-0", b"1e-9", b"1e999", b"0x10", b"1_0", b"\xb2"])
        | BYTES,
    },
)
NAMES = st.sampled_from(["souvenirs_up", "souvenirs_records_total", "python_info", "up"])
VALUES = st.one_of(
    NAMES.map(str.encode),
    BYTES,
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
)


def percent_encoded(value: bytes) -> bytes:
    return b"".join(b"%%%02x" % byte for byte in value)


PAIRS = st.builds(
    lambda name, value: name + b"=" + value,
    st.sampled_from([b"name[]", b"name%5B%5D", b"name[]%00", b"name", b""]) | BYTES,
    VALUES | VALUES.map(percent_encoded) | st.sampled_from([b"%", b"%f", b"%ff%00", b"%u0041"]),
)
# What http.server considers white space would end the request target
QUERIES = st.lists(PAIRS, max_size=5).map(
    lambda pairs: re.sub(rb"[\0-\x20\x85\xa0]", b"+", b"&".join(pairs))
)
AUTHORIZED = {b"Authorization": b"Bearer " + TOKEN.encode()}


def request(method: bytes, query: bytes, headers: dict[bytes, bytes]) -> bytes:
    lines = [b"%s /metrics?%s HTTP/1.1" % (method, query)]
    lines += [b"%s: %s" % pair for pair in headers.items()]
    return b"\r\n".join([*lines, b"", b""])


@given(query=QUERIES, headers=HEADERS, is_authorized=st.booleans())
@example(query=b"", headers={b"Content-Type": b"text/plain; charset=undefined"}, is_authorized=True)
@example(query=b"name[]=%c3", headers={b"Content-Type": b"; charset=hex"}, is_authorized=True)
@example(query=b"name[]=up&" * 3_000, headers={}, is_authorized=True)
@example(query=b"&" * 20_000, headers={}, is_authorized=True)
@example(query=b"name[]=" + b"x" * 60_000, headers={}, is_authorized=True)
@example(query=b"", headers={b"Authorization": b"Bearer \xff\xfe"}, is_authorized=False)
def test_any_request__gets_the_right_response(
    query: bytes, headers: dict[bytes, bytes], is_authorized: bool, port: int
) -> None:
    if is_authorized:
        headers = {**headers, **AUTHORIZED}
    answer = ask(port, request(b"GET", query, headers))
    if not is_authorized:
        assert (answer.status, answer.body) == (401, b"Unauthorized\n")
        return
    assert answer.status == 200
    assert answer.headers.get("content-encoding", "gzip") == "gzip"
    names = {name for name, _ in answer.samples()}
    if b"name" not in query and b"%" not in query:
        assert "souvenirs_up" in names


@given(
    method=st.sampled_from([b"HEAD", b"POST", b"PUT", b"OPTIONS", b"TRACE", b"BREW"]),
    path=st.binary(max_size=20),
    headers=HEADERS,
)
def test_other_request__is_refused(
    method: bytes, path: bytes, headers: dict[bytes, bytes], port: int
) -> None:
    """Other methods, paths and request lines."""
    path = re.sub(rb"[\r\n]", b"", path)
    assume(b"/metrics" not in path)
    to_page = request(method, b"", {**headers, **AUTHORIZED})
    assert ask(port, to_page).status == (200 if method == b"HEAD" else 405)
    elsewhere = b"%s /metrics/%s HTTP/1.1\r\n\r\n" % (method, path)
    assert ask(port, elsewhere).status in (400, 404, 505)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /metrics?" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    ],
)
def test_oversized_request__is_refused(sent: bytes, status: int, port: int) -> None:
    assert ask(port, sent).status == status
    assert get(port, {"Authorization": f"Bearer {TOKEN}"}).status == 200


# What no response reveals

PEOPLE = """
from django.contrib.auth import get_user_model
from souvenirs.control import count_active_users
from datetime import datetime, timedelta, timezone
now = datetime.now(timezone.utc)
for name in ("ada@lovelace.example", "grace_hopper", "\u017dofia"):
    user = get_user_model().objects.create(username=name)
    for days in (0, 1, 40):
        souvenez(user, when=now - timedelta(days=days))
"""
PEOPLE_SETTINGS = """
AUTH_USER_MODEL = "users.StringUser"
INSTALLED_APPS.append("tests.users")
"""
TELLING = "lovelace|hopper|ofia|ada@"
# Every response of the page, and everything logged meanwhile from level INFO on
SHOW = """
import io, logging, sys
from django.test import override_settings
log = io.StringIO()
logging.getLogger().addHandler(logging.StreamHandler(log))
logging.getLogger().setLevel(logging.INFO)
client = Client(raise_request_exception=False)
def show(method="GET", path="/metrics", **headers):
    response = client.generic(method, path, headers=headers)
    print("status", response.status_code, response.headers.get("Content-Type"))
    print(response.text)
"""


def statuses(shown: str) -> list[str]:
    return re.findall(r"^status (\d+) ", shown, re.MULTILINE)


def test_pages_and_logs__contain_nothing_about_users(run_site: RunSite) -> None:
    shown = run_site(
        PEOPLE
        + SHOW
        + """
from souvenirs_metrics.exposition import collector
show()
show(Accept="application/openmetrics-text")
show("POST")
show(path="/metrics/ada")
with override_settings(SOUVENIRS_METRICS_TOKEN="secret"):
    show(Authorization="Bearer ada")
for table in ("lastseen", "souvenir", "rollup"):  # the log of a part that cannot be read
    from django.db import connection
    connection.cursor().execute(f"ALTER TABLE souvenirs_{table} RENAME TO away")
    collector.reset()
    show()
    connection.cursor().execute(f"ALTER TABLE away RENAME TO souvenirs_{table}")
print("logged", log.getvalue())
""",
        PEOPLE_SETTINGS,
    )
    assert statuses(shown) == ["200", "200", "405", "404", "401", "200", "200", "200"]
    assert shown.count('souvenirs_active_users{window="30d"} 3.0') == 4
    assert "no such table" in shown.partition("logged")[2]
    assert not re.search(TELLING, shown)
    labels = set(re.findall(r'[{,](\w+)="', shown))
    assert labels == {
        "window", "period", "part", "result", "version", "python", "django", "database",
        "last_seen_store", "implementation", "major", "minor", "patchlevel", "generation",
    }  # fmt: skip


INSIDE = "Traceback|site-packages|/srv/secret|SELECT|[sS]ecret|Error:|[.]py"
BROKEN = """
class Broken(Exception):
    def __str__(self):
        return "SELECT secret FROM /srv/secret.py"

def broken(request):
    raise Broken
"""
BROKEN_CASES = """
import site_settings
from prometheus_client import REGISTRY
class Collector:
    def describe(self):
        return []
    def collect(self):
        raise site_settings.Broken
show("POST")
show(path="/metrics/nowhere")
with override_settings(SOUVENIRS_METRICS_TOKEN=["a-secret-token"]):
    show()
with override_settings(SOUVENIRS_METRICS_AUTHORIZE="site_settings.broken"):
    show()
with override_settings(SOUVENIRS_METRICS_AUTHORIZE="srv.secret"):  # there is none
    show()
with override_settings(SOUVENIRS_METRICS_TOKEN=5):
    show()
REGISTRY.register(Collector())
show()
"""
SHOW_OF_EXPORTER = f"""{SHOW}
from io import BytesIO
from wsgiref.util import setup_testing_defaults
from souvenirs_metrics.server import application
def show(method="GET", path="/metrics"):
    environ = {{"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": BytesIO()}}
    setup_testing_defaults(environ)
    body = application(environ, lambda status, headers: print("status", status, headers))
    print(b"".join(body).decode())
"""


@pytest.mark.parametrize("served", [SHOW, SHOW_OF_EXPORTER], ids=["site", "exporter"])
def test_error_pages__reveal_no_internals(served: str, run_site: RunSite, tmp_path: Path) -> None:
    shown = run_site(f"{served}{BROKEN_CASES}print('logged', log.getvalue())\n", BROKEN)
    answers, _, logged = shown.partition("logged")
    assert statuses(answers) == ["405", "404", "401", "403", "500", "500", "200"]
    assert not re.search(f"{INSIDE}|{tmp_path}", answers)
    # in the log, which the site's operator reads
    assert "SELECT secret FROM /srv/secret.py" in logged
    assert "\nsouvenirs_up 1.0\n" in answers
