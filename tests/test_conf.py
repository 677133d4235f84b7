from __future__ import annotations

import re
from zoneinfo import ZoneInfo

from django.test import override_settings

from souvenirs.conf import conf
from souvenirs.lastseen import get_store
from souvenirs.lastseen.clients import parse_params
from souvenirs.lastseen.database import DatabaseStore


def test_defaults() -> None:
    assert conf.ratelimit_seconds == 3600
    assert conf.cache_name == "default"
    assert conf.last_seen_seconds == 60
    assert isinstance(get_store(), DatabaseStore)


PREFIX = r"souvenirs\.[0-9a-f]{12}\."


def test_keys__differ_between_sites_that_share_a_cache_or_redis() -> None:
    with override_settings(SECRET_KEY="staging"):
        staging = conf.cache_prefix
        assert parse_params(LOCATION="redis://127.0.0.1")[1] == staging
        with override_settings(SOUVENIRS_CACHE_PREFIX="mine."):
            assert conf.cache_prefix == "mine."
        assert parse_params(LOCATION="redis://127.0.0.1", KEY_PREFIX="mine.")[1] == "mine."
    with override_settings(SECRET_KEY="production"):
        assert conf.cache_prefix != staging
        assert re.fullmatch(PREFIX, conf.cache_prefix)
    with override_settings(SECRET_KEY="staging", CACHES={}, SOUVENIRS_LAST_SEEN_SECONDS=30):
        # so that claims survive the upgrade to a new release, and other addresses
        assert conf.cache_prefix == staging


def test_settings_are_read_again_after_a_change() -> None:
    with override_settings(SOUVENIRS_RATELIMIT_SECONDS=10, TIME_ZONE="Asia/Kolkata"):
        assert conf.ratelimit_seconds == 10
        assert conf.zone == ZoneInfo("Asia/Kolkata")
    assert conf.ratelimit_seconds == 3600
    assert conf.zone == ZoneInfo("Europe/Paris")


def test_settings_are_read_once() -> None:
    assert get_store() is get_store()
