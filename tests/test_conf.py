from __future__ import annotations

from zoneinfo import ZoneInfo

from django.test import override_settings

from souvenirs.conf import conf
from souvenirs.lastseen import get_store
from souvenirs.lastseen.database import DatabaseStore


def test_defaults() -> None:
    assert conf.ratelimit_seconds == 3600
    assert conf.cache_name == "default"
    assert conf.cache_prefix == "souvenirs."
    assert conf.last_seen_seconds == 60
    assert isinstance(get_store(), DatabaseStore)


def test_settings_are_read_anew_after_a_change() -> None:
    with override_settings(SOUVENIRS_RATELIMIT_SECONDS=10, TIME_ZONE="Asia/Kolkata"):
        assert conf.ratelimit_seconds == 10
        assert conf.zone == ZoneInfo("Asia/Kolkata")
    assert conf.ratelimit_seconds == 3600
    assert conf.zone == ZoneInfo("Europe/Paris")


def test_settings_are_read_once() -> None:
    assert get_store() is get_store()
