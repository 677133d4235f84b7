"""Writes dashboards/*.json, which are kept in the repository: python grafana/build.py

Each figure is the same on every replica of a site, so it is the `max by (job, ...)`: a site is a
job of Prometheus. Panels need none of our recording rules.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]

DASHBOARDS = Path(__file__).parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
# An alert that names no job (nothing is scraped at all) concerns every site
ALERTS = 'ALERTS{alertname=~"Souvenirs.+", alertstate="firing", job=~"$job|"}'
LAST_MIN_MAX, LAST_MEAN_MAX = ("lastNotNull", "min", "max"), ("lastNotNull", "mean", "max")
# An alert may be shorter than a step of the graph
ALERTS_OVER_TIME = f"max by (alertname, job) (max_over_time({ALERTS}[$__rate_interval]))"
# Of a panel that always shows the last 7 days
WEEK: Json = {"timeFrom": "7d", "hideTimeOverride": True}


# Queries


def select(name: str, *matchers: str, suffix: str = "") -> str:
    """A metric of the chosen jobs; `suffix` is a range or an offset."""
    labels = ", ".join(['job=~"$job"', *matchers])
    return f"{name}{{{labels}}}{suffix}"


def figure(name: str, *matchers: str, by: str = "job", suffix: str = "") -> str:
    """A gauge of the chosen jobs, once for all replicas."""
    return f"max by ({by}) ({select(name, *matchers, suffix=suffix)})"


def age(name: str, by: str = "job") -> str:
    """How long ago the instant was that a gauge tells."""
    return f"time() - {figure(name, by=by)}"


def active(window: str, suffix: str = "") -> str:
    return figure("souvenirs_active_users", f'window="{window}"', suffix=suffix)


def visits(*matchers: str, by: str = "job") -> str:
    """Visits in a second, of all processes."""
    counter = select("souvenirs_records_total", *matchers, suffix="[$__rate_interval]")
    return f"sum by ({by}) (rate({counter}))"


def share(part: str, whole: str) -> str:
    """A ratio, which has no value where the whole is 0."""
    return f"{part} / ({whole} > 0)"


def targets(*queries: tuple[str, str], **options: Any) -> list[Json]:
    """Targets A, B, C, ... of pairs of a query and its legend."""
    return [
        {
            "refId": ref,
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": expr,
            "legendFormat": legend,
            "range": True,
            "instant": False,
            **options,
        }
        for ref, (expr, legend) in zip("ABCDEFG", queries)
    ]


def now(*queries: tuple[str, str], **options: Any) -> list[Json]:
    """Targets that are asked for this instant only: what is gone has no value."""
    return targets(*queries, range=False, instant=True, **options)


# Panels


def panel(
    kind: str,
    title: str,
    description: str,
    queries: list[Json],
    *,
    size: tuple[int, int],
    unit: str,
    options: Json,
    defaults: Json | None = None,
    overrides: list[Json] | None = None,
    **more: Any,
) -> Json:
    """A panel of this width (of 24 columns) and height; `layout` puts it in its place."""
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": size[0], "h": size[1]},
        "targets": queries,
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, **(defaults or {})},
            "overrides": overrides or [],
        },
        "options": options,
        **more,
    }


def steps(*pairs: tuple[float | None, str]) -> Json:
    """Colours from these values on; the first is None."""
    return {
        "color": {"mode": "thresholds"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": color} for value, color in pairs],
        },
    }


def mapping(**texts: tuple[str, str]) -> Json:
    """A text and a colour for each value, as in _1=("Up", "green")."""
    options = {
        value.lstrip("_"): {"index": index, "text": text, "color": color}
        for index, (value, (text, color)) in enumerate(texts.items())
    }
    return {"mappings": [{"type": "value", "options": options}]}


def override(matcher: str, value: str, **properties: Any) -> Json:
    """Properties of the fields that match; `custom__x` is custom.x."""
    return {
        "matcher": {"id": matcher, "options": value},
        "properties": [
            {"id": name.replace("__", "."), "value": content}
            for name, content in properties.items()
        ],
    }


def fixed(color: str) -> Json:
    return {"mode": "fixed", "fixedColor": color}


def stat(
    title: str,
    description: str,
    queries: list[Json],
    *,
    week: bool = False,
    **more: Any,
) -> Json:
    """A number; with `week`, over its graph of the last 7 days, and with the change since then."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": True,
        "colorMode": "value",
        "graphMode": "area" if week else "none",
        "justifyMode": "auto",
        "showPercentChange": week,
        "percentChangeColorMode": "standard",
    }
    more |= WEEK if week else {}
    return panel("stat", title, description, queries, options=options, **more)


