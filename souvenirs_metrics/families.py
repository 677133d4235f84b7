"""The metric contract: names, help texts and labels. Only help texts may change: users' queries
rely on everything else."""

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
    """A gauge. `labels` are its label names."""

    name: str
    documentation: str
    labels: tuple[str, ...] = ()

    def family(self, values: float | Mapping[Any, float] | None = None) -> Metric:
        """The gauge's metric family.

        values: a single value, or a mapping from label values (from tuples of them if there are
            several labels); None for no samples.
        """
        family = GaugeMetricFamily(self.name, self.documentation, labels=self.labels)
        if isinstance(values, Mapping):
            for key, value in values.items():
                family.add_metric([key] if isinstance(key, str) else list(key), value)
        elif values is not None:
            family.add_metric([], values)
        return family


@dataclass(frozen=True, kw_only=True)
class GaugeHistogram:
    """The present distribution of a value: for each of `bounds`, how many values do not exceed it.

    The label `le` of its buckets is written as a float ("1.0", "+Inf") in both formats of the page,
    so the series are the same whichever one is scraped.
    """

    name: str
    documentation: str
    bounds: tuple[int, ...]

    def family(self, counts: Mapping[int, int] | None = None) -> Metric:
        """The metric family. `counts` maps each value to its frequency; None for no samples."""
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
    """A metric whose value is always 1, with the information in its labels. The sample name ends in
    _info."""

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
    documentation="Distinct users seen in the rolling window that ends now.",
    labels=("window",),
)
CALENDAR_ACTIVE_USERS = Gauge(
    name="souvenirs_calendar_active_users",
    documentation="Distinct users seen since the current calendar period began (site time zone, ISO"
    " weeks).",
    labels=("period",),
)
PREVIOUS_CALENDAR_ACTIVE_USERS = Gauge(
    name="souvenirs_previous_calendar_active_users",
    documentation="Distinct users seen in the last complete calendar period. Absent if the period"
    " began before the first record, or if its history is not rolled up yet.",
    labels=("period",),
)
GROWTH = Gauge(
    name="souvenirs_previous_calendar_growth_users",
    documentation="Users of the last complete calendar period: new (never active before), retained"
    " (also active in the period before) or resurrected (active earlier, but not in the period"
    " before); and churned users, active in the period before but not in this one.",
    labels=("period", "change"),
)
RETENTION_COHORT = Gauge(
    name="souvenirs_retention_cohort_users",
    documentation="Users who were new a given number of calendar periods (age) before the last"
    " complete one.",
    labels=("period", "age"),
)
RETENTION_RETAINED = Gauge(
    name="souvenirs_retention_retained_users",
    documentation="Users counted in souvenirs_retention_cohort_users who were also active in the"
    " last complete calendar period.",
    labels=("period", "age"),
)
ACTIVE_DAYS = GaugeHistogram(
    name="souvenirs_active_days",
    documentation="Users of the last 28 complete days, by the number of days on which they were"
    " active.",
    bounds=(1, 2, 3, 5, 7, 10, 14, 21, 28),
)
CALENDAR_PERIOD_START = Gauge(
    name="souvenirs_calendar_period_start_timestamp_seconds",
    documentation="Unix time at which the current calendar period began.",
    labels=("period",),
)
REGISTERED_USERS = Gauge(name="souvenirs_registered_users", documentation="User accounts.")
ACTIVATED_USERS = Gauge(
    name="souvenirs_activated_users",
    documentation="User accounts that may sign in (is_active).",
)
LAST_SEEN = Gauge(
    name="souvenirs_last_seen_timestamp_seconds",
    documentation="Unix time at which any user was last seen.",
)
ROLLUP_LAG = Gauge(
    name="souvenirs_rollup_lag_seconds",
    documentation="Seconds since the end of the oldest quarter of an hour that is due to be rolled"
    " up; 0 if nothing is due.",
)
SEGMENT_ACTIVE_USERS = Gauge(
    name="souvenirs_segment_active_users",
    documentation="Distinct users seen in the rolling window, by the values of each segment in"
    " SOUVENIRS_METRICS_SEGMENTS.",
    labels=("segment", "value", "window"),
)
CALENDAR_SEGMENT_ACTIVE_USERS = Gauge(
    name="souvenirs_calendar_segment_active_users",
    documentation="Distinct users seen since the current calendar period began, by the values of"
    " each segment in SOUVENIRS_METRICS_SEGMENTS.",
    labels=("segment", "value", "period"),
)
ACTIVE_ACCOUNTS = Gauge(
    name="souvenirs_active_accounts",
    documentation="Accounts (SOUVENIRS_METRICS_ACCOUNTS) with at least one user seen in the rolling"
    " window.",
    labels=("window",),
)
CALENDAR_ACTIVE_ACCOUNTS = Gauge(
    name="souvenirs_calendar_active_accounts",
    documentation="Accounts (SOUVENIRS_METRICS_ACCOUNTS) with at least one user seen since the"
    " current calendar period began.",
    labels=("period",),
)
UP = Gauge(
    name="souvenirs_up",
    documentation="1 if every value on this page could be read, 0 if some are missing.",
)
PART_SUCCESS = Gauge(
    name="souvenirs_collection_part_success",
    documentation="1 if all values of this part could be read, 0 if some are missing.",
    labels=("part",),
)
PART_DURATION = Gauge(
    name="souvenirs_collection_part_duration_seconds",
    documentation="Seconds that reading this part took, even if it failed; 0 if its turn did not"
    " come.",
    labels=("part",),
)
COLLECTION_DURATION = Gauge(
    name="souvenirs_collection_duration_seconds",
    documentation="Seconds that collecting the values on this page took.",
)
COLLECTION_TIMESTAMP = Gauge(
    name="souvenirs_collection_timestamp_seconds",
    documentation="Unix time as of which the values on this page were collected.",
)
BUILD = Info(
    name="souvenirs_build",
    documentation="Versions, the database, and the store of last-seen times.",
)

# The counters of instruments.py, which each process increments: the collector does not read them
RECORDS_NAME = "souvenirs_records"
RECORDS_DOCUMENTATION = (
    "Visits of signed-in users by result (added, rate_limited, duplicated, skipped or failed),"
    " per process."
)
QUEUED_NAME = "souvenirs_queued_visits"
QUEUED_DOCUMENTATION = (
    "Visits queued for the writer, per process. Once they are written, souvenirs_records_total"
    " counts their results."
)
WRITE_ERRORS_NAME = "souvenirs_write_errors"
WRITE_ERRORS_DOCUMENTATION = "Failed attempts of the writer to write queued visits, per process."
COUNTERS = (RECORDS_NAME, QUEUED_NAME, WRITE_ERRORS_NAME)
RECORDS_RESULTS = ("added", "rate_limited", "duplicated", "skipped", "failed")
