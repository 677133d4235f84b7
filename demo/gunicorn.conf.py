"""gunicorn's settings for the site: from the repository root, `gunicorn -c
demo/gunicorn.conf.py`."""

import os
from pathlib import Path
from typing import Any

from prometheus_client import multiprocess

wsgi_app = "demo.website.wsgi"
bind = "127.0.0.1:8000"
workers = 2
threads = 4
graceful_timeout = 3
control_socket_disable = True  # the default is one file for all sites of a machine's user

# Each worker has files for its counters there, and /metrics adds them up
metrics = Path(os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", "demo/var/metrics"))


def on_starting(server: Any) -> None:
    """Discard the counters of an earlier start."""
    metrics.mkdir(parents=True, exist_ok=True)
    for file in metrics.glob("*.db"):
        file.unlink()


def child_exit(server: Any, worker: Any) -> None:
    """Remove the live gauges of a worker that has ended; its counters stay."""
    multiprocess.mark_process_dead(worker.pid)
