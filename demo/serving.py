"""Create the site's database, and serve the site with gunicorn."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests

ROOT = Path(__file__).parents[1]
START_SECONDS = 60
END_SECONDS = 8


class Stopped(Exception):
    """The demo was asked to stop."""


class Failure(Exception):
    """The demo cannot continue, for the given reason."""


def populate(
    directory: Path,
    *,
    users: int,
    weeks: int,
    idle_hours: float = 0,
    admin_password: str | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Create a site in `directory`, or continue the one there: see the command of this name."""
    environment = environ(directory)
    if admin_password:
        environment["DEMO_ADMIN_PASSWORD"] = admin_password
    command = ["populate", f"--users={users}", f"--weeks={weeks}", f"--idle-hours={idle_hours}"]
    if manage(command, environment, stop):
        raise Failure(f"the database in {directory} could not be created (see above)")


def manage(
    command: Sequence[str],
    environment: dict[str, str],
    stop: threading.Event | None = None,
    output: int | None = None,
) -> int:
    """Run a management command of the site, and return its exit code."""
    with child(
        [sys.executable, "-m", "demo.manage", *command], environment, output=output
    ) as process:
        while process.poll() is None:
            pause(stop, 0.05)
    return process.returncode


@contextmanager
def serve(directory: Path, port: int = 0, stop: threading.Event | None = None) -> Iterator[str]:
    """Serve the site in `directory` on a port of loopback, 0 for a free one; yield its URL.

    gunicorn's log is gunicorn.log in `directory`. Raise Failure if it does not start.
    """
    log = directory / "gunicorn.log"
    environment = environ(directory)
    environment["PROMETHEUS_MULTIPROC_DIR"] = str(directory / "metrics")
    with listening(port) as listener, log.open("ab") as output:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        handle = listener.fileno()
        configuration = str(ROOT / "demo/gunicorn.conf.py")
        command = [sys.executable, "-m", "gunicorn", "-c", configuration, f"--bind=fd://{handle}"]
        with child(command, environment, handle=handle, output=output.fileno()) as process:
            listener.close()  # gunicorn holds it now, and closes it when it exits
            wait_for(url, process, "gunicorn did not start", log, stop)
            yield url


def environ(directory: Path) -> dict[str, str]:
    """The environment of the site's processes."""
    inherited = {k: v for k, v in os.environ.items() if k != "PROMETHEUS_MULTIPROC_DIR"}
    return {**inherited, "DEMO_DIR": str(directory.resolve())}


def listening(port: int) -> socket.socket:
    """A socket for gunicorn to inherit, so that a free port stays reserved, and a port in use is
    reported."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise Failure(
            f"port {port} is not available ({error.strerror}); set another --port (0 for any)"
        ) from None
    listener.listen(128)
    return listener


@contextmanager
def child(
    command: Sequence[str],
    environment: dict[str, str],
    *,
    handle: int = -1,
    output: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends.

    It runs in a separate session, so that Ctrl-C in the terminal reaches only this process, which
    then terminates the program.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        pass_fds=[handle] if handle >= 0 else [],
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            # including the workers: its session is their process group
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(
    url: str,
    process: subprocess.Popen[bytes],
    problem: str,
    log: Path,
    stop: threading.Event | None,
) -> None:
    """Return when the process answers. Raise Failure with the problem if it does not."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failure(f"{problem}:\n{log.read_text()[-2000:]}")
        pause(stop, 0.05)


def answers(url: str) -> bool:
    with requests.Session() as session:
        session.trust_env = False  # no proxy for loopback
        try:
            return session.get(url, timeout=1).ok
        except requests.RequestException:
            return False


def pause(stop: threading.Event | None, seconds: float) -> None:
    """Sleep. Raise Stopped as soon as `stop` is set."""
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise Stopped