def timeseries(
    title: str,
    description: str,
    queries: list[Json],
    *,
    custom: Json | None = None,
    defaults: Json | None = None,
    calcs: tuple[str, ...] = (),
    beside: bool = False,
    **more: Any,
) -> Json:
    """Lines. With `calcs` the legend is a table of these, by the last value, below or beside."""
    lines = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 2,
        "fillOpacity": 8,
        "gradientMode": "none",
        "showPoints": "never",
        "spanNulls": False,
        "axisPlacement": "auto",
        "scaleDistribution": {"type": "linear"},
        "stacking": {"mode": "none", "group": "A"},
    }
    legend: Json = {
        "showLegend": True,
        "displayMode": "table" if calcs else "list",
        "placement": "right" if beside else "bottom",
        "calcs": list(calcs),
    }
    if calcs:
        legend |= {"sortBy": "Last *", "sortDesc": True}
    return panel(
        "timeseries",
        title,
        description,
        queries,
        options={"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}},
        defaults={
            "color": {"mode": "palette-classic"},
            "custom": lines | (custom or {}),
            **(defaults or {}),
        },
        **more,
    )


def timeline(title: str, description: str, queries: list[Json], **more: Any) -> Json:
    """A bar for each series, coloured by its state."""
    options = {
        "showValue": "never",
        "mergeValues": True,
        "rowHeight": 0.8,
        "alignValue": "left",
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return panel(
        "state-timeline", title, description, queries, unit="none", options=options, **more
    )


def table(
    title: str, description: str, queries: list[Json], columns: dict[str, str], **more: Any
) -> Json:
    """A row for each combination of labels; `columns` are names of fields and what to call them."""
    organize = {
        "excludeByName": {"Time": True, "Value": True},
        "indexByName": {name: index for index, name in enumerate(columns)},
        "renameByName": columns,
    }
    transformations = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": organize},
        *more.pop("transformations", []),
    ]
    options = {"showHeader": True, "cellHeight": "sm"}
    return panel(
        "table",
        title,
        description,
        queries,
        options=options,
        transformations=transformations,
        **more,
    )


def row(title: str) -> Json:
    return {
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"w": COLUMNS, "h": 1},
        "panels": [],
    }


def layout(panels: list[Json]) -> list[Json]:
    """Panels in reading order, with ids, and with places from left to right and top to bottom."""
    x = y = height = 0
    placed = []
    for number, each in enumerate(panels, 1):
        size = each["gridPos"]
        if x + size["w"] > COLUMNS:
            x, y, height = 0, y + height, 0
        placed.append({"id": number, **each, "gridPos": {**size, "x": x, "y": y}})
        x, height = x + size["w"], max(height, size["h"])
    return placed


# Dashboards


def dashboard(uid: str, title: str, description: str, panels: list[Json]) -> Json:
    """Classic JSON, which Grafana migrates to what its version keeps."""
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
    query = "label_values(souvenirs_up, job)"
    job = {
        "name": "job",
        "label": "Job",
        "description": "Sites, by the job of Prometheus that scrapes them.",
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "job"},
        "regex": "",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "refresh": 2,
        "sort": 1,
        "hide": 0,
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
        "description": f"{description} Times are shown in your browser's time zone; calendar"
        " periods begin at midnight of the site's (TIME_ZONE).",
        "tags": ["souvenirs"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "weekStart": "",
        "fiscalYearStartMonth": 0,
        "time": {"from": "now-30d", "to": "now"},
        "timepicker": {},
        "refresh": "1m",
        "annotations": {"list": [alerts]},
        "templating": {"list": [datasource, job]},
        "links": [link],
        "panels": layout(panels),
    }


def alerts_firing(size: tuple[int, int]) -> Json:
    return stat(
        "Alerts firing",
        "How many of the Souvenirs alerts fire now. None too, where their rules are not loaded.",
        now((f"sum by (alertstate) ({ALERTS})", "Alerts")),
        size=size,
        unit="none",
        defaults={"noValue": "None", "decimals": 0, **steps((None, "green"), (1, "red"))},
    )


