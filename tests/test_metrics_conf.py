from __future__ import annotations

from typing import Any

import pytest
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from souvenirs.models import Souvenir
from souvenirs_metrics.conf import conf, parse_duration
from tests.people import User


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("30m", 30 * 60),
        ("2h", 2 * 3600),
        ("1h30m", 5400),
        ("90m", 5400),
        ("1d", 86_400),
        ("7d", 604_800),
        ("1w", 604_800),
        ("1y", 365 * 86_400),
        ("1y2w3d4h5m6s", ((365 + 14 + 3) * 24 + 4) * 3600 + 5 * 60 + 6),
        ("007d", 604_800),
        ("0d1h", 3600),
        ("292y", 292 * 365 * 86_400),
    ],
)
def test_parse_duration__accepts(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "", "0", "0s", "0d0h", "1", "h", "1 h", " 1h", "1h ", "1h\n", "-1h", "+1h", "1.5h", "1H",
        "30m1h", "1h1h", "1day", "100ms", "\u0661h", "293y", "9" * 30 + "y", "9" * 5000 + "s",
        3600, 1.5, None, b"1h", ["1h"], True,
    ],
)  # fmt: skip
def test_parse_duration__refuses(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_duration(value)


@pytest.mark.parametrize("value", ["soon", 3600])
def test_parse_duration__names_the_bad_value(value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{value!r} is no duration; write it like '30m'"):
        parse_duration(value)


@given(st.text(alphabet="0123456789ywdhms .-", max_size=12))
def test_parse_duration__gives_positive_seconds_or_raises_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert seconds > 0
    assert text.isalnum()


def test_conf__defaults() -> None:
    assert conf.windows == {"1h": 3600, "1d": 86_400, "7d": 604_800, "30d": 2_592_000}
    assert conf.register is False
    assert conf.database(User) == "default"


def test_conf__windows_keep_their_order_and_spelling() -> None:
    with override_settings(SOUVENIRS_METRICS_WINDOWS=["7d", "60m", "1h"]):
        assert list(conf.windows.items()) == [("7d", 604_800), ("60m", 3600), ("1h", 3600)]


def test_conf__is_read_anew_after_a_change() -> None:
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
