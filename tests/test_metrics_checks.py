from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings

from tests.conftest import site_environ

BAD = [
    ("souvenirs_metrics.E001", "SOUVENIRS_METRICS_WINDOWS", "1h", "'1h'"),
    ("souvenirs_metrics.E001", "SOUVENIRS_METRICS_WINDOWS", None, "None"),
    ("souvenirs_metrics.E001", "SOUVENIRS_METRICS_WINDOWS", ["1h", "soon"], "'soon'"),
    ("souvenirs_metrics.E001", "SOUVENIRS_METRICS_WINDOWS", [3600], "3600"),
    ("souvenirs_metrics.E001", "SOUVENIRS_METRICS_WINDOWS", ["0s"], "'0s'"),
    ("souvenirs_metrics.E001", "SOUVENIRS_METRICS_WINDOWS", ["999y"], "'999y'"),
    ("souvenirs_metrics.E002", "SOUVENIRS_METRICS_DATABASE", "nowhere", "'nowhere'"),
    ("souvenirs_metrics.E002", "SOUVENIRS_METRICS_DATABASE", ["default"], "['default']"),
    ("souvenirs_metrics.E003", "SOUVENIRS_METRICS_REGISTER", "False", "'False'"),
    ("souvenirs_metrics.E003", "SOUVENIRS_METRICS_REGISTER", 1, "1"),
    ("souvenirs_metrics.E005", "SOUVENIRS_METRICS_TOKEN", "", "must be a token"),
    ("souvenirs_metrics.E005", "SOUVENIRS_METRICS_TOKEN", [], "must be a token"),
    ("souvenirs_metrics.E005", "SOUVENIRS_METRICS_TOKEN", ["a", ""], "must be a token"),
    ("souvenirs_metrics.E005", "SOUVENIRS_METRICS_TOKEN", "a b", "must be a token"),
    ("souvenirs_metrics.E005", "SOUVENIRS_METRICS_TOKEN", "\u00fc", "must be a token"),
    ("souvenirs_metrics.E005", "SOUVENIRS_METRICS_TOKEN", 12345, "must be a token"),
    ("souvenirs_metrics.E006", "SOUVENIRS_METRICS_AUTHORIZE", "nowhere.at_all", "'nowhere.at_all'"),
    ("souvenirs_metrics.E006", "SOUVENIRS_METRICS_AUTHORIZE", "os.sep", "'os.sep'"),
    (
        "souvenirs_metrics.E006",
        "SOUVENIRS_METRICS_AUTHORIZE",
        "tests.test_access.deny_later",
        "async function",
    ),
    (
        "souvenirs_metrics.E006",
        "SOUVENIRS_METRICS_AUTHORIZE",
        "tests.test_access.DENIES_LATER",
        "async function",
    ),
    ("souvenirs_metrics.E007", "SOUVENIRS_METRICS_MAX_AGE_SECONDS", -1, "-1"),
    ("souvenirs_metrics.E007", "SOUVENIRS_METRICS_MAX_AGE_SECONDS", "15", "'15'"),
    ("souvenirs_metrics.E007", "SOUVENIRS_METRICS_MAX_AGE_SECONDS", float("nan"), "nan"),
    ("souvenirs_metrics.E007", "SOUVENIRS_METRICS_MAX_AGE_SECONDS", True, "True"),
    ("souvenirs_metrics.E006", "SOUVENIRS_METRICS_AUTHORIZE", len, "built-in function len"),
]
REMEDIES = {
    "souvenirs_metrics.E001": "Set it to a list of Prometheus durations, such as ['1h', '1d',",
    "souvenirs_metrics.E002": "Set it to one of 'default'",
    "souvenirs_metrics.E003": "Set it to True if another view serves",
    "souvenirs_metrics.E004": "Create it, empty, before the site starts, or unset the variable.",
    "souvenirs_metrics.E005": "Set it to a string of visible ASCII characters",
    "souvenirs_metrics.E007": "Set it to 0, or to somewhat less than your scrape interval",
    "souvenirs_metrics.E006": "Set it to the dotted path of a function (request) -> bool",
}


def ours() -> list[CheckMessage]:
    """What the registered checks report about this app."""
    return [
        message
        for message in run_checks()
        if str(message.id).startswith("souvenirs_metrics.") and not message.is_silenced()
    ]


def complaint() -> str:
    with pytest.raises(SystemCheckError) as caught:
        call_command("check")
    return str(caught.value)


