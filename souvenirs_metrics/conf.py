"""The settings of souvenirs_metrics: one typed property each."""

from __future__ import annotations

from functools import cached_property

from django.conf import settings
from django.core.signals import setting_changed
from django.db import router
from django.db.models import Model

from souvenirs.conf import CachedSettings
from souvenirs.models import Souvenir
from souvenirs.periods import parse_duration

DEFAULT_WINDOWS = ("1h", "1d", "7d", "30d")


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
