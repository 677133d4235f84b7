"""Serve `website` with gunicorn, and send it requests."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from demo import serving
from tests import servers

WORKERS = 2
CONNECTIONS = 4


class Site(NamedTuple):
    """A running site. `pid` is gunicorn's; its workers are children of that process."""

    address: tuple[str, int]
    pid: int


@contextmanager
def serve(log: Path, **arguments: Any) -> Iterator[Site]:
    """Run a site under gunicorn on a free port of loopback; `arguments` are website.configure's."""
    environment = {**os.environ, "BENCHMARK": json.dumps(arguments)}
    with serving.listening(0) as listener, log.open("ab") as output:
        address = listener.getsockname()
        command = [
            sys.executable, "-m", "gunicorn", f"--bind=fd://{listener.fileno()}",
            f"--workers={WORKERS}", "--worker-class=sync", "--no-control-socket",
            "benchmarks.website:application()",
        ]  # fmt: skip
        with serving.child(
            command, environment, handle=listener.fileno(), output=output.fileno()
        ) as process:
            listener.close()
            servers.wait_for(lambda: servers.accepts(address[1]), process, log)
            yield Site(address, process.pid)


def make_request(path: str, **headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.0", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def ask(site: Site, request: bytes) -> bytes:
    """Return the page. Raise RuntimeError if there is none."""
    with socket.create_connection(site.address, timeout=30) as connection:
        connection.sendall(request)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    header, _, page = answer.partition(b"\r\n\r\n")
    if not header.startswith(b"HTTP/1.0 200"):
        raise RuntimeError(f"the site answered {answer[:2000]!r}")
    return page


def greet(site: Site, request: bytes) -> None:
    """Raise RuntimeError if the answer is not a page for a signed-in user."""
    if b"Hello user" not in (page := ask(site, request)):
        raise RuntimeError(f"the page is {page[:2000]!r}")


class Load:
    """Requests to a site, sent in turn over CONNECTIONS connections at once."""

    def __init__(self, site: Site, requests: Sequence[bytes], pool: ThreadPoolExecutor) -> None:
        self.site, self.pool = site, pool
        self.requests = cycle(requests)
        self.number = len(requests)

    def run(self, seconds: float, *, lead_in: float = 0) -> float:
        """Keep all connections busy. Return how many requests per second were answered, counting
        those sent after the first `lead_in` seconds."""
        started = time.perf_counter() + lead_in
        asking = [
            self.pool.submit(self._ask_until, started, started + seconds)
            for _ in range(CONNECTIONS)
        ]
        counts = [each.result() for each in asking]
        return sum(counts) / (time.perf_counter() - started)

    def _ask_until(self, started: float, deadline: float) -> int:
        count = 0
        while (now := time.perf_counter()) < deadline:
            greet(self.site, next(self.requests))
            count += now >= started
        return count

    def run_once(self, rate: float) -> None:
        """Send each request once, at this many per second."""
        due = iter([time.perf_counter() + n / rate for n in range(self.number)])
        asking = [self.pool.submit(self._ask_when_due, due) for _ in range(CONNECTIONS)]
        for each in asking:
            each.result()

    def _ask_when_due(self, due: Iterator[float]) -> None:
        for at in due:  # list iterators and cycle() are thread-safe
            request = next(self.requests)
            time.sleep(max(0, at - time.perf_counter()))
            greet(self.site, request)
