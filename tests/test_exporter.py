"""The standalone exporter, as a process of a small site."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from django.core.management import execute_from_command_line
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests import servers
from tests.conftest import site_environ

pytestmark = pytest.mark.own_site

RunSite = Callable[..., str]
ADA = """
from django.contrib.auth.models import User
souvenez(User.objects.create(username="ada"))
"""


# The command, with a shorter wait for running requests at shutdown
SHORT_END = """
import django
django.setup()
from django.core.management import execute_from_command_line
from souvenirs_metrics import server
server.SHUTDOWN_SECONDS = 1
execute_from_command_line()
"""


def command(*args: str, code: Sequence[str] = ("-m", "django")) -> list[str]:
    return [sys.executable, "-W", "error", *code, "souvenirs_exporter", *args]


@contextmanager
def exporter(
    directory: Path, *args: str, code: Sequence[str] = ("-m", "django"), **environ: str
) -> Iterator[tuple[str, Any]]:
    """Run the exporter; yield its URL, as it prints it, and its process, which must exit on
    SIGTERM. `code`: Python's arguments to run the command."""
    log = directory / "exporter.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command(*args, code=code),
            cwd=directory,
            env={**site_environ(directory), **environ},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"Serving (https?://\S+)/metrics\n", line)
        assert found, line + log.read_text()
        yield found[1], process
        if process.poll() is None:
            process.terminate()
            assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def run(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command until it exits."""
    return subprocess.run(
        command(*args),
        cwd=directory,
        env=site_environ(directory),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def site(tmp_path: Path, run_site: RunSite) -> Path:
    """The directory of a site on which one user was active."""
    run_site(ADA)
    return tmp_path


# Pages


def test_exporter__serves_the_same_page_as_the_site(site: Path) -> None:
    with exporter(site, ":0") as (url, _):
        assert url.startswith("http://127.0.0.1:")
        page = requests.get(f"{url}/metrics", timeout=30)
        openmetrics = requests.get(
            f"{url}/metrics", headers={"Accept": "application/openmetrics-text"}, timeout=30
        )
        selected = requests.get(f"{url}/metrics?name[]=souvenirs_up", timeout=30)
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert page.headers["Content-Encoding"] == "gzip"  # requests asks for gzip
    assert 'souvenirs_active_users{window="1h"} 1.0' in page.text
    assert openmetrics.text.endswith("# EOF\n")
    assert [f.name for f in parse_text(selected.text)] == ["souvenirs_up"]


def test_exporter__other_pages(site: Path) -> None:
    with exporter(site, "127.0.0.1:0") as (url, _):
        landing = requests.get(f"{url}/", timeout=30)
        assert landing.status_code == 200
        links = re.findall(r'href="([^"]+)"', landing.text)
        assert "/metrics" in links
        assert {requests.get(url + link, timeout=30).status_code for link in links} == {200}
        assert '<th scope="row">Active users, last 1h</th><td>1</td>' in landing.text
        assert "All numbers could be read." in landing.text
        assert requests.get(f"{url}/-/healthy", timeout=30).text == "Healthy\n"
        assert requests.get(f"{url}/admin/", timeout=30).status_code == 404
        assert requests.post(f"{url}/metrics", timeout=30).status_code == 405
        head = requests.head(f"{url}/metrics", timeout=30)
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["Content-Length"]) > 0


def test_exporter__token_file(site: Path) -> None:
    (site / "tokens").write_text("one\n\n two \n")
    with exporter(site, ":0", "--token-file", "tokens") as (url, _):
        for token, status in [("one", 200), ("two", 200), ("three", 401), ("", 401)]:
            headers = {"Authorization": f"Bearer {token}"}
            assert requests.get(f"{url}/metrics", headers=headers, timeout=30).status_code == status
        assert requests.get(f"{url}/-/healthy", timeout=30).status_code == 200
        for token, has_numbers in [("one", True), ("three", False)]:
            headers = {"Authorization": f"Bearer {token}"}
            landing = requests.get(f"{url}/", headers=headers, timeout=30)
            assert ("Active users" in landing.text) == has_numbers


def test_exporter__token_file_takes_precedence_over_the_sites_settings(
    site: Path, run_site: RunSite
) -> None:
    run_site("", "SOUVENIRS_METRICS_AUTHORIZE = 'os.path.exists'")
    (site / "tokens").write_text("one")
    with exporter(site, ":0", "--token-file", "tokens") as (url, _):
        for token, status in [("one", 200), ("", 401)]:
            headers = {"Authorization": f"Bearer {token}"}
            assert requests.get(f"{url}/metrics", headers=headers, timeout=30).status_code == status


def test_exporter__shows_counters_of_the_sites_processes_only(site: Path, tmp_path: Path) -> None:
    """Alone, it would expose zeros, which look as if the site recorded nobody."""
    with exporter(site, ":0") as (url, _):
        page = requests.get(f"{url}/metrics", timeout=30).text
    assert "souvenirs_records_total" not in page
    assert "python_info" in page
    (tmp_path / "multiprocess").mkdir()
    with exporter(site, ":0", PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "multiprocess")) as (url, _):
        page = requests.get(f"{url}/metrics", timeout=30).text
    assert 'souvenirs_records_total{result="added"} 0.0' in page


def test_exporter__tls(site: Path) -> None:
    servers.certificate(site)
    with exporter(site, ":0", "--tls-cert", "cert", "--tls-key", "key") as (url, _):
        assert url.startswith("https://")
        port = servers.port_of(url)
        # a client that sends nothing blocks nobody
        with socket.create_connection(("127.0.0.1", port)):
            page = requests.get(f"{url}/metrics", verify=str(site / "cert"), timeout=30)
    assert "souvenirs_up 1.0" in page.text


# What it does besides serving pages


def test_exporter__rolls_up_what_is_due(site: Path, run_site: RunSite) -> None:
    run_site(
        """
from datetime import datetime, timedelta, timezone
from django.contrib.auth.models import User
now = datetime.now(timezone.utc)
for days in range(1, 15):  # the whole previous week
    souvenez(User.objects.get(), when=now - timedelta(days=days))
"""
    )
    with exporter(site, ":0") as (url, _):
        deadline = time.monotonic() + 60
        while (
            "souvenirs_rollup_lag_seconds 0.0"
            not in requests.get(f"{url}/metrics", timeout=30).text
        ):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        page = requests.get(f"{url}/metrics", timeout=30).text
    assert 'souvenirs_previous_calendar_active_users{period="week"} 1.0' in page


def test_exporter__closes_its_connections(site: Path) -> None:
    with exporter(site, ":0") as (url, process):
        for _ in range(20):
            requests.get(f"{url}/metrics", timeout=30)
        files = []
        for path in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                files.append(os.readlink(path))
    assert not [name for name in files if "sqlite3" in name]


# Its shutdown


def is_accepted(process: subprocess.Popen[str], server_port: str, client_port: str) -> bool:
    """Whether the process holds the server's end of a connection. (Connections that wait to be
    accepted are listed too, without an inode.)"""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {
        f"socket:[{row[9]}]"
        for row in rows
        if row[1].endswith(server_port) and row[2].endswith(client_port)
    }
    held = set()
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            held.add(os.readlink(path))
    return bool(sockets & held)


@contextmanager
def accepted_client(process: subprocess.Popen[str], port: int) -> Iterator[socket.socket]:
    """A connection that the exporter has accepted, and keeps open until its request is complete."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n")
        ports = f":{port:04X}", f":{client.getsockname()[1]:04X}"
        deadline = time.monotonic() + 30
        while not is_accepted(process, *ports):
            assert time.monotonic() < deadline, "the exporter has not accepted the connection"
            time.sleep(0.02)
        yield client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_exporter__exits_on_a_signal_after_answering_requests(site: Path, number: int) -> None:
    with exporter(site, ":0") as (url, process):
        port = servers.port_of(url)
        with accepted_client(process, port) as client:
            process.send_signal(number)
            time.sleep(0.3)
            client.sendall(b"\r\n")
            answer = client.makefile("rb").read()
        assert process.wait(30) == 0
    assert b"souvenirs_up 1.0" in answer


