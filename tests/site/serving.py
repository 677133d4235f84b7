"""Run the site in separate processes: create the database, start gunicorn, sign in users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from demo.serving import answers, child, listening
from tests.servers import START_SECONDS

HERE = Path(__file__).parent
POPULATE = """
import sys, django
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
call_command("migrate", verbosity=0)
User.objects.bulk_create(User(username=f"user{pk}") for pk in range(1, int(sys.argv[1]) + 1))
"""


@dataclass(frozen=True)
class Site:
    """A running site. `errors` is what its log contains besides gunicorn's messages."""

    url: str
    log: Path

    def get(self, path: str, cookie: str = "", timeout: float = 30) -> requests.Response:
        with client() as session:
            return session.get(f"{self.url}{path}", headers={"Cookie": cookie}, timeout=timeout)

    def sign_in(self, pk: int) -> str:
        """Send the Cookie header of a user from now on."""
        response = self.get(f"/enter/{pk}/")
        response.raise_for_status()
        return "; ".join(f"{name}={value}" for name, value in response.cookies.items())

    def errors(self) -> list[str]:
        told = self.log.read_text().splitlines()
        return [line for line in told if line and not line.startswith("[")]


def client() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no proxy for loopback
    return session


def environ(database: dict[str, Any], redis_url: str | None = None, **settings: Any) -> Any:
    """The environment of a process of the site; `settings` override tests/site/settings.py."""
    added = {
        "DJANGO_SETTINGS_MODULE": "tests.site.settings",
        "SITE_DATABASE": json.dumps(database),
        "SITE_SETTINGS": json.dumps(settings),
    }
    if redis_url is not None:
        added["SITE_REDIS"] = redis_url
    return {**os.environ, **added}


def run(code: list[str], environment: dict[str, str]) -> str:
    """Run Python code in a process of the site. Return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *code],
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def populate(environment: dict[str, str], users: int) -> None:
    """Create the tables, and users with the keys 1, 2, 3..."""
    run(["-c", POPULATE, str(users)], environment)


@contextmanager
def serve(environment: dict[str, str], directory: Path) -> Iterator[Site]:
    log = directory / "gunicorn.log"
    with listening(0) as listener, log.open("ab") as output:
        site = Site(f"http://127.0.0.1:{listener.getsockname()[1]}", log)
        handle = listener.fileno()
        configuration = str(HERE / "gunicorn.conf.py")
        command = [sys.executable, "-m", "gunicorn", "-c", configuration, f"--bind=fd://{handle}"]
        with child(command, environment, handle=handle, output=output.fileno()) as process:
            listener.close()  # gunicorn holds it now
            deadline = time.monotonic() + START_SECONDS
            while not answers(f"{site.url}/plain/"):
                ended = process.poll() is not None or time.monotonic() > deadline
                assert not ended, log.read_text()[-2000:]
                time.sleep(0.05)
            yield site
