"""Many scrapers of an exporter on PostgreSQL at once, for a while. LOAD_SECONDS=60 runs 200 of them
for a minute."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.failing import Entry, in_postgresql, new_database
from tests.site.serving import client
from tests.test_exporter import exporter

pytestmark = pytest.mark.own_site

PEOPLE = """
from django.contrib.auth.models import User
for number in range(50):
    souvenez(User.objects.create(username=f"user{number}"))
"""


def status(pid: int, name: str) -> int:
    """A number from /proc/pid/status; sizes are in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    (found,) = re.findall(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    return int(found)


@pytest.mark.parametrize(
    ("scrapers", "seconds"),
    [
        (20, 1.5),
        pytest.param(200, float(os.environ.get("LOAD_SECONDS", 10)), marks=pytest.mark.soak),
    ],
)
def test_exporter__under_load_of_many_scrapers(
    scrapers: int,
    seconds: float,
    postgresql: Entry,
    tmp_path: Path,
    run_site: Callable[..., str],
) -> None:
    entry = new_database(postgresql)
    run_site(PEOPLE, f"DATABASES = {{'default': {entry!r}}}")
    with exporter(tmp_path, ":0") as (url, process):
        port = int(url.rpartition(":")[2])
        # now it has loaded everything it needs
        assert client().get(f"{url}/metrics", timeout=60).ok
        ends = threading.Event()

        def scrape(number: int) -> list[str]:
            """The failures of its scrapes, followed by their number."""
            wrong, times = [], 0
            headers = {"Accept-Encoding": "gzip"} if number % 2 else {}
            while not ends.is_set():
                connection = HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    connection.request("GET", "/metrics", headers=headers)
                    answer = connection.getresponse()
                    body = answer.read()
                    if answer.status != 200:
                        wrong.append(f"{answer.status}")
                    elif not headers and b"\nsouvenirs_up 1.0\n" not in body:
                        wrong.append("not up")
                    elif not headers and b'users{window="1h"} 50.0' not in body:
                        wrong.append("other users")
                except OSError as error:
                    wrong.append(repr(error))
                finally:
                    connection.close()
                times += 1
            return [*wrong, str(times)]

        sessions, threads = 0, 0
        with ThreadPoolExecutor(scrapers) as pool, in_postgresql(entry) as session:
            scraping = [pool.submit(scrape, number) for number in range(scrapers)]
            time.sleep(seconds / 3)
            early = status(process.pid, "VmRSS")
            begun = time.monotonic()
            while time.monotonic() - begun < seconds * 2 / 3:
                (count,) = session.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
                ).fetchone() or (0,)
                sessions = max(sessions, count)
                threads = max(threads, status(process.pid, "Threads"))
                time.sleep(0.05)
            late = status(process.pid, "VmRSS")
            ends.set()
            *_, scrapes = results = [each.result(120) for each in scraping]
        assert [wrong for *wrong, _ in results] == [[]] * scrapers
        assert all(int(times) > 0 for *_, times in results), scrapes
        assert sessions <= 3  # of the collection, of the previous one that is ending, of the roller
        assert threads <= scrapers + 10
        assert late < early + 20 * 1024
        print(sum(int(times) for *_, times in results), sessions, threads, early, late)
