"""How gunicorn serves the site: from the repository root, `gunicorn -c demo/gunicorn.conf.py`."""

import os
from pathlib import Path
from typing import Any

from prometheus_client import multiprocess

wsgi_app = "demo.website.wsgi"
bind = "127.0.0.1:8000"
workers = 2
threads = 4
graceful_timeout = 3
control_socket_disable = True  # it would be one file for all sites of a machine's user

# Each worker counts in files of its own there, and /metrics adds them up
metrics = Path(os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", "demo/var/metrics"))


def on_starting(server: Any) -> None:
    """What an earlier start counted is not of this one."""
    metrics.mkdir(parents=True, exist_ok=True)
    for file in metrics.glob("*.db"):
        file.unlink()


def child_exit(server: Any, worker: Any) -> None:
    """A worker that has ended takes its live gauges with it; its counters stay."""
    multiprocess.mark_process_dead(worker.pid)
