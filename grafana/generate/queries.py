"""PromQL queries, and the panel targets that run them.

A site is a Prometheus job. A gauge is the same on every replica of a site, so queries take its
`max by (job, ...)`. Panels do not need our recording rules.
"""

from __future__ import annotations

import re
from typing import Any

Json = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# An alert without a job (because nothing is scraped at all) concerns every site
ALERTS = 'ALERTS{alertname=~"Souvenirs.+", alertstate="firing", job=~"$job|"}'
# An alert may fire for less than a step of the graph
ALERTS_OVER_TIME = f"max by (alertname, job) (max_over_time({ALERTS}[$__rate_interval]))"
# These change once a day at most, and souvenirs_history writes them once an hour
HOURLY = re.compile(
    "souvenirs_(previous_calendar|retention|active_days)_.+|souvenirs_(registered|activated)_users"
    "|souvenirs_calendar_period_start_timestamp_seconds"
)


def select(name: str, *matchers: str, suffix: str = "") -> str:
    """A selector for a metric of the selected jobs; `suffix` is a range or an offset."""
    labels = ", ".join(['job=~"$job"', *matchers])
    return f"{name}{{{labels}}}{suffix}"


def figure(name: str, *matchers: str, by: str = "job", suffix: str = "", within: str = "") -> str:
    """A gauge of the selected jobs, aggregated over replicas.

    within: take the last value within this duration; by default, an hour for gauges that
        souvenirs_history writes once an hour.
    """
    if not within and HOURLY.fullmatch(name):
        within = "1h"
    if within:
        selected = select(name, *matchers, suffix=f"[{within}]{suffix}")
        return f"max by ({by}) (last_over_time({selected}))"
    return f"max by ({by}) ({select(name, *matchers, suffix=suffix)})"


def age(name: str, by: str = "job") -> str:
    """The time since the timestamp that a gauge holds."""
    return f"time() - {figure(name, by=by)}"


def active(window: str, suffix: str = "") -> str:
    return figure("souvenirs_active_users", f'window="{window}"', suffix=suffix)


def per_week(name: str, *matchers: str, offset: str = "-5d6h") -> str:
    """A gauge about the last complete week, once per week. Use it with a step of one week.

    Steps of one week fall on Thursdays, like the epoch, so each week has one in its middle. The
    value for that week is read on the following Tuesday: wherever the browser is, the week is over
    at the site by then. Other offsets read the gauge at other times.
    """
    return figure(name, *matchers, suffix=f" offset {offset}", within="6h")


def per_month(name: str, *matchers: str) -> str:
    """A gauge about the last complete month, once per month. Use it with a step of one day.

    The value is placed on the fifteenth day from the end of each month, which is about its middle,
    and read on the second day of the next month.
    """
    read = figure(name, *matchers, suffix=" offset -16d6h", within="6h")
    return f"{read} and on () (day_of_month() == days_in_month() - 14)"


def visits(*matchers: str, by: str = "job") -> str:
    """Visits per second, over all processes."""
    counter = select("souvenirs_records_total", *matchers, suffix="[$__rate_interval]")
    return f"sum by ({by}) (rate({counter}))"


def share(part: str, whole: str) -> str:
    """A ratio, without a value where the whole is 0."""
    return f"{part} / ({whole} > 0)"


def targets(*queries: tuple[str, str], **options: Any) -> list[Json]:
    """Targets A, B, C, ... for pairs of a query and its legend."""
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
        for ref, (expr, legend) in zip("ABCDEFGHI", queries)
    ]


def now(*queries: tuple[str, str], **options: Any) -> list[Json]:
    """Targets of instant queries: series that no longer exist have no value."""
    return targets(*queries, range=False, instant=True, **options)
