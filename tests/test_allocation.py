"""A full PROMETHEUS_MULTIPROC_DIR on a real file system, where a failed write is a SIGBUS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from souvenirs_metrics.allocation import FILE_BYTES, allocate
from tests.conftest import SETTINGS, START, site_environ

pytestmark = pytest.mark.own_site

# In a mount namespace, so that nothing stays mounted and the tests need not run as root
IN_A_SMALL_DISK = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
MOUNT = 'mount -t tmpfs -o size=256k tmpfs "$PROMETHEUS_MULTIPROC_DIR" && exec "$@"'

# Record a user in the process that forks, in a new worker on a full disk, and in another one after
# space was freed
CODE = """
import os, sys
from pathlib import Path
from django.contrib.auth.models import User
from django.db import connection
directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
users = [User.objects.create(username=name) for name in ("ada", "bob", "eve")]
souvenez(users[0])
connection.close()

def work(user):
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        connection.close()
        if status:
            print("the worker died:", status)
        return
    print(souvenez(user), Client().get("/metrics").status_code)
    sys.stdout.flush()
    os._exit(0)

sys.stdout.flush()
filler = directory / "filler"
try:
    filler.write_bytes(bytes(1 << 20))
except OSError:
    print("full")
sys.stdout.flush()
work(users[1])
filler.unlink()
work(users[2])
page = Client().get("/metrics").text
print(*(line for line in page.splitlines() if 'result="added"' in line))
"""


def test_records__on_a_full_disk_are_not_counted_and_crash_no_worker(tmp_path: Path) -> None:
    (tmp_path / "site_settings.py").write_text(SETTINGS)
    directory = tmp_path / "multiprocess"
    directory.mkdir()
    done = subprocess.run(
        [*IN_A_SMALL_DISK, "sh", "-c", MOUNT, "sh", sys.executable, "-c", START + CODE],
        cwd=tmp_path,
        env={**site_environ(tmp_path), "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "full",
        "added 200",
        "added 200",
        'souvenirs_records_total{result="added"} 2.0',  # the processes that found space
    ], done.stderr
    assert done.stderr.count("No space left on device") == 2  # in the message and in its traceback


def test_allocate__keeps_the_content_and_does_not_grow_with_every_call(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    allocate(path)
    assert path.read_bytes() == bytes(FILE_BYTES)
    with path.open("r+b") as file:
        file.write((24).to_bytes(4, sys.byteorder) + b"what has been counted")
    before = path.read_bytes()
    for _ in range(3):
        allocate(path)
    assert path.read_bytes() == before + bytes(24)
