"""The metric contract: names, help texts, labels. People's queries rely on every word but help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """A gauge with at most one label."""

    name: str
    documentation: str
    label: str = ""

    def family(self, values: float | Mapping[str, float] | None = None) -> Metric:
        """The gauge's metric family: with one value, one per label value, or (None) no samples."""
        labels = [self.label] if self.label else []
        family = GaugeMetricFamily(self.name, self.documentation, labels=labels)
        if isinstance(values, Mapping):
            for label, value in values.items():
                family.add_metric([label], value)
        elif values is not None:
            family.add_metric([], values)
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


ACTIVE_USERS = Gauge(
    name="souvenirs_active_users",
    documentation="Users seen in the rolling window that ends now.",
    label="window",
)
CALENDAR_ACTIVE_USERS = Gauge(
    name="souvenirs_calendar_active_users",
    documentation="Users seen since the current calendar period began (site time zone, ISO weeks).",
    label="period",
)
PREVIOUS_CALENDAR_ACTIVE_USERS = Gauge(
    name="souvenirs_previous_calendar_active_users",
    documentation="Users seen in the last complete calendar period. Absent for a period that began"
    " before the first record, or whose history is not rolled up yet.",
    label="period",
)
CALENDAR_PERIOD_START = Gauge(
    name="souvenirs_calendar_period_start_timestamp_seconds",
    documentation="When the current calendar period began.",
    label="period",
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
UP = Gauge(name="souvenirs_up", documentation="1 if the last collection read everything, else 0.")
PART_SUCCESS = Gauge(
    name="souvenirs_collection_part_success",
    documentation="1 if the last collection read all of this part, else 0.",
    label="part",
)
PART_DURATION = Gauge(
    name="souvenirs_collection_part_duration_seconds",
    documentation="How long the collection shown took to read this part, or tried to."
    " 0 for a part whose turn did not come.",
    label="part",
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

# The counter of instruments.py, which is not collected but counts in each process
RECORDS_NAME = "souvenirs_records"
RECORDS_DOCUMENTATION = "Visits of signed-in users, by what became of them."
RECORDS_RESULTS = ("added", "rate_limited", "duplicated", "skipped", "failed")
