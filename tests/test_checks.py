from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings

import souvenirs
from souvenirs.checks import TAG
from souvenirs.middleware import SouvenirsMiddleware

ROOT = Path(souvenirs.__file__).parent.parent

BAD = [
    ("souvenirs.E001", "SOUVENIRS_RATELIMIT_SECONDS", -1),
    ("souvenirs.E001", "SOUVENIRS_RATELIMIT_SECONDS", "3600"),
    ("souvenirs.E001", "SOUVENIRS_RATELIMIT_SECONDS", True),
    ("souvenirs.E001", "SOUVENIRS_RATELIMIT_SECONDS", float("inf")),
    ("souvenirs.E001", "SOUVENIRS_RATELIMIT_SECONDS", float("nan")),
    ("souvenirs.E002", "SOUVENIRS_CACHE_NAME", "nowhere"),
    ("souvenirs.E002", "SOUVENIRS_CACHE_NAME", ["default"]),
    ("souvenirs.E003", "SOUVENIRS_CACHE_PREFIX", 7),
    ("souvenirs.E003", "SOUVENIRS_CACHE_PREFIX", "with space"),
    ("souvenirs.E004", "SOUVENIRS_LAST_SEEN_SECONDS", 0),
    ("souvenirs.E004", "SOUVENIRS_LAST_SEEN_SECONDS", 3601),
    ("souvenirs.E004", "SOUVENIRS_LAST_SEEN_SECONDS", 60.5),
    ("souvenirs.E012", "SOUVENIRS_FLUSH_SECONDS", -0.5),
    ("souvenirs.E012", "SOUVENIRS_FLUSH_SECONDS", 61),
    ("souvenirs.E012", "SOUVENIRS_FLUSH_SECONDS", "0.5"),
    ("souvenirs.E005", "SOUVENIRS_LAST_SEEN_STORE", {"BACKEND": "souvenirs.nowhere.Store"}),
    ("souvenirs.E005", "SOUVENIRS_LAST_SEEN_STORE", {"BACKEND": "datetime.datetime"}),
    ("souvenirs.E005", "SOUVENIRS_LAST_SEEN_STORE", {}),
    ("souvenirs.E006", "SOUVENIRS_SHOULD_RECORD", "nowhere.hook"),
    ("souvenirs.E006", "SOUVENIRS_SHOULD_RECORD", "souvenirs.__version__"),
    ("souvenirs.E006", "SOUVENIRS_SHOULD_RECORD", 7),
    ("souvenirs.E006", "SOUVENIRS_SHOULD_RECORD", "souvenirs.control.asouvenez"),
    ("souvenirs.E007", "SOUVENIRS_USAGE_REPORTS_FUNCTION", "nowhere.report"),
    ("souvenirs.E007", "SOUVENIRS_USAGE_REPORTS_FUNCTION", "souvenirs.__version__"),
    ("souvenirs.E007", "SOUVENIRS_USAGE_REPORTS_FUNCTION", 7),
    (
        "souvenirs.E005",
        "SOUVENIRS_LAST_SEEN_STORE",
        {"BACKEND": "souvenirs.lastseen.database.DatabaseStore", "LOCATION": "redis://"},
    ),
]


@pytest.mark.parametrize(("check_id", "name", "value"), BAD)
def test_check__names_the_bad_value_and_the_remedy(check_id: str, name: str, value: Any) -> None:
    with override_settings(**{name: value}), pytest.raises(SystemCheckError) as caught:
        call_command("check")
    message = str(caught.value)
    shown = repr(value).replace("'redis://'", "'...'")  # its value might contain a password
    assert f"({check_id}) {name} " in message
    assert shown in message
    assert "HINT: Set it to" in message


def test_check__warns_of_a_limit_above_an_hour(capsys: pytest.CaptureFixture[str]) -> None:
    with override_settings(SOUVENIRS_RATELIMIT_SECONDS=7200):
        call_command("check")
    assert "(souvenirs.W001) SOUVENIRS_RATELIMIT_SECONDS is 7200" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0, 3600, 0.5])
def test_check__accepts_a_limit(value: float, capsys: pytest.CaptureFixture[str]) -> None:
    with override_settings(SOUVENIRS_RATELIMIT_SECONDS=value):
        call_command("check")
    assert capsys.readouterr().err == ""


def test_ids_are_unique() -> None:
    ids = []
    for app in ["souvenirs", "souvenirs_metrics"]:
        for path in (ROOT / app).rglob("*.py"):
            for function in re.split(r"\n *def ", path.read_text())[1:]:
                ids += set(re.findall(r'id="(souvenirs.+?)"', function))
    assert len(ids) == len(set(ids)) > 5


class OwnMiddleware(SouvenirsMiddleware):
    """A site's subclass."""


OURS = "souvenirs.middleware.SouvenirsMiddleware"


@pytest.mark.parametrize(
    ("middleware", "is_forgotten"),
    [
        ([OURS], False),
        (["tests.test_checks.OwnMiddleware"], False),
        (["django.middleware.common.CommonMiddleware"], True),
        ([], True),
        (["nowhere.Middleware"], True),
        (["nowhere.Middleware", OURS], False),
    ],
)
def test_middleware__missing(middleware: list[str], is_forgotten: bool) -> None:
    with override_settings(MIDDLEWARE=middleware):
        found = [message for message in run_checks() if message.id == "souvenirs.W004"]
        assert len(found) == is_forgotten
        # Running our commands, for example from cron, does not repeat the warning each time
        assert not [m for m in run_checks(tags=[TAG]) if m.id == "souvenirs.W004"]