def test_exporter__exits_although_a_client_never_completes_its_request(site: Path) -> None:
    with exporter(site, ":0", code=("-c", SHORT_END)) as (url, process):
        port = servers.port_of(url)
        with accepted_client(process, port) as client:
            client.sendall(b"X: ")
            process.send_signal(signal.SIGTERM)
            signalled = time.monotonic()
            deadline = time.monotonic() + 30
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(OSError):
                    client.sendall(b"x")
                time.sleep(0.2)
        assert process.poll() == 0
        assert time.monotonic() - signalled > 1


# Once


def test_once__prints_the_gauges(site: Path) -> None:
    done = run(site, "--once")
    assert (done.returncode, done.stderr) == (0, "")
    names = {family.name for family in parse_text(done.stdout)}
    assert {"souvenirs_active_users", "souvenirs_up", "souvenirs_build_info"} <= names
    assert all(name.startswith("souvenirs_") for name in names)


def test_once__exits_with_1_if_something_is_missing(site: Path, run_site: RunSite) -> None:
    run_site(
        """
from django.db import connection
connection.cursor().execute("ALTER TABLE souvenirs_lastseen RENAME TO away")
"""
    )
    done = run(site, "--once")
    assert done.returncode == 1
    assert "souvenirs_up 0.0" in done.stdout
    assert "souvenirs_active_users{" not in done.stdout
    assert "could not be read" in done.stderr


