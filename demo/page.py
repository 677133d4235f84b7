"""Read the site's /metrics as a scraper does, and its usage, and format both as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import requests
from prometheus_client.parser import text_string_to_metric_families
from tabulate import tabulate

WINDOWS = ("1h", "1d", "7d", "30d")
PERIODS = ("day", "week", "month")

TREND = {"day": 30, "week": 12, "month": 12}  # periods
TREND_ROW = "active users, this"
BARS = "▁▂▃▄▅▆▇█"

# (sample name, value of its only label or "") to value
Samples = Mapping[tuple[str, str], float]


def scrape(url: str) -> str:
    """The metrics page of the site at `url`, in the Prometheus text format."""
    return get(f"{url}/metrics", Accept="text/plain;version=0.0.4").text


def trends(url: str) -> dict[str, list[int]]:
    """The active users of the last days, weeks and months, oldest first."""
    return {
        period: [
            each["usage"]["active_users"]
            for each in get(f"{url}/souvenirs/usage.json?period={period}&recent={recent}").json()[
                "usage"
            ]
        ]
        for period, recent in TREND.items()
    }


def get(url: str, **headers: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # no proxy for loopback
        response = session.get(url, headers=headers, timeout=30)
        response.raise_for_status()
        return response


def sparkline(values: Sequence[int]) -> str:
    """A bar for each value; the highest bar is the largest value, the lowest is 0."""
    most = max(values, default=0) or 1
    return "".join(BARS[round(value / most * (len(BARS) - 1))] for value in values)


def souvenirs(page: str) -> Samples:
    """The samples of souvenirs on a page that have at most one label."""
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("souvenirs_") and len(sample.labels) <= 1
    }


def table(samples: Samples, trends: Mapping[str, Sequence[int]], news: Sequence[str]) -> str:
    """The table for the terminal. A gauge that is not on the page is shown as a dash."""
    lines = [_gauges(samples, trends)]
    if news:
        lines += ["", *news]
    return "\n".join(lines)


def _gauges(samples: Samples, trends: Mapping[str, Sequence[int]]) -> str:
    rows = [
        *(("active users, last", w, ("souvenirs_active_users", w)) for w in WINDOWS),
        *((TREND_ROW, p, ("souvenirs_calendar_active_users", p)) for p in PERIODS),
        *(
            ("active users, previous", p, ("souvenirs_previous_calendar_active_users", p))
            for p in PERIODS
        ),
        ("accounts", "registered", ("souvenirs_registered_users", "")),
        ("accounts", "activated", ("souvenirs_activated_users", "")),
        *(
            ("visits since the start", result, ("souvenirs_records_total", result))
            for result in ("added", "rate_limited", "failed")
        ),
        ("souvenirs_up", "", ("souvenirs_up", "")),
    ]
    return tabulate(
        [
            (
                what,
                which,
                f"{samples[key]:.0f}" if key in samples else "-",
                sparkline(trends.get(which, [])) if what == TREND_ROW else "",
            )
            for what, which, key in rows
        ],
        tablefmt="simple",
        colalign=("left", "left", "right", "left"),
        disable_numparse=True,
    )
