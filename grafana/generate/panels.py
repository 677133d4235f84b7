"""One function for each kind of panel."""

from __future__ import annotations

from typing import Any

from grafana.generate.queries import DATASOURCE, Json

LAST_MIN_MAX, LAST_MEAN_MAX = ("lastNotNull", "min", "max"), ("lastNotNull", "mean", "max")
# Options of panels that always show the last 7 days
WEEK: Json = {"timeFrom": "7d", "hideTimeOverride": True}


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
    """A panel of this size, a width (of 24 columns) and a height; `layout` positions it.

    Its axis begins at 0, unless `defaults` have another `min`, or None for the lowest value.
    """
    settings = {"unit": unit, "min": 0, **(defaults or {})}
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": size[0], "h": size[1]},
        "targets": queries,
        "fieldConfig": {
            "defaults": {name: value for name, value in settings.items() if value is not None},
            "overrides": overrides or [],
        },
        "options": options,
        **more,
    }


def steps(*pairs: tuple[float | None, str]) -> Json:
    """Colours, each from a value on. The first value is None."""
    return {
        "color": {"mode": "thresholds"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": color} for value, color in pairs],
        },
    }


def mapping(**texts: tuple[str, str]) -> Json:
    """A text and a colour for each value, for example _1=("Up", "green")."""
    options = {
        value.lstrip("_"): {"index": index, "text": text, "color": color}
        for index, (value, (text, color)) in enumerate(texts.items())
    }
    return {"mappings": [{"type": "value", "options": options}]}


def override(matcher: str, value: str, **properties: Any) -> Json:
    """Properties for the fields that match; `custom__x` stands for custom.x."""
    return {
        "matcher": {"id": matcher, "options": value},
        "properties": [
            {"id": name.replace("__", "."), "value": content}
            for name, content in properties.items()
        ],
    }


def sorted_by(field: str) -> Json:
    """A transformation that sorts a table by a field, largest value first."""
    return {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": field, "desc": True}]}}


def share_gauge(field: str) -> Json:
    """An override that shows a table's column of shares as bars."""
    return override(
        "byName",
        field,
        unit="percentunit",
        decimals=0,
        max=1,
        color=fixed("blue"),
        custom__cellOptions={"type": "gauge", "mode": "basic"},
    )


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
    """A number. With `week`, also its graph over the last 7 days, and the change in that time."""
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
    """Lines. With `calcs`, the legend is a table of these, sorted by the last value, below the
    graph or (`beside`) to its right."""
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


def bars(title: str, description: str, queries: list[Json], **more: Any) -> Json:
    """A bar for each period, for queries of per_week() or per_month()."""
    custom = {
        "drawStyle": "bars",
        "barAlignment": 0,
        "barWidthFactor": 0.8,
        "fillOpacity": 75,
        "lineWidth": 0,
        "axisSoftMin": 0,
        # The days between the bars of months are not gaps, or else bars would be a day wide
        "insertNulls": 32 * 86_400_000,
        **more.pop("custom", {}),
    }
    return timeseries(title, description, queries, unit="short", custom=custom, **more)


def bar_gauge(title: str, description: str, queries: list[Json], **more: Any) -> Json:
    """A horizontal bar for each query."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "horizontal",
        "displayMode": "basic",
        "valueMode": "text",
        "namePlacement": "left",
        "showUnfilled": False,
        "sizing": "auto",
        "minVizWidth": 8,
        "minVizHeight": 10,
        "maxVizHeight": 60,
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []},
    }
    return panel("bargauge", title, description, queries, options=options, **more)


def curve(title: str, description: str, queries: list[Json], *, x: str, **more: Any) -> Json:
    """A line for each query, over a label with numeric values instead of time."""
    transformations: list[Json] = [
        {"id": "filterFieldsByName", "options": {"include": {"pattern": f"^({x}|Value.*)$"}}},
        {
            "id": "convertFieldType",
            "options": {
                "fields": {},
                "conversions": [{"targetField": x, "destinationType": "number"}],
            },
        },
        {"id": "joinByField", "options": {"byField": x, "mode": "outer"}},
        {"id": "sortBy", "options": {"fields": {}, "sort": [{"field": x}]}},
    ]
    drawn = timeseries(title, description, queries, **more)
    drawn["options"]["xField"] = x
    return {**drawn, "type": "trend", "transformations": transformations}


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
    """A row for each combination of labels. `columns` maps field names to column headings."""
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
