"""Many scrapers at once, for a while, of an exporter on PostgreSQL. LOAD_SECONDS=60 is a minute."""

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

from tests import servers
from tests.failing import in_postgresql
from tests.test_exporter import exporter

SCRAPERS = 200
SECONDS = float(os.environ.get("LOAD_SECONDS", 10))

pytestmark = pytest.mark.own_site

PEOPLE = """
from django.contrib.auth.models import User
for number in range(50):
    souvenez(User.objects.create(username=f"user{number}"))
"""


def status(pid: int, name: str) -> int:
    """A number of /proc/pid/status; of sizes, in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    (found,) = re.findall(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    return int(found)


def test_load__of_200_scrapers(tmp_path: Path, run_site: Callable[..., str]) -> None:
    with servers.postgresql() as entry:
        run_site(PEOPLE, f"DATABASES = {{'default': {entry!r}}}")
        with exporter(tmp_path, ":0") as (url, process):
            port = int(url.rpartition(":")[2])
            ends = threading.Event()

            def scrape(number: int) -> list[str]:
                """What was wrong with its scrapes; their number last."""
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
            with ThreadPoolExecutor(SCRAPERS) as pool, in_postgresql(entry) as session:
                scrapers = [pool.submit(scrape, number) for number in range(SCRAPERS)]
                time.sleep(SECONDS / 3)
                early = status(process.pid, "VmRSS")
                begun = time.monotonic()
                while time.monotonic() - begun < SECONDS * 2 / 3:
                    (count,) = session.execute(
                        "SELECT count(*) FROM pg_stat_activity WHERE backend_type ="
                        " 'client backend' AND pid <> pg_backend_pid()"
                    ).fetchone() or (0,)
                    sessions = max(sessions, count)
                    threads = max(threads, status(process.pid, "Threads"))
                    time.sleep(0.05)
                late = status(process.pid, "VmRSS")
                ends.set()
                *_, scrapes = results = [scraper.result(120) for scraper in scrapers]
            assert [wrong for *wrong, _ in results] == [[]] * SCRAPERS
            assert all(int(times) > 0 for *_, times in results), scrapes
            assert sessions <= 3  # of the collection, of the one before that leaves, of the roller
            assert threads <= SCRAPERS + 10
            assert late < early + 20 * 1024
            print(sum(int(times) for *_, times in results), sessions, threads, early, late)