@pytest.mark.parametrize(("check_id", "name", "value", "shown"), BAD)
def test_check__names_the_bad_value_and_the_remedy(
    check_id: str, name: str, value: Any, shown: str
) -> None:
    with override_settings(**{name: value}):
        message = complaint()
    assert f"({check_id}) {name}" in message
    assert shown in message
    assert f"HINT: {REMEDIES[check_id]}" in message
    assert message.count("(souvenirs_metrics.") == 1


def test_check__names_every_bad_window() -> None:
    with override_settings(SOUVENIRS_METRICS_WINDOWS=["soon", "1h", "later"]):
        message = complaint()
    assert "SOUVENIRS_METRICS_WINDOWS: 'soon' is" in message
    assert "SOUVENIRS_METRICS_WINDOWS: 'later' is" in message
    assert message.count("(souvenirs_metrics.") == 2


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"SOUVENIRS_METRICS_WINDOWS": ("30m", "1h30m")},
        {"SOUVENIRS_METRICS_WINDOWS": []},
        {"SOUVENIRS_METRICS_DATABASE": "default"},
        {"SOUVENIRS_METRICS_REGISTER": True},
        {"SOUVENIRS_METRICS_MAX_AGE_SECONDS": 14.5},
        {"SOUVENIRS_METRICS_TOKEN": "of-1-kind~"},
        {"SOUVENIRS_METRICS_TOKEN": ["one", "two"]},
        {"SOUVENIRS_METRICS_AUTHORIZE": "tests.test_access.from_inside"},
    ],
)
def test_check__is_silent_about(good: dict[str, Any]) -> None:
    with override_settings(**good):
        assert ours() == []


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_check__multiprocess_directory_missing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    value = "" if kind == "empty" else str(tmp_path / kind)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", value)
    message = complaint()
    assert "(souvenirs_metrics.E004) PROMETHEUS_MULTIPROC_DIR must be" in message
    assert f"not {value!r}." in message
    assert f"HINT: {REMEDIES['souvenirs_metrics.E004']}" in message


def test_check__multiprocess_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert ours() == []


def test_check__shows_no_token() -> None:
    with override_settings(SOUVENIRS_METRICS_TOKEN=["a secret"]):
        assert "a secret" not in complaint()


def test_check__a_token_next_to_a_function_has_no_effect() -> None:
    with override_settings(
        SOUVENIRS_METRICS_TOKEN="one", SOUVENIRS_METRICS_AUTHORIZE="tests.test_access.from_inside"
    ):
        assert "(souvenirs_metrics.E006) SOUVENIRS_METRICS_TOKEN is ignored" in complaint()


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, True),
        ({"DEBUG": True}, False),
        ({"SOUVENIRS_METRICS_TOKEN": "one"}, False),
        ({"SOUVENIRS_METRICS_AUTHORIZE": "tests.test_access.from_inside"}, False),
        ({"ROOT_URLCONF": "tests.test_recipes"}, False),  # it does not serve the page
    ],
)
def test_check__warns_of_an_open_endpoint(changes: dict[str, Any], warned: bool) -> None:
    with override_settings(SILENCED_SYSTEM_CHECKS=[], **changes):
        messages = [(message.id, message.msg) for message in ours()]
    expected = (
        "Anyone who can reach the site can read how many users it has, at /metrics and"
        " /souvenirs/usage.json."
    )
    assert messages == ([("souvenirs_metrics.W001", expected)] if warned else [])


COMMANDS = [
    ["souvenirs_exporter", "--once"], ["souvenirs_history"], ["rollup_souvenirs"],
    ["prune_souvenirs", "--older-than=90d"], ["backfill_souvenirs", "--from-last-login"],
    ["show_usage", "--calendar"],
]  # fmt: skip


@pytest.mark.own_site
def test_commands__do_not_check_the_sites_page_but_our_settings(
    run_site: Callable[..., str], tmp_path: Path
) -> None:
    """They run from cron, which mails their output."""
    run_site("souvenez(django.contrib.auth.get_user_model().objects.create(username='ada'))")
    for command, *args in COMMANDS:
        run = [sys.executable, "-W", "error", "-m", "django", command, *args]
        environ = site_environ(tmp_path)
        done = subprocess.run(run, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert "souvenirs_metrics.W001" not in done.stderr, command
        environ["PROMETHEUS_MULTIPROC_DIR"] = "nowhere"
        done = subprocess.run(run, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert "souvenirs_metrics.E004" in done.stderr, command
