"""Queries in PromQL, and the targets of panels that ask them.

Each figure is the same on every replica of a site, so it is the `max by (job, ...)`: a site is a
job of Prometheus. Panels need none of our recording rules.
"""

from __future__ import annotations

import re
from typing import Any

Json = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# An alert that names no job (nothing is scraped at all) concerns every site
ALERTS = 'ALERTS{alertname=~"Souvenirs.+", alertstate="firing", job=~"$job|"}'
# An alert may be shorter than a step of the graph
ALERTS_OVER_TIME = f"max by (alertname, job) (max_over_time({ALERTS}[$__rate_interval]))"


# They change once a day at most, and souvenirs_history writes them once an hour
SELDOM = re.compile(
    "souvenirs_(previous_calendar|retention|active_days)_.+|souvenirs_(registered|activated)_users"
    "|souvenirs_calendar_period_start_timestamp_seconds"
)


def select(name: str, *matchers: str, suffix: str = "") -> str:
    """A metric of the chosen jobs; `suffix` is a range or an offset."""
    labels = ", ".join(['job=~"$job"', *matchers])
    return f"{name}{{{labels}}}{suffix}"


def figure(name: str, *matchers: str, by: str = "job", suffix: str = "", within: str = "") -> str:
    """A gauge of the chosen jobs, once for all replicas: its last value `within` a time, which by
    default is long enough for what is in Prometheus."""
    if not within and SELDOM.fullmatch(name):
        within = "1h"
    if within:
        selected = select(name, *matchers, suffix=f"[{within}]{suffix}")
        return f"max by ({by}) (last_over_time({selected}))"
    return f"max by ({by}) ({select(name, *matchers, suffix=suffix)})"


def age(name: str, by: str = "job") -> str:
    """How long ago the instant was that a gauge tells."""
    return f"time() - {figure(name, by=by)}"


def active(window: str, suffix: str = "") -> str:
    return figure("souvenirs_active_users", f'window="{window}"', suffix=suffix)


def of_weeks(name: str, *matchers: str, offset: str = "-5d6h") -> str:
    """A gauge about the last complete week, once for each week: ask with a step of one week.

    Such steps are on Thursdays, as the epoch was, so each week has one, in its middle. What the
    gauge says about that week is read on the next Tuesday: wherever the browser is, the week is
    over then at the site too. Other offsets are of other times of that week.
    """
    return figure(name, *matchers, suffix=f" offset {offset}", within="6h")


def of_months(name: str, *matchers: str) -> str:
    """A gauge about the last complete month, once for each month: ask with a step of one day.

    It is on the fifteenth last day of each month, which is about its middle, and read on the second
    day of the next one.
    """
    read = figure(name, *matchers, suffix=" offset -16d6h", within="6h")
    return f"{read} and on () (day_of_month() == days_in_month() - 14)"


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
        for ref, (expr, legend) in zip("ABCDEFGHI", queries)
    ]


def now(*queries: tuple[str, str], **options: Any) -> list[Json]:
    """Targets that are asked for this instant only: what is gone has no value."""
    return targets(*queries, range=False, instant=True, **options)
