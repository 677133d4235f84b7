"""Take the pictures of the dashboards: python -m docs.pictures.dashboards

They show the first rows of two dashboards, drawn in Debian's Chromium with Grafana's React
components (from npm) from the Prometheus of a demo with a past. Needs npm, chromium and prometheus.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from demo.monitoring import prometheus
from demo.serving import populate, serve
from tests.browser import chromium
from tests.panels import DAY, PanelClient

SOURCES = Path(__file__).parent
ROOT = SOURCES.parents[2]
IMAGES = ROOT / "docs/images"
# The picture's name, the dashboard's name, the height in rows of its grid, and the days it shows
PICTURES = [
    ("dashboard-active-users", "souvenirs-active-users", 16, 30),
    ("dashboard-growth", "souvenirs-growth", 16, 180),
]
WIDTH, ROW, MARGIN = 1200, 38, 12
PAGE = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="panels.css">
<body style="background: #111217; margin: {margin}px; font-family: sans-serif"><div id="root"></div>
<script>window.grafanaBootData = {{settings: {{featureToggles: {{}}}}}}; window.PICTURE = {picture};
</script><script src="panels.js"></script>"""


def build(directory: Path) -> None:
    for name in ("package.json", "panels.tsx"):
        shutil.copy(SOURCES / name, directory)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=directory, check=True
    )
    subprocess.run(
        ["node_modules/.bin/esbuild", "panels.tsx", "--bundle", "--outfile=panels.js",
         "--jsx=automatic", '--define:process.env.NODE_ENV="production"', "--loader:.ttf=dataurl",
         "--loader:.svg=dataurl", "--log-level=error"],
        cwd=directory, check=True,
    )  # fmt: skip


def query(panel_client: PanelClient, target: dict[str, Any], days: int) -> list[dict[str, Any]]:
    """The series of a panel's target, each with its legend."""
    return [
        {
            "refId": target["refId"],
            "name": text_of(target["legendFormat"], found["metric"]),
            "points": found["values"],
        }
        for found in panel_client.query(target, days=days)
    ]


def text_of(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), legend)


def draw(directory: Path, url: str, browser: Any) -> None:
    for name, dashboard, rows, days in PICTURES:
        file = ROOT / f"grafana/dashboards/{dashboard}.json"
        panels = [
            panel
            for panel in json.loads(file.read_text())["panels"]
            if panel["gridPos"]["y"] + panel["gridPos"]["h"] <= rows
        ]
        for panel in panels:
            panel["title"] = panel["title"].replace("$job", "souvenirs")
        end = int(time.time())
        start = end - days * DAY
        panel_client = PanelClient(url, end, rate_interval="5m")
        series = {
            panel["id"]: [
                found
                for each in panel.get("targets", [])
                for found in query(panel_client, each, days)
            ]
            for panel in panels
        }
        picture = {
            "panels": panels,
            "series": series,
            "from": start * 1000,
            "to": end * 1000,
            "light": False,
        }
        page = directory / f"{name}.html"
        page.write_text(PAGE.format(margin=MARGIN, picture=json.dumps(picture)))
        size = {"width": WIDTH + 2 * MARGIN, "height": rows * ROW + 2 * MARGIN}
        view = browser.new_page(viewport=size)
        view.goto(page.as_uri())
        view.wait_for_timeout(3000)  # canvases are drawn some frames after the page has loaded
        view.screenshot(path=IMAGES / f"{name}.png")
        view.close()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="souvenirs-pictures-") as path:
        directory = Path(path)
        build(directory)
        site = directory / "site"
        site.mkdir()
        populate(site, users=3000, weeks=40)
        with serve(site) as url, prometheus(site, url, 0) as server, chromium() as browser:
            assert server is not None, "the pictures need Prometheus"
            time.sleep(30)  # until it has scraped the page a few times
            draw(directory, server, browser)


if __name__ == "__main__":
    main()
