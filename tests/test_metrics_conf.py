from __future__ import annotations

from django.test import override_settings

from souvenirs.models import Souvenir
from souvenirs_metrics.conf import conf
from tests.people import User


def test_conf__defaults() -> None:
    assert conf.windows == {"1h": 3600, "1d": 86_400, "7d": 604_800, "30d": 2_592_000}
    assert conf.register is False
    assert conf.database(User) == "default"


def test_conf__windows_keep_their_order_and_spelling() -> None:
    with override_settings(SOUVENIRS_METRICS_WINDOWS=["7d", "60m", "1h"]):
        assert list(conf.windows.items()) == [("7d", 604_800), ("60m", 3600), ("1h", 3600)]


def test_conf__is_read_again_after_a_change() -> None:
    assert "2h" not in conf.windows
    with override_settings(
        SOUVENIRS_METRICS_WINDOWS=["2h"],
        SOUVENIRS_METRICS_DATABASE="replica",
        SOUVENIRS_METRICS_REGISTER=True,
    ):
        assert conf.windows == {"2h": 7200}
        assert conf.database(Souvenir) == "replica"
        assert conf.register is True
    assert "2h" not in conf.windows
    assert conf.database(User) == "default"
    assert conf.register is False