# Mistakes


@pytest.mark.django_db  # the command checks for its tables first
@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["localhost"], 2, "like 127.0.0.1:9790 or 9790, not 'localhost'"),
        (["localhost:70000"], 2, "like 127.0.0.1:9790 or 9790, not 'localhost:70000'"),
        (["70000"], 2, "like 127.0.0.1:9790 or 9790, not '70000'"),
        (["::1:80"], 2, "like 127.0.0.1:9790 or 9790, not '::1:80'"),
        (["192.0.2.1:0"], 1, "Cannot listen on 192.0.2.1 port 0: "),
        ([":0", "--token-file", "none"], 1, "Cannot read --token-file none: "),
        ([":0", "--token-file", "empty"], 1, "--token-file empty must contain tokens"),
        (["0", "--tls-cert", "none"], 1, "Cannot read --tls-cert none: No such file"),
        (["0", "--tls-cert", "empty"], 1, "--tls-cert empty does not contain a cert"),
        (["0", "--tls-cert", "cert"], 1, "key (PEM): name the file that does"),
        (
            ["0", "--tls-cert", "cert", "--tls-key", "none"],
            1,
            "Cannot read --tls-key none: No such",
        ),
        (
            ["0", "--tls-cert", "cert", "--tls-key", "empty"],
            1,
            "--tls-key empty does not contain a private key",
        ),
        (["0", "--tls-cert", "cert", "--tls-key", "other/key"], 1, "does not match the cert"),
        (["0", "--tls-cert", "cert", "--tls-key", "locked"], 1, "locked has an encrypted key"),
        (["0", "--tls-cert", "broken", "--tls-key", "key"], 1, "Cannot use --tls-cert broken: "),
        (["0", "--tls-key", "key"], 1, "add --tls-cert"),
    ],
)
def test_exporter__mistakes(
    args: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").touch()
    (tmp_path / "broken").write_text("-----BEGIN CERTIFICATE-----")
    if "--tls-cert" in args:
        (tmp_path / "other").mkdir()
        servers.certificate(tmp_path)
        servers.certificate(tmp_path / "other")
        lock = "openssl pkey -in key -aes128 -passout pass:secret -out locked"
        subprocess.run(lock.split(), cwd=tmp_path, check=True)
    with pytest.raises(SystemExit) as end:
        execute_from_command_line(["django-admin", "souvenirs_exporter", *args])
    assert end.value.code == code
    assert message in capsys.readouterr().err


def test_exporter__takes_a_bare_port(site: Path) -> None:
    with exporter(site, "0") as (url, _):
        assert url.startswith("http://127.0.0.1:")
        assert requests.get(f"{url}/-/healthy", timeout=30).ok


def test_exporter__a_port_in_use(site: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        done = run(site, f"127.0.0.1:{listener.getsockname()[1]}")
    assert done.returncode == 1
    assert "Cannot listen on 127.0.0.1 port" in done.stderr
    assert "Traceback" not in done.stderr
