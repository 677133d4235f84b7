"""Reads the site's /metrics as a scraper does, and shows the gauges as a table."""

from __future__ import annotations

from collections.abc import Mapping

import requests
from prometheus_client.parser import text_string_to_metric_families
from tabulate import tabulate

WINDOWS = ("1h", "1d", "7d", "30d")
PERIODS = ("day", "week", "month")

# (sample name, value of its one label or "") to value
Samples = Mapping[tuple[str, str], float]


def scrape(url: str) -> str:
    """The metrics page of the site at `url`, in the Prometheus text format."""
    with requests.Session() as session:
        session.trust_env = False  # no proxy leads to loopback
        response = session.get(
            f"{url}/metrics", headers={"Accept": "text/plain;version=0.0.4"}, timeout=30
        )
        response.raise_for_status()
        return response.text


def souvenirs(page: str) -> Samples:
    """The samples of souvenirs on a page that have one label at most."""
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("souvenirs_") and len(sample.labels) <= 1
    }


def table(samples: Samples) -> str:
    """What a person wants to see of it. A gauge that is not on the page has a dash."""
    rows = [
        *(("active users, last", w, ("souvenirs_active_users", w)) for w in WINDOWS),
        *(("active users, this", p, ("souvenirs_calendar_active_users", p)) for p in PERIODS),
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
            (what, which, f"{samples[key]:.0f}" if key in samples else "-")
            for what, which, key in rows
        ],
        tablefmt="simple",
        colalign=("left", "left", "right"),
        disable_numparse=True,
    )
