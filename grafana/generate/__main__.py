"""Writes dashboards/*.json, which are committed to the repository: python -m grafana.generate"""

from __future__ import annotations

import json
from pathlib import Path

from grafana.generate.active_users import active_users
from grafana.generate.exporter import exporter
from grafana.generate.growth import growth
from grafana.generate.segments import segments

DIRECTORY = Path(__file__).parent.parent / "dashboards"


def write(directory: Path) -> None:
    for dashboard in (active_users(), growth(), segments(), exporter()):
        text = json.dumps(dashboard, indent=2, ensure_ascii=False)
        (directory / f"{dashboard['uid']}.json").write_text(f"{text}\n")


if __name__ == "__main__":
    write(DIRECTORY)
