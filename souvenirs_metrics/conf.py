"""The settings of souvenirs_metrics, with a typed property for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed
from django.db import router
from django.db.models import Model
from django.http import HttpRequest

from souvenirs import scopes
from souvenirs.conf import CachedSettings, imported
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
        """Alias of the database that scrapes read `model` from.

        This is SOUVENIRS_METRICS_DATABASE, which is a replica of the database of souvenirs. The
        routers decide if the setting is missing, if they keep the model in a different database
        than souvenirs, or if the site is scoped.
        """
        alias: str | None = getattr(settings, "SOUVENIRS_METRICS_DATABASE", None)
        is_elsewhere = router.db_for_write(model) != router.db_for_write(Souvenir)
        if alias is None or is_elsewhere or scopes.is_scoped():
            return router.db_for_read(model)
        return alias

    @cached_property
    def segments(self) -> dict[str, Any]:
        """SOUVENIRS_METRICS_SEGMENTS: what to count active users by; the keys are the values of the
        label `segment`. Each entry is a path from the user model, or {"FIELD": path,
        "VALUES": [...]}: see segments."""
        return dict(getattr(settings, "SOUVENIRS_METRICS_SEGMENTS", {}))

    @cached_property
    def accounts(self) -> str | None:
        """SOUVENIRS_METRICS_ACCOUNTS: path from the user model to what is counted as an account.
        None: accounts are not counted."""
        return getattr(settings, "SOUVENIRS_METRICS_ACCOUNTS", None)

    @cached_property
    def max_age_seconds(self) -> float:
        """SOUVENIRS_METRICS_MAX_AGE_SECONDS: how old a collection may be for a later scrape of the
        same process to reuse it. 0: a scrape only shares a collection that is still running."""
        return float(getattr(settings, "SOUVENIRS_METRICS_MAX_AGE_SECONDS", 0))

    @cached_property
    def tokens(self) -> tuple[bytes, ...] | None:
        """SOUVENIRS_METRICS_TOKEN: the bearer tokens that give access to /metrics. Any of them is
        enough, so that tokens can be rotated. None: the page is open. An empty token, for example
        from an environment variable that is not set, gives no access."""
        value = getattr(settings, "SOUVENIRS_METRICS_TOKEN", None)
        tokens = [value] if isinstance(value, str) else value
        return None if tokens is None else tuple(token.encode() for token in tokens if token)

    @cached_property
    def authorize(self) -> Callable[[HttpRequest], bool] | None:
        """SOUVENIRS_METRICS_AUTHORIZE: dotted path to (request) -> bool, which decides who may see
        /metrics, in place of a token. None: no such function."""
        return imported("SOUVENIRS_METRICS_AUTHORIZE")

    @cached_property
    def register(self) -> bool:
        """SOUVENIRS_METRICS_REGISTER: whether the collector is also in prometheus_client's default
        registry, for a site with another /metrics view. Read at start-up."""
        return bool(getattr(settings, "SOUVENIRS_METRICS_REGISTER", False))


conf = Settings()
setting_changed.connect(conf._on_setting_changed)
