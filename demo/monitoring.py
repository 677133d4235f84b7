"""A Prometheus server that monitors the demo's site, if the program is installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from demo.serving import ROOT, Failure, answers, child, environ, manage, wait_for

CONFIG = """\
global: {{scrape_interval: 5s, evaluation_interval: 15s}}
scrape_configs:
  - job_name: souvenirs
    static_configs: [{{targets: ["{target}"]}}]
rule_files: ["{rules}"]
"""

PROMETHEUS_URL = "prometheus.url"  # the file in the demo's directory with the server's address


@contextmanager
def prometheus(
    directory: Path, site: str, port: int, stop: threading.Event | None = None
) -> Iterator[str | None]:
    """Run Prometheus on loopback with the shipped rules; it scrapes the site in `directory` and has
    its past. Yield its URL, or None if it is not installed.

    Its data is created from scratch, because the site's history also covers what it scraped in an
    earlier demo. Raise Failure if it does not start.
    """
    if not shutil.which("prometheus") or not shutil.which("promtool"):
        yield None
        return
    target = site.removeprefix("http://")
    home, log = directory / "prometheus", directory / "prometheus.log"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    rules = ROOT / "prometheus/souvenirs.rules.yml"
    (home / "prometheus.yml").write_text(CONFIG.format(target=target, rules=rules))
    environment = environ(directory)
    labels = ["--label=job=souvenirs", f"--label=instance={target}"]
    with log.open("ab") as output:
        file = home / "history.txt"
        now = f"--end={datetime.now(timezone.utc).isoformat()}"  # the server has just started
        command = ["souvenirs_history", f"--output={file}", now, *labels]
        # The command exits with 1 if the site is too new to have a history
        if not manage(command, environment, stop, output.fileno()):
            subprocess.run(
                ["promtool", "tsdb", "create-blocks-from", "openmetrics",
                 "--max-block-duration=744h", file, home / "data"],
                stdout=output, stderr=output, check=True,
            )  # fmt: skip
        url = f"http://127.0.0.1:{port or free_port()}"
        command = [
            "prometheus",
            f"--config.file={home / 'prometheus.yml'}",
            f"--storage.tsdb.path={home / 'data'}",
            "--storage.tsdb.retention.time=5y",
            f"--web.listen-address={url.removeprefix('http://')}",
        ]
        with child(command, environment, output=output.fileno()) as process:
            problem = f"Prometheus did not start at {url}; is the port free (--prometheus-port)?"
            wait_for(f"{url}/-/ready", process, problem, log, stop)
            address = directory / PROMETHEUS_URL
            address.write_text(url)
            try:
                yield url
            finally:
                address.unlink()


def alerts_page(prometheus: str) -> str:
    """The URL of its alerts page, which is elsewhere in Debian's package."""
    page = f"{prometheus}/alerts"
    return page if answers(page) else f"{prometheus}/classic/alerts"


def write_dashboards(directory: Path, prometheus: str) -> Path:
    """Write the provisioning files for a Grafana server, and return their directory."""
    out = directory / "operators"
    command = ["souvenirs_dashboards", str(out), f"--datasource-url={prometheus}", "--force"]
    with (directory / "prometheus.log").open("ab") as output:
        if manage(command, environ(directory), output=output.fileno()):
            raise Failure(f"{out} could not be written; see {directory / 'prometheus.log'}")
    return out / "grafana/provisioning"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
