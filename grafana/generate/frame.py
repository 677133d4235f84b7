"""The frame of every dashboard, and the panels that several of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana.generate.panels import mapping, stat, steps, timeline
from grafana.generate.queries import (
    ALERTS,
    ALERTS_OVER_TIME,
    DATASOURCE,
    Json,
    age,
    now,
    select,
    targets,
)

COLUMNS = 24


def row(title: str, **more: Any) -> Json:
    return {
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"w": COLUMNS, "h": 1},
        "panels": [],
        **more,
    }


def row_of_each_job(title: str) -> Json:
    """A row that Grafana repeats, with the panels that follow, for each of the selected jobs."""
    return row(f"{title}: $job", repeat="job")


def layout(panels: list[Json]) -> list[Json]:
    """Give the panels ids, and positions from left to right and from top to bottom."""
    x = y = height = 0
    placed = []
    for number, each in enumerate(panels, 1):
        size = each["gridPos"]
        if x + size["w"] > COLUMNS:
            x, y, height = 0, y + height, 0
        placed.append({"id": number, **each, "gridPos": {**size, "x": x, "y": y}})
        x, height = x + size["w"], max(height, size["h"])
    return placed


def variable(name: str, label: str, query: str, current: str = "") -> Json:
    """A variable with one of a query's values. Initially `current`, or else the first value."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "regex": "",
        "current": {"selected": True, "text": current, "value": current} if current else {},
        "options": [],
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": False,
        "includeAll": False,
    }


def dashboard(
    uid: str,
    title: str,
    description: str,
    panels: list[Json],
    variables: Sequence[Json] = (),
    since: str = "now-30d",
) -> Json:
    """A dashboard as classic JSON, which Grafana migrates to the format of its version."""
    alerts = {
        "name": "Firing alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "target": {"refId": "Anno", "expr": ALERTS_OVER_TIME},
        "titleFormat": "{{alertname}}",
        "textFormat": "{{job}}",
        "tagKeys": "",
        "useValueForTime": False,
    }
    datasource = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "regex": "",
        "current": {},
        "options": [],
        "refresh": 1,
        "hide": 0,
        "multi": False,
        "includeAll": False,
    }
    job = {
        **variable("job", "Job", "label_values(souvenirs_up, job)"),
        "description": "The sites to show. Each is a Prometheus job.",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
    }
    link = {
        "title": "Souvenirs",
        "type": "dashboards",
        "tags": ["souvenirs"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }
    return {
        "id": None,
        "uid": uid,
        "title": title,
        "description": f"{description} Times are shown in your browser's time zone. Calendar"
        " periods begin at midnight in the site's time zone (TIME_ZONE).",
        "tags": ["souvenirs"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "weekStart": "",
        "fiscalYearStartMonth": 0,
        "time": {"from": since, "to": "now"},
        "timepicker": {},
        "refresh": "1m",
        "annotations": {"list": [alerts]},
        "templating": {"list": [datasource, job, *variables]},
        "links": [link],
        "panels": layout(panels),
    }


def alerts_firing(size: tuple[int, int]) -> Json:
    return stat(
        "Alerts firing",
        "How many of the Souvenirs alerts are firing. Shows None, too, if their rules are not"
        " loaded.",
        now((f"sum by (alertstate) ({ALERTS})", "Alerts")),
        size=size,
        unit="none",
        defaults={"noValue": "None", "decimals": 0, **steps((None, "green"), (1, "red"))},
    )


def figures_age(size: tuple[int, int]) -> Json:
    return stat(
        "Age of the figures",
        "The time since the current figures were collected. Shows Not scraped if there was no"
        " scrape in the last five minutes.",
        now((age("souvenirs_collection_timestamp_seconds"), "{{job}}")),
        size=size,
        unit="s",
        defaults={
            "noValue": "Not scraped",
            "decimals": 0,
            **steps((None, "green"), (300, "orange"), (900, "red")),
        },
    )


def parts_read(size: tuple[int, int], by: str) -> Json:
    success = select("souvenirs_collection_part_success", suffix="[$__rate_interval]")
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return timeline(
        "Parts of the figures",
        "Whether each part of the figures could be read. Where it could not, the part's graphs have"
        " a gap, and the log of the site or the exporter has the cause.",
        targets((f"max by ({by}) (min_over_time({success}))", legend)),
        size=size,
        defaults={
            **steps((None, "red"), (1, "green")),
            **mapping(_0=("Not read", "red"), _1=("Read", "green")),
        },
    )
