"""The metric contract: names, help texts, labels. People's queries rely on every word but help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import (
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
)


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """A gauge. `labels` are the names of its labels."""

    name: str
    documentation: str
    labels: tuple[str, ...] = ()

    def family(self, values: float | Mapping[Any, float] | None = None) -> Metric:
        """The gauge's metric family: with one value, one per label value (or tuple of them, where
        there are several labels), or (None) no samples."""
        family = GaugeMetricFamily(self.name, self.documentation, labels=self.labels)
        if isinstance(values, Mapping):
            for key, value in values.items():
                family.add_metric([key] if isinstance(key, str) else list(key), value)
        elif values is not None:
            family.add_metric([], values)
        return family


@dataclass(frozen=True, kw_only=True)
class GaugeHistogram:
    """A distribution as it is now: how many values are at most each of `bounds`.

    Its buckets' label le is a float's ("1.0", "+Inf") in both formats of the page, so series are
    the same whichever is scraped.
    """

    name: str
    documentation: str
    bounds: tuple[int, ...]

    def family(self, counts: Mapping[int, int] | None = None) -> Metric:
        """`counts` has how many there are of each value; None: no samples."""
        family = GaugeHistogramMetricFamily(self.name, self.documentation)
        if counts is not None:
            buckets: list[tuple[str, float]] = [
                (str(float(bound)), sum(n for value, n in counts.items() if value <= bound))
                for bound in self.bounds
            ]
            buckets.append(("+Inf", sum(counts.values())))
            family.add_metric([], buckets, sum(value * n for value, n in counts.items()))
        return family


@dataclass(frozen=True, kw_only=True)
class Info:
    """A metric that is always 1 and tells by its labels. Its samples' name ends in _info."""

    name: str
    documentation: str

    def family(self, values: Mapping[str, str] | None = None) -> Metric:
        family = InfoMetricFamily(self.name, self.documentation)
        if values is not None:
            family.add_metric([], dict(values))
        return family


Family = Gauge | GaugeHistogram | Info

ACTIVE_USERS = Gauge(
    name="souvenirs_active_users",
    documentation="Users seen in the rolling window that ends now.",
    labels=("window",),
)
CALENDAR_ACTIVE_USERS = Gauge(
    name="souvenirs_calendar_active_users",
    documentation="Users seen since the current calendar period began (site time zone, ISO weeks).",
    labels=("period",),
)
PREVIOUS_CALENDAR_ACTIVE_USERS = Gauge(
    name="souvenirs_previous_calendar_active_users",
    documentation="Users seen in the last complete calendar period. Absent for a period that began"
    " before the first record, or whose history is not rolled up yet.",
    labels=("period",),
)
GROWTH = Gauge(
    name="souvenirs_previous_calendar_growth_users",
    documentation="Users of the last complete calendar period by how they came to be active in it"
    " (new, retained, resurrected), and those of the period before who were not (churned).",
    labels=("period", "change"),
)
RETENTION_COHORT = Gauge(
    name="souvenirs_retention_cohort_users",
    documentation="Users whose first calendar period is so many periods (age) before the last"
    " complete one.",
    labels=("period", "age"),
)
RETENTION_RETAINED = Gauge(
    name="souvenirs_retention_retained_users",
    documentation="Those of souvenirs_retention_cohort_users who were active in the last complete"
    " calendar period.",
    labels=("period", "age"),
)
ACTIVE_DAYS = GaugeHistogram(
    name="souvenirs_active_days",
    documentation="Users of the last 28 complete days, by on how many of them they were active.",
    bounds=(1, 2, 3, 5, 7, 10, 14, 21, 28),
)
CALENDAR_PERIOD_START = Gauge(
    name="souvenirs_calendar_period_start_timestamp_seconds",
    documentation="When the current calendar period began.",
    labels=("period",),
)
REGISTERED_USERS = Gauge(name="souvenirs_registered_users", documentation="Accounts that exist.")
ACTIVATED_USERS = Gauge(
    name="souvenirs_activated_users", documentation="Accounts that may sign in (is_active)."
)
LAST_SEEN = Gauge(
    name="souvenirs_last_seen_timestamp_seconds",
    documentation="When a user was last seen, of all users.",
)
ROLLUP_LAG = Gauge(
    name="souvenirs_rollup_lag_seconds",
    documentation="How long ago the oldest quarter of an hour ended that is due to be rolled up.",
)
SEGMENT_ACTIVE_USERS = Gauge(
    name="souvenirs_segment_active_users",
    documentation="Users seen in the rolling window, by a segment of SOUVENIRS_METRICS_SEGMENTS.",
    labels=("segment", "value", "window"),
)
CALENDAR_SEGMENT_ACTIVE_USERS = Gauge(
    name="souvenirs_calendar_segment_active_users",
    documentation="Users seen since the current calendar period began, by a segment of"
    " SOUVENIRS_METRICS_SEGMENTS.",
    labels=("segment", "value", "period"),
)
ACTIVE_ACCOUNTS = Gauge(
    name="souvenirs_active_accounts",
    documentation="Accounts (SOUVENIRS_METRICS_ACCOUNTS) with a user seen in the rolling window.",
    labels=("window",),
)
CALENDAR_ACTIVE_ACCOUNTS = Gauge(
    name="souvenirs_calendar_active_accounts",
    documentation="Accounts (SOUVENIRS_METRICS_ACCOUNTS) with a user seen since the current"
    " calendar period began.",
    labels=("period",),
)
UP = Gauge(name="souvenirs_up", documentation="1 if the last collection read everything, else 0.")
PART_SUCCESS = Gauge(
    name="souvenirs_collection_part_success",
    documentation="1 if the last collection read all of this part, else 0.",
    labels=("part",),
)
PART_DURATION = Gauge(
    name="souvenirs_collection_part_duration_seconds",
    documentation="How long the collection shown took to read this part, or tried to."
    " 0 for a part whose turn did not come.",
    labels=("part",),
)
COLLECTION_DURATION = Gauge(
    name="souvenirs_collection_duration_seconds",
    documentation="How long the collection shown took.",
)
COLLECTION_TIMESTAMP = Gauge(
    name="souvenirs_collection_timestamp_seconds",
    documentation="The instant that the collection shown is of.",
)
BUILD = Info(name="souvenirs_build", documentation="Versions, and where the numbers are kept.")

# The counters of instruments.py, which are not collected but count in each process
RECORDS_NAME = "souvenirs_records"
RECORDS_DOCUMENTATION = "Visits of signed-in users, by what became of them."
QUEUED_NAME = "souvenirs_queued_visits"
QUEUED_DOCUMENTATION = "Visits left to the writer, which counts what became of each later."
WRITE_ERRORS_NAME = "souvenirs_write_errors"
WRITE_ERRORS_DOCUMENTATION = "Times that the writer could not write visits."
RECORDS_RESULTS = ("added", "rate_limited", "duplicated", "skipped", "failed")