def figures_age(size: tuple[int, int]) -> Json:
    return stat(
        "Age of the figures",
        "How long ago the figures of the moment were collected. Without a value nothing was"
        " scraped in the last five minutes.",
        now((age("souvenirs_collection_timestamp_seconds"), "{{job}}")),
        size=size,
        unit="s",
        defaults={
            "noValue": "Not scraped",
            "decimals": 0,
            **steps((None, "green"), (300, "orange"), (900, "red")),
        },
    )


def active_users() -> Json:
    per_period = "job, period"
    began = "souvenirs_calendar_period_start_timestamp_seconds"
    to_date = figure("souvenirs_calendar_active_users", by=per_period)
    previous = figure("souvenirs_previous_calendar_active_users", by=per_period)
    windows = {"1h": "hour", "1d": "day", "7d": "7 days", "30d": "30 days"}
    return dashboard(
        "souvenirs-active-users",
        "Active users",
        "How many users are active: now, over time, and by day, week and month.",
        [
            row("Now"),
            *(
                stat(
                    f"Active in the last {words}",
                    f"Users seen in the {words} until now; below, the same over the last week, and"
                    " how much it has changed in that week.",
                    targets((active(window), "{{job}}")),
                    size=(4, 5),
                    unit="locale",
                    week=True,
                    defaults={"color": fixed("blue")},
                )
                for window, words in windows.items()
            ),
            figures_age((4, 5)),
            alerts_firing((4, 5)),
            row("Rolling windows"),
            timeseries(
                "Active users by window",
                "Users seen in the window that ended at each instant.",
                targets((figure("souvenirs_active_users", by="job, window"), "{{job}} {{window}}")),
                size=(24, 9),
                unit="short",
                calcs=LAST_MIN_MAX,
                beside=True,
            ),
            *(
                timeseries(
                    f"Last {windows[window]}, week over week",
                    f"The {window} window in the last 7 days, over the three weeks before them.",
                    targets(
                        (active(window), "{{job}} this week"),
                        (active(window, " offset 1w"), "{{job}} 1 week before"),
                        (active(window, " offset 2w"), "{{job}} 2 weeks before"),
                        (active(window, " offset 3w"), "{{job}} 3 weeks before"),
                    ),
                    size=(12, 9),
                    unit="short",
                    custom={"fillOpacity": 0, "lineWidth": 1},
                    overrides=[
                        override("byFrameRefID", "A", custom__lineWidth=2, custom__fillOpacity=12),
                        override("byFrameRefID", "B", color=fixed("semi-dark-orange")),
                        override("byFrameRefID", "C", color=fixed("semi-dark-purple")),
                        override("byFrameRefID", "D", color=fixed("gray")),
                    ],
                    **WEEK,
                )
                for window in ("1h", "1d")
            ),
            row("Calendar periods"),
            table(
                "To date, and the last complete period",
                "Users seen since each period began, and in the one before it. A period that began"
                " before the first record, or that is not rolled up yet, has no figure.",
                now(
                    (f"1000 * {figure(began, by=per_period)}", ""),
                    (to_date, ""),
                    (previous, ""),
                    (share(to_date, previous), ""),
                    format="table",
                ),
                {
                    "job": "Job",
                    "period": "Period",
                    "Value #A": "Began",
                    "Value #B": "To date",
                    "Value #C": "Last complete",
                    "Value #D": "Reached",
                },
                transformations=[
                    {
                        "id": "sortBy",
                        "options": {"fields": {}, "sort": [{"field": "Began", "desc": True}]},
                    }
                ],
                size=(24, 7),
                unit="locale",
                overrides=[
                    override("byName", "Began", unit="dateTimeAsIso"),
                    override(
                        "byName",
                        "Reached",
                        unit="percentunit",
                        decimals=0,
                        max=1,
                        color=fixed("blue"),
                        custom__cellOptions={"type": "gauge", "mode": "basic"},
                    ),
                ],
            ),
            *(
                timeseries(
                    f"{period.capitalize()} to date",
                    f"Users seen since the {period} began, and in the last complete {period}."
                    + (" The last 7 days are shown." if period == "day" else ""),
                    targets(
                        (
                            figure("souvenirs_calendar_active_users", f'period="{period}"'),
                            "{{job}} to date",
                        ),
                        (
                            figure(
                                "souvenirs_previous_calendar_active_users", f'period="{period}"'
                            ),
                            "{{job}} last complete",
                        ),
                    ),
                    size=(8, 8),
                    unit="short",
                    overrides=[
                        override(
                            "byFrameRefID",
                            "B",
                            custom__lineStyle={"fill": "dash", "dash": [6, 4]},
                            custom__lineWidth=1,
                            custom__fillOpacity=0,
                        )
                    ],
                    **(WEEK if period == "day" else {}),
                )
                for period in ("day", "week", "month")
            ),
            row("Accounts"),
            timeseries(
                "Stickiness",
                "Users of the last day as a share of those of the last 30 days: how much of a"
                " month's users a day sees.",
                targets((share(active("1d"), active("30d")), "{{job}}")),
                size=(12, 8),
                unit="percentunit",
            ),
            timeseries(
                "Registered, activated, active",
                "Accounts that exist, accounts that may sign in (is_active), and users seen in the"
                " last 30 days.",
                targets(
                    (figure("souvenirs_registered_users"), "{{job}} registered"),
                    (figure("souvenirs_activated_users"), "{{job}} activated"),
                    (active("30d"), "{{job}} active in 30 days"),
                ),
                size=(12, 8),
                unit="short",
                custom={"fillOpacity": 0},
            ),
            row("Alerts"),
            timeline(
                "Alerts over time",
                "When each of the Souvenirs alerts fired.",
                targets(
                    (
                        ALERTS_OVER_TIME,
                        "{{alertname}} {{job}}",
                    )
                ),
                size=(24, 5),
                defaults={
                    "noValue": "No alert has fired",
                    **steps((None, "red")),
                    **mapping(_1=("Firing", "red")),
                },
            ),
        ],
    )


