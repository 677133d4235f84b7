"""The settings of souvenirs_metrics: one typed property each."""

from __future__ import annotations

import re
from functools import cached_property

from django.conf import settings
from django.core.signals import setting_changed
from django.db import router
from django.db.models import Model

from souvenirs.conf import CachedSettings
from souvenirs.models import Souvenir

DEFAULT_WINDOWS = ("1h", "1d", "7d", "30d")
UNITS = {"y": 31_536_000, "w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
LONGEST = 292 * UNITS["y"]  # of Prometheus too, which keeps durations as 64 bits of nanoseconds
DURATION = re.compile("".join(f"(?:([0-9]+){unit})?" for unit in UNITS))


def parse_duration(text: str) -> int:
    """Seconds of a Prometheus duration such as "90m" or "1h30m" (years, weeks, days, hours,
    minutes, seconds; a year is 365 days). Raises ValueError for anything else, for 0, and for
    more than 292 years.

    Source of the grammar: prometheus.io, Querying basics, Time durations; less its milliseconds.
    """
    match = DURATION.fullmatch(text) if isinstance(text, str) else None
    seconds = sum(
        int(number) * unit
        for number, unit in zip(match.groups() if match else (), UNITS.values())
        if number
    )
    if not 0 < seconds <= LONGEST:
        raise ValueError(f"{text!r} is no duration; write it like '30m', '1h', '7d' or '1h30m'")
    return seconds


class Settings(CachedSettings):
    @cached_property
    def windows(self) -> dict[str, int]:
        """SOUVENIRS_METRICS_WINDOWS: rolling windows, by label, in seconds."""
        names = getattr(settings, "SOUVENIRS_METRICS_WINDOWS", DEFAULT_WINDOWS)
        return {name: parse_duration(name) for name in names}

    def database(self, model: type[Model]) -> str:
        """Alias of the database that scrapes read `model` from: SOUVENIRS_METRICS_DATABASE, or as
        the routers say where that is not set, or they keep the model in another database than
        souvenirs, of which that one is a replica."""
        alias: str | None = getattr(settings, "SOUVENIRS_METRICS_DATABASE", None)
        if alias is None or router.db_for_write(model) != router.db_for_write(Souvenir):
            return router.db_for_read(model)
        return alias

    @cached_property
    def register(self) -> bool:
        """SOUVENIRS_METRICS_REGISTER: whether the collector is in prometheus_client's default
        registry too, for a site that has a /metrics view of its own. Read at start-up."""
        return bool(getattr(settings, "SOUVENIRS_METRICS_REGISTER", False))


conf = Settings()
setting_changed.connect(conf._on_setting_changed)
