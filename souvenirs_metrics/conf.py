"""The settings of souvenirs_metrics: one typed property each."""

from __future__ import annotations

import re
from functools import cached_property

from django.conf import settings
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS

from souvenirs.conf import CachedSettings

DEFAULT_WINDOWS = ("1h", "1d", "7d", "30d")
UNITS = {"y": 31_536_000, "w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
DURATION = re.compile("".join(f"(?:([0-9]+){unit})?" for unit in UNITS))


def parse_duration(text: str) -> int:
    """Seconds of a Prometheus duration such as "90m" or "1h30m" (years, weeks, days, hours,
    minutes, seconds; a year is 365 days). Raises ValueError for anything else, and for 0.

    Source of the grammar: prometheus.io, Querying basics, Time durations; less its milliseconds.
    """
    match = DURATION.fullmatch(text) if isinstance(text, str) else None
    seconds = sum(
        int(number) * unit
        for number, unit in zip(match.groups() if match else (), UNITS.values())
        if number
    )
    if not seconds:
        raise ValueError(f"{text!r} is no duration; write it like '30m', '1h', '7d' or '1h30m'")
    return seconds


class Settings(CachedSettings):
    @cached_property
    def windows(self) -> dict[str, int]:
        """SOUVENIRS_METRICS_WINDOWS: rolling windows, by label, in seconds."""
        names = getattr(settings, "SOUVENIRS_METRICS_WINDOWS", DEFAULT_WINDOWS)
        return {name: parse_duration(name) for name in names}

    @cached_property
    def database(self) -> str:
        """SOUVENIRS_METRICS_DATABASE: alias of the database that scrapes read from."""
        return str(getattr(settings, "SOUVENIRS_METRICS_DATABASE", DEFAULT_DB_ALIAS))

    @cached_property
    def register(self) -> bool:
        """SOUVENIRS_METRICS_REGISTER: whether the collector is in prometheus_client's default
        registry too, for a site that has a /metrics view of its own. Read at start-up."""
        return bool(getattr(settings, "SOUVENIRS_METRICS_REGISTER", False))


conf = Settings()
setting_changed.connect(conf._on_setting_changed)
