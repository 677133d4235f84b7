"""python -m demo: a site with a generated past and live visitors, and its gauges in the
terminal."""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path

import requests

from demo import page
from demo.events import Watcher
from demo.monitoring import alerts_page, prometheus, write_dashboards
from demo.options import may_sign_in, parse
from demo.population import ADMIN, PASSWORD, Crowd, Schedule
from demo.rhythm import ZONE
from demo.serving import Failure, Stopped, pause, populate, serve
from demo.traffic import Traffic

REFRESH_SECONDS = 2
TREND_TURNS = 15  # refreshes between two updates of the trends by day, week and month
NEWS = 8  # lines


def run(args: argparse.Namespace, stop: threading.Event) -> int:
    """Run the demo until it is stopped."""
    directory = Path(os.environ.get("DEMO_DIR") or Path(__file__).parent / "var")
    directory.mkdir(parents=True, exist_ok=True)
    with alone(directory):
        if args.fresh:
            for leftover in directory.glob("db.sqlite3*"):
                leftover.unlink()
        password = secrets.token_urlsafe(9)
        populate(directory, users=args.users, weeks=args.weeks, admin_password=password, stop=stop)
        with (
            serve(directory, args.port, stop) as url,
            prometheus(directory, url, args.prometheus_port, stop) as server,
            live(directory, url, args.rate, stop),
        ):
            name = may_sign_in(args.users)[0]
            say(f"The site      {url}/          {name} and others, password {PASSWORD}")
            say(f"Its admin     {url}/admin/    {ADMIN}, password {password}")
            say(f"Its metrics   {url}/metrics")
            say(f"Its log       {directory / 'gunicorn.log'}")
            if server:
                provisioning = write_dashboards(directory, server)
                say(f"Prometheus    {server}/    past, live metrics, and {alerts_page(server)}")
                say(f"For Grafana   GF_PATHS_PROVISIONING={provisioning} grafana server")
            else:
                say("Prometheus    not installed: apt-get install prometheus")
            say("Press Ctrl-C to stop.\n")
            show(directory, url, stop)
    return 0


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep a second demo, which would start its counters from zero, out of the same directory."""
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Failure(
                f"a demo is already running in {directory}; stop it, or set another DEMO_DIR"
            ) from None
        yield


def show(directory: Path, url: str, stop: threading.Event) -> None:
    """Print the gauges repeatedly, with trends and news of what people did. Raise Stopped when
    `stop` is set."""
    lines, turn = 0, 0
    watcher = Watcher(directory)
    news: deque[str] = deque(maxlen=NEWS)
    trends: dict[str, list[int]] = {}
    while True:
        news.extend(f"{datetime.now(ZONE):%H:%M:%S}  {each}" for each in watcher.news())
        try:
            if turn % TREND_TURNS == 0:
                trends = page.trends(url)
            turn += 1
            text = page.table(page.souvenirs(page.scrape(url)), trends, news)
        except requests.RequestException as error:
            text = f"The site did not answer: {error}"
        if lines and sys.stdout.isatty():
            say(f"\x1b[{lines}A\x1b[J{text}")  # replaces the previous text
        else:
            say(text)
        lines = text.count("\n") + 1
        pause(stop, REFRESH_SECONDS)


def usernames(directory: Path) -> list[str]:
    """The usernames of all accounts of the site."""
    with closing(sqlite3.connect(directory / "db.sqlite3", timeout=20)) as database:
        return [name for (name,) in database.execute("SELECT username FROM auth_user")]


@contextmanager
def live(directory: Path, url: str, rate: float, stop: threading.Event) -> Iterator[None]:
    """Run visitors while the block runs."""
    about = Schedule(Crowd.load(directory / "crowd.json")).about
    with Traffic(url, usernames(directory), PASSWORD) as traffic:
        thread = threading.Thread(target=traffic.run, args=(stop, rate, about))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def once(args: argparse.Namespace, stop: threading.Event) -> int:
    """Check that the metrics page has the visits that were made."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="souvenirs-demo-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        # So that the window of one hour has our visits only
        populate(directory, users=args.users, weeks=args.weeks, idle_hours=2.5, stop=stop)
        url = stack.enter_context(serve(directory, args.port, stop))
        names = may_sign_in(args.users)[: args.sign_in]
        traffic = stack.enter_context(Traffic(url, names, PASSWORD, seed=1))
        log(f"Signing {len(names)} users in at {url}/")
        traffic.sign_in(names)
        for _ in range(5 * len(names)):
            pause(stop, 0)
            traffic.step(names)
        text = page.scrape(url)
        sys.stdout.write(text)
        sys.stdout.flush()
        key = ("souvenirs_active_users", "1h")
        samples = page.souvenirs(text)
        found = f"{samples[key]:.0f}" if key in samples else "absent"
        is_right = samples.get(key) == len(names)
        log(f"{len(names)} users signed in, and received {len(traffic.visits)} responses.")
        log(f'souvenirs_active_users{{window="1h"}} is {found}: {"right" if is_right else "WRONG"}')
        return 0 if is_right else 1


def say(text: str) -> None:
    print(text, flush=True)


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    try:
        return once(args, stop) if args.once else run(args, stop)
    except Stopped:
        return 130 if args.once else 0  # the check was not completed
    except Failure as error:
        log(f"demo: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
