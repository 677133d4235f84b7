"""The settings of souvenirs, one typed property each; cached until a setting changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from datetime import datetime
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.core.signals import setting_changed
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.crypto import salted_hmac
from django.utils.module_loading import import_string

DEFAULT_STORE = {"BACKEND": "souvenirs.lastseen.database.DatabaseStore"}


def imported(name: str) -> Any | None:
    """Import what the dotted path in this setting names; return None if there is no setting."""
    path = getattr(settings, name, None)
    return None if path is None else import_string(path)


class CachedSettings:
    """Base class of the apps' settings: properties are computed once, `reset` clears them.

    Reading django.conf.settings on each request would cost more than the rate limit itself.
    """

    def reset(self) -> None:
        self.__dict__.clear()

    def _on_setting_changed(self, **kwargs: Any) -> None:
        self.reset()


class Settings(CachedSettings):
    @cached_property
    def ratelimit_seconds(self) -> float:
        """SOUVENIRS_RATELIMIT_SECONDS: the rate limit's window in seconds; 0 for no limit."""
        return float(getattr(settings, "SOUVENIRS_RATELIMIT_SECONDS", 3600))

    @cached_property
    def enabled(self) -> bool:
        """SOUVENIRS_ENABLED: whether users are recorded. Set it to False in a site's tests."""
        return bool(getattr(settings, "SOUVENIRS_ENABLED", True))

    @cached_property
    def cache_name(self) -> str:
        """SOUVENIRS_CACHE_NAME: alias in CACHES of the cache in which processes share the limit."""
        return str(getattr(settings, "SOUVENIRS_CACHE_NAME", "default"))

    @cached_property
    def cache_prefix(self) -> str:
        """SOUVENIRS_CACHE_PREFIX: prefix of the keys in that cache."""
        return str(getattr(settings, "SOUVENIRS_CACHE_PREFIX", self.site_prefix))

    @cached_property
    def site_prefix(self) -> str:
        """The default prefix of keys: "souvenirs." and a digest that distinguishes this site from
        others in the same cache or Redis.

        The digest is derived from SECRET_KEY, which all processes of a site share (whatever address
        they use for their database), and staging and production do not.
        """
        return f"souvenirs.{salted_hmac('souvenirs', 'site', algorithm='sha256').hexdigest()[:12]}."

    @cached_property
    def last_seen_seconds(self) -> int:
        """SOUVENIRS_LAST_SEEN_SECONDS: the resolution of last-seen times, in seconds."""
        return int(getattr(settings, "SOUVENIRS_LAST_SEEN_SECONDS", 60))

    @cached_property
    def flush_seconds(self) -> float:
        """SOUVENIRS_FLUSH_SECONDS: how long visits are collected before they are written together,
        in seconds; 0 writes each visit in its request."""
        return float(getattr(settings, "SOUVENIRS_FLUSH_SECONDS", 0.5))

    @cached_property
    def last_seen_store(self) -> dict[str, Any]:
        """SOUVENIRS_LAST_SEEN_STORE: {"BACKEND": dotted path, ...}, like an entry of CACHES.
        `lastseen.get_store` builds the store from it."""
        return dict(getattr(settings, "SOUVENIRS_LAST_SEEN_STORE", DEFAULT_STORE))

    @cached_property
    def should_record(self) -> Callable[[HttpRequest, HttpResponseBase], bool] | None:
        """SOUVENIRS_SHOULD_RECORD: dotted path to (request, response) -> bool: whether the
        middleware may record the request's user. None: it records every user."""
        return imported("SOUVENIRS_SHOULD_RECORD")

    @cached_property
    def get_user(self) -> Callable[[HttpRequest, HttpResponseBase], Any] | None:
        """SOUVENIRS_GET_USER: dotted path to (request, response) -> the user who made the request.
        None: the middleware finds the user."""
        return imported("SOUVENIRS_GET_USER")

    @cached_property
    def has_get_user(self) -> bool:
        """Whether SOUVENIRS_GET_USER is set, even to a path that cannot be imported."""
        return getattr(settings, "SOUVENIRS_GET_USER", None) is not None

    @cached_property
    def scope(self) -> Callable[[], Hashable] | None:
        """SOUVENIRS_SCOPE: dotted path to () -> str, which returns whose data the current request
        is about. None: that does not depend on the request, or django-tenants decides it.
        `scopes.current` calls it."""
        return imported("SOUVENIRS_SCOPE")

    @cached_property
    def usage_reports_function(
        self,
    ) -> Callable[[list[tuple[datetime, datetime]]], Iterable[dict[str, Any]]] | None:
        """SOUVENIRS_USAGE_REPORTS_FUNCTION: dotted path to a function that the reports call instead
        of reports.usage_for_periods. None: they call usage_for_periods."""
        return imported("SOUVENIRS_USAGE_REPORTS_FUNCTION")

    @cached_property
    def zone(self) -> ZoneInfo:
        """TIME_ZONE: the zone of the site's days. Never the zone activated for a request."""
        return ZoneInfo(settings.TIME_ZONE)


conf = Settings()
setting_changed.connect(conf._on_setting_changed)
