"""ASGI servers that are stopped by a signal, with real uvicorn."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import servers
from tests.failing import Entry, new_database
from tests.site import serving

pytestmark = [pytest.mark.own_site, pytest.mark.slow]

ROWS = """
import django
django.setup()
from souvenirs.models import Souvenir
print(Souvenir.objects.count())
"""


@pytest.mark.parametrize("options", [[], ["--workers=2"]], ids=["", "workers"])
@pytest.mark.parametrize("name", ["application", "application_with_events"])
def test_uvicorn__writes_queued_visits_on_shutdown(
    name: str, options: list[str], postgresql: Entry, tmp_path: Path
) -> None:
    environment = serving.environ(new_database(postgresql), SOUVENIRS_FLUSH_SECONDS=60)
    serving.populate(environment, 3)
    port, log = servers.free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "uvicorn", f"--port={port}", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, f"tests.site.asgi:{name}"],
            cwd=serving.HERE.parents[1],
            env=environment,
            stdout=output,
            stderr=output,
        )
        try:
            site = serving.Site(f"http://127.0.0.1:{port}", log)
            servers.wait_until(lambda: servers.answers(f"{site.url}/plain/"))
            for pk in range(1, 4):
                site.sign_in(pk)
            assert serving.run(["-c", ROWS], environment) == "0\n"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(servers.START_SECONDS)
    assert serving.run(["-c", ROWS], environment) == "3\n"
    said = log.read_text()
    assert "Traceback" not in said
    if name != "application":
        count = 2 if options else 1
        assert said.count("startup\n") == said.count("shutdown\n") == count
