"""The settings of souvenirs: one typed property each, read once and again after a change."""

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
    """What the dotted path in this setting names; None if the setting is not there."""
    path = getattr(settings, name, None)
    return None if path is None else import_string(path)


class CachedSettings:
    """Base of the apps' settings: properties are computed once, `reset` forgets them.

    Reading django.conf.settings on each request would cost more than the rate limit itself.
    """

    def reset(self) -> None:
        self.__dict__.clear()

    def _on_setting_changed(self, **kwargs: Any) -> None:
        self.reset()


class Settings(CachedSettings):
    @cached_property
    def ratelimit_seconds(self) -> float:
        """SOUVENIRS_RATELIMIT_SECONDS: how often a user is recorded, in seconds; 0 is no limit."""
        return float(getattr(settings, "SOUVENIRS_RATELIMIT_SECONDS", 3600))

    @cached_property
    def enabled(self) -> bool:
        """SOUVENIRS_ENABLED: whether anybody is recorded. False in the tests of a site."""
        return bool(getattr(settings, "SOUVENIRS_ENABLED", True))

    @cached_property
    def cache_name(self) -> str:
        """SOUVENIRS_CACHE_NAME: alias in CACHES of the cache that processes share the limit in."""
        return str(getattr(settings, "SOUVENIRS_CACHE_NAME", "default"))

    @cached_property
    def cache_prefix(self) -> str:
        """SOUVENIRS_CACHE_PREFIX: what the keys in that cache begin with."""
        return str(getattr(settings, "SOUVENIRS_CACHE_PREFIX", self.site_prefix))

    @cached_property
    def site_prefix(self) -> str:
        """What keys begin with by default: "souvenirs.", and a digest that tells this site from
        others in the same cache or Redis.

        It is of SECRET_KEY, which the processes of a site share, whatever address they reach their
        database by, and which staging and production do not.
        """
        return f"souvenirs.{salted_hmac('souvenirs', 'site', algorithm='sha256').hexdigest()[:12]}."

    @cached_property
    def last_seen_seconds(self) -> int:
        """SOUVENIRS_LAST_SEEN_SECONDS: the resolution of last-seen times, in seconds."""
        return int(getattr(settings, "SOUVENIRS_LAST_SEEN_SECONDS", 60))

    @cached_property
    def flush_seconds(self) -> float:
        """SOUVENIRS_FLUSH_SECONDS: how long visits wait for others, to be written with them, in
        seconds; 0 writes each in its request."""
        return float(getattr(settings, "SOUVENIRS_FLUSH_SECONDS", 0.5))

    @cached_property
    def last_seen_store(self) -> dict[str, Any]:
        """SOUVENIRS_LAST_SEEN_STORE: {"BACKEND": dotted path, ...}, in the manner of CACHES.
        `lastseen.get_store` makes the store of it."""
        return dict(getattr(settings, "SOUVENIRS_LAST_SEEN_STORE", DEFAULT_STORE))

    @cached_property
    def should_record(self) -> Callable[[HttpRequest, HttpResponseBase], bool] | None:
        """SOUVENIRS_SHOULD_RECORD: dotted path to (request, response) -> bool, which says whether
        the middleware may record the request's user. None: all are."""
        return imported("SOUVENIRS_SHOULD_RECORD")

    @cached_property
    def get_user(self) -> Callable[[HttpRequest, HttpResponseBase], Any] | None:
        """SOUVENIRS_GET_USER: dotted path to (request, response) -> the user whose request it is;
        None leaves that to the middleware."""
        return imported("SOUVENIRS_GET_USER")

    @cached_property
    def has_get_user(self) -> bool:
        """Whether SOUVENIRS_GET_USER is set, be it to what cannot be imported."""
        return getattr(settings, "SOUVENIRS_GET_USER", None) is not None

    @cached_property
    def scope(self) -> Callable[[], Hashable] | None:
        """SOUVENIRS_SCOPE: dotted path to () -> str, which says whose data the present request is
        about. None: the routers and middleware of the site do not decide that by the request, or
        django-tenants does. `scopes.current` calls it."""
        return imported("SOUVENIRS_SCOPE")

    @cached_property
    def usage_reports_function(
        self,
    ) -> Callable[[list[tuple[datetime, datetime]]], Iterable[dict[str, Any]]] | None:
        """SOUVENIRS_USAGE_REPORTS_FUNCTION: dotted path to what the reports call in place of
        reports.usage_for_periods. None: that itself."""
        return imported("SOUVENIRS_USAGE_REPORTS_FUNCTION")

    @cached_property
    def zone(self) -> ZoneInfo:
        """TIME_ZONE: where the site's days begin. Never the zone activated for a request."""
        return ZoneInfo(settings.TIME_ZONE)


conf = Settings()
setting_changed.connect(conf._on_setting_changed)
