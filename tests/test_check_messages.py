"""Whatever the value of a setting, its check explains what is wrong in its own words, not in
Python's."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core.checks import run_checks
from django.test import override_settings

SETTINGS = [
    "SOUVENIRS_RATELIMIT_SECONDS", "SOUVENIRS_CACHE_NAME", "SOUVENIRS_CACHE_PREFIX",
    "SOUVENIRS_LAST_SEEN_SECONDS", "SOUVENIRS_LAST_SEEN_STORE", "SOUVENIRS_SHOULD_RECORD",
    "SOUVENIRS_USAGE_REPORTS_FUNCTION", "SOUVENIRS_METRICS_WINDOWS", "SOUVENIRS_METRICS_DATABASE",
    "SOUVENIRS_METRICS_MAX_AGE_SECONDS", "SOUVENIRS_METRICS_TOKEN", "SOUVENIRS_METRICS_AUTHORIZE",
    "SOUVENIRS_METRICS_REGISTER", "SOUVENIRS_ENABLED",
    "SOUVENIRS_GET_USER", "SOUVENIRS_FLUSH_SECONDS",
]  # fmt: skip
ODD = [
    0, -1, 1.5, 10**30, float("nan"), True, 1j, "", ".", "\n", "\u00fc", "a b", "1h", "nonsense",
    "a.b", "os.path", "os.environ", "souvenirs.conf", "tests.settings.", b"x", (), [], [[]], ["x"],
    [None], ["1h", ["7d"]], {}, {"a": 1}, {1: "a"}, {"x"}, set(), range(3), int, len, object(),
]  # fmt: skip
REDIS = {"BACKEND": "souvenirs.lastseen.redis.RedisStore", "LOCATION": "redis://127.0.0.1:1"}
STORES = [
    *({"BACKEND": value} for value in [None, *ODD]),
    *(
        {**REDIS, name: value}
        for name in ["LOCATION", "OPTIONS", "KEY_PREFIX", "CLUSTER", "SENTINEL", "WITH_TABLE"]
        for value in [None, *ODD]
    ),
    *({**REDIS, "OPTIONS": {name: 1}} for name in ["nonsense", "retry", "host", 1, None]),
    *({**REDIS, "LOCATION": f"redis://h:1?{query}"} for query in ["nonsense=1", "db=x", "retry=1"]),
    {**REDIS, "NONSENSE": 1},
    {**REDIS, 1: 1},
    {"BACKEND": REDIS["BACKEND"]},
]
PYTHONS = re.compile(
    r"object has no|has no attribute|is not iterable|is not a mapping|unhashable|argument|keywords"
    r"|update sequence|must be (str|int|real|a mapping|an iterable)|subclass"
    r"|[A-Za-z]+(Error|Exception)\b"
)


def messages(name: str, value: Any) -> list[str]:
    with override_settings(**{name: value}):
        found = [message for message in run_checks() if name in message.msg]
    return [text for message in found for text in (message.msg, message.hint or "")]


@pytest.mark.parametrize("name", SETTINGS)
def test_check__does_not_quote_python_errors(name: str) -> None:
    for value in [*ODD, *(STORES if name == "SOUVENIRS_LAST_SEEN_STORE" else [])]:
        for text in messages(name, value):
            said = text.replace(repr(value), "").replace(str(value) or " ", " ")
            assert not PYTHONS.search(said), text
            assert re.search(r"[^.\s]\.$", text), text


def test_check__names_the_unknown_option() -> None:
    store = {**REDIS, "OPTIONS": {"nonsense": 1}}
    said, _ = messages("SOUVENIRS_LAST_SEEN_STORE", store)
    assert said.endswith("'nonsense' is an unknown parameter.")
    said, _ = messages("SOUVENIRS_SHOULD_RECORD", 7)
    assert said == "SOUVENIRS_SHOULD_RECORD is 7, which is not a dotted path."