def exporter() -> Json:
    instances = "{{job}} {{instance}}"
    per_instance = "job, instance"
    duration, lag = "souvenirs_collection_duration_seconds", "souvenirs_rollup_lag_seconds"
    failed = select("souvenirs_records_total", 'result="failed"', suffix="[1h]")
    limited = visits('result="rate_limited"')
    results = {
        "rate_limited": "blue",
        "added": "green",
        "duplicated": "yellow",
        "skipped": "purple",
        "failed": "red",
    }
    scraped = select("up", suffix="[$__rate_interval]")
    complete = select("souvenirs_up", suffix="[$__rate_interval]")
    slowest = select(duration, suffix="[$__rate_interval]")
    return dashboard(
        "souvenirs-exporter",
        "Souvenirs exporter",
        "Whether the figures of Active users are there, fresh and complete, and what they cost.",
        [
            row("Now"),
            stat(
                "Collection",
                "Complete if the last collection read every figure. If it did not, the log of the"
                " site or of the exporter has the cause.",
                now((figure("souvenirs_up"), "{{job}}")),
                size=(4, 5),
                unit="none",
                defaults={
                    "noValue": "Not scraped",
                    **steps((None, "red"), (1, "green")),
                    **mapping(_0=("Incomplete", "red"), _1=("Complete", "green")),
                },
            ),
            figures_age((4, 5)),
            stat(
                "Collection time",
                "How long the last collection took: what a scrape costs the database.",
                now((figure(duration), "{{job}}")),
                size=(4, 5),
                unit="s",
                defaults=steps((None, "green"), (1, "orange"), (5, "red")),
            ),
            stat(
                "Roll-up lag",
                "How long ago the oldest quarter of an hour ended that is due to be rolled up and"
                " is not. If it grows, run manage.py rollup_souvenirs.",
                now((figure(lag), "{{job}}")),
                size=(4, 5),
                unit="s",
                defaults={
                    "decimals": 0,
                    **steps((None, "green"), (3_600, "orange"), (7_200, "red")),
                },
            ),
            stat(
                "Failures in the last hour",
                "Visits of signed-in users that could not be recorded.",
                now((f"sum by (job) (increase({failed}))", "{{job}}")),
                size=(4, 5),
                unit="short",
                defaults={"decimals": 0, **steps((None, "green"), (1, "red"))},
            ),
            alerts_firing((4, 5)),
            row("Collections"),
            timeline(
                "Scrapes and collections",
                "Whether each instance answered Prometheus, and whether its collections read every"
                " figure. A short interruption shows in the whole step of the graph.",
                targets(
                    (f"max by ({per_instance}) (min_over_time({scraped}))", f"{instances} scrape"),
                    (
                        f"max by ({per_instance}) (min_over_time({complete}))",
                        f"{instances} collection",
                    ),
                ),
                size=(24, 6),
                defaults={
                    **steps((None, "red"), (1, "green")),
                    **mapping(_0=("Failed", "red"), _1=("Complete", "green")),
                },
            ),
            timeseries(
                "Collection time by instance",
                "How long the slowest collection of each step of the graph took.",
                targets((f"max by ({per_instance}) (max_over_time({slowest}))", instances)),
                size=(12, 9),
                unit="s",
                custom={"lineWidth": 1},
                calcs=LAST_MEAN_MAX,
            ),
            timeseries(
                "Age of the figures by instance",
                "How old the collection was that the last scrape had. It grows where collections"
                " are reused (SOUVENIRS_METRICS_MAX_AGE_SECONDS), or where scrapes fail.",
                targets(
                    (age("souvenirs_collection_timestamp_seconds", by=per_instance), instances)
                ),
                size=(12, 9),
                unit="s",
                custom={"lineWidth": 1},
                calcs=LAST_MEAN_MAX,
            ),
            row("Recording"),
            timeseries(
                "Visits by result",
                "Visits of signed-in users in a second, by what became of them. Nearly all are"
                " rate-limited.",
                targets((visits(by="job, result"), "{{job}} {{result}}")),
                size=(24, 9),
                unit="reqps",
                custom={
                    "lineWidth": 0,
                    "fillOpacity": 70,
                    "stacking": {"mode": "normal", "group": "A"},
                },
                overrides=[
                    override("byRegexp", f"/ {result}$/", color=fixed(color))
                    for result, color in results.items()
                ],
                calcs=LAST_MEAN_MAX,
                beside=True,
            ),
            timeseries(
                "Rate-limited share",
                "Visits of users who had been recorded within the rate limit already, as a share"
                " of all. They cost the site next to nothing.",
                targets((share(limited, visits()), "{{job}}")),
                size=(12, 8),
                unit="percentunit",
                custom={"fillOpacity": 0},
                defaults={"max": 1},
            ),
            timeseries(
                "Failures in an hour",
                "Visits that could not be recorded in the hour before each instant, by instance;"
                " the log of the site has the cause.",
                targets((f"sum by ({per_instance}) (increase({failed}))", instances)),
                size=(12, 8),
                unit="short",
                custom={"fillOpacity": 30, "lineWidth": 1},
            ),
            row("History"),
            timeseries(
                "Roll-up lag over time",
                "How far the history is behind: the age of the oldest quarter of an hour that is"
                " due to be rolled up and is not.",
                targets((figure(lag), "{{job}}")),
                size=(12, 7),
                unit="s",
            ),
            timeseries(
                "Time since the last visit",
                "How long ago any user was last seen. Longer than usual for the time of day:"
                " nothing is recorded, or nobody comes.",
                targets((age("souvenirs_last_seen_timestamp_seconds"), "{{job}}")),
                size=(12, 7),
                unit="s",
            ),
            row("Versions"),
            table(
                "What runs",
                "Versions, and where the figures are kept, of each instance.",
                now(
                    (
                        figure(
                            "souvenirs_build_info",
                            by="job, instance, version, python, django, database, last_seen_store",
                        ),
                        "",
                    ),
                    format="table",
                ),
                {
                    "job": "Job",
                    "instance": "Instance",
                    "version": "django-souvenirs",
                    "python": "Python",
                    "django": "Django",
                    "database": "Database",
                    "last_seen_store": "Last-seen store",
                },
                size=(24, 5),
                unit="none",
            ),
        ],
    )


def write(directory: Path) -> None:
    for each in (active_users(), exporter()):
        text = json.dumps(each, indent=2, ensure_ascii=False)
        (directory / f"{each['uid']}.json").write_text(f"{text}\n")


if __name__ == "__main__":
    write(DASHBOARDS)
