"""What all commands share: options from Python, and databases before `migrate`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import time_machine
from django.conf import settings
from django.core.management import CommandError, call_command

from souvenirs.control import souvenez
from souvenirs.models import Souvenir
from tests.conftest import SETTINGS, site_environ
from tests.people import User, ours, site, with_databases

pytestmark = with_databases

NOW = datetime(2024, 5, 15, 12)

COMMANDS = [
    ["show_usage", "--calendar"],
    ["show_usage", "--subscription-start=2024-01-01"],
    ["rollup_souvenirs"],
    ["rollup_souvenirs", "--repair"],
    ["prune_souvenirs", "--older-than=90d"],
    ["prune_souvenirs", "--older-than=90d", "--dry-run"],
    ["list_inactive_users", "--older-than=90d"],
    ["backfill_souvenirs", "activity.csv"],
    ["backfill_souvenirs", "--from-last-login"],
    ["souvenirs_history"],
    ["souvenirs_exporter", "--once"],
    ["souvenirs_exporter", "127.0.0.1:0"],
]


# Before migrate


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Manage = Callable[..., list[Done]]

# Like manage.py, but for several commands in one process
MANAGE = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from django.core.management import execute_from_command_line

for args in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            execute_from_command_line(["manage.py", *args])
        except SystemExit as error:
            code = error.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture
def manage(tmp_path: Path, worker_id: str) -> Iterator[Manage]:
    """`manage(["show_usage", ...], ...)` runs commands of a site with an empty database."""
    entry = {**ours().settings_dict, "TEST": {}, "TIME_ZONE": None}
    name = f"unmigrated_{worker_id}"
    is_file = ours().vendor == "sqlite"
    if is_file:
        entry["NAME"] = str(tmp_path / "site.sqlite3")
    else:
        with ours().cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        entry["NAME"] = name
    (tmp_path / "site_settings.py").write_text(f"{SETTINGS}\nDATABASES = {{'default': {entry!r}}}")
    (tmp_path / "activity.csv").write_text("user,when\n1,2024-01-01\n")

    def run(*commands: list[str]) -> list[Done]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", MANAGE, json.dumps(commands)],
            cwd=tmp_path,
            env=site_environ(tmp_path),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return [Done(*json.loads(line)) for line in done.stdout.splitlines()]

    yield run
    if not is_file:
        with ours().cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name}")


def problems(manage: Manage, message: str, commands: Sequence[list[str]] = COMMANDS) -> list[Any]:
    """The commands that do not fail with exactly this line."""
    done = zip(commands, manage(*commands), strict=True)
    return [(args, *each) for args, each in done if each != (1, "", message)]


@pytest.mark.slow
@pytest.mark.where(not settings.SHAPE)
def test_before_migrate__every_command_says_so_in_one_line(manage: Manage, tmp_path: Path) -> None:
    message = (
        "CommandError: The tables of souvenirs are missing or out of date ({} not applied): run"
        " python manage.py migrate\n"
    )
    migrations = len(list((Path("souvenirs") / "migrations").glob("0*.py")))
    assert problems(manage, message.format(f"{migrations} migrations are")) == []
    [done] = manage(["souvenirs_dashboards", "grafana"])
    assert done.returncode == 0  # it needs no database
    # The tables of version 1.0.2 exist there
    [done] = manage(["migrate", "souvenirs", "0001"])
    assert done.returncode == 0, done.stderr
    assert problems(manage, message.format(f"{migrations - 1} migrations are"), COMMANDS[:2]) == []
    [done] = manage(["migrate"])
    assert done.returncode == 0, done.stderr
    commands = [args for args in COMMANDS[:-1] if "csv" not in args[-1]]
    codes = {args[0]: each.returncode for args, each in zip(commands, manage(*commands))}
    for name in ("souvenirs_history", "list_inactive_users"):
        assert codes.pop(name) == 1  # there are no souvenirs
    assert set(codes.values()) == {0}


# Options from Python


def call(name: str, *args: Any, **options: Any) -> str:
    out = io.StringIO()
    call_command(name, *args, stdout=out, **options)
    return out.getvalue()


@pytest.fixture
def old_souvenir() -> Iterator[None]:
    with time_machine.travel(site(NOW), tick=False):
        ana = User.objects.create(username="ana")
        souvenez(ana, when=site(NOW - timedelta(days=100)))
        souvenez(ana, when=site(NOW - timedelta(days=10)))
        yield


@pytest.mark.parametrize("age", ["90d", timedelta(days=90), 90 * 86_400])
def test_call_command__prune_souvenirs(old_souvenir: None, age: Any) -> None:
    call("prune_souvenirs", older_than=age)
    assert Souvenir.objects.count() == 1


@pytest.mark.parametrize("age", ["90", 0, -1, 0.5, float("inf"), float("nan"), True, timedelta.max])
def test_call_command__prune_souvenirs_with_an_invalid_age(old_souvenir: None, age: Any) -> None:
    with pytest.raises(CommandError, match=r"argument --older-than: .* is not a duration"):
        call("prune_souvenirs", older_than=age)
    assert Souvenir.objects.count() == 2


@pytest.mark.parametrize("length", ["daily", "weekly", "monthly", "quarterly", "yearly"])
def test_call_command__show_usage(old_souvenir: None, length: str) -> None:
    as_typed = call("show_usage", "--calendar", f"--{length}", "--recent=3", "--format=json")
    options: Any = {length: True}
    assert call("show_usage", calendar=True, recent=3, format="json", **options) == as_typed
    assert call("show_usage", calendar=True, recent="3", format="json", **options) == as_typed


@pytest.mark.parametrize("when", ["2024-05-01", date(2024, 5, 1), datetime(2024, 5, 1)])
def test_call_command__show_usage_from_a_date(old_souvenir: None, when: Any) -> None:
    rows = json.loads(call("show_usage", calendar=True, daily=True, after=when, format="json"))
    assert [rows[-1]["date"], len(rows)] == ["2024-05-01", 15]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "xml"}, "argument --format: invalid choice: 'xml' (choose from 'table',"),
        ({"recent": "many"}, "argument --recent: invalid int value: 'many'"),
        ({"weekly": True, "daily": True}, "argument --weekly: not allowed with argument --daily"),
        ({"csv": True, "plot": True}, "argument --plot: not allowed with argument --csv"),
        ({"after": 5}, "--after is 5, which cannot be read as a date"),
    ],
)
def test_call_command__show_usage_refuses_the_same_as_the_command_line(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CommandError) as caught:
        call("show_usage", calendar=True, **options)
    assert message in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "step"),
    [
        (["job=x"], "1d"),
        ("job=x", 86_400),
        ({"job": "x"}, timedelta(days=1)),
        ([("job", "x")], "1d"),
    ],
)
def test_call_command__souvenirs_history(old_souvenir: None, label: Any, step: Any) -> None:
    as_typed = call("souvenirs_history", "--label=job=x", "--step=1d")
    assert 'souvenirs_active_users{job="x",window="1h"}' in as_typed
    assert call("souvenirs_history", label=label, step=step) == as_typed


def test_call_command__souvenirs_history_refuses_a_label_without_a_name(old_souvenir: None) -> None:
    with pytest.raises(CommandError, match=r"--label: must be name=value, .* not 'x'"):
        call("souvenirs_history", label=["x"])


@pytest.mark.parametrize("as_file", [str, Path])
def test_call_command__backfill_souvenirs(tmp_path: Path, as_file: Callable[[Any], Any]) -> None:
    User.objects.create(username="ana")
    (tmp_path / "a.csv").write_text("username,when\nana,2024-05-01\n")
    out = call("backfill_souvenirs", file=as_file(tmp_path / "a.csv"), dry_run=True)
    assert out.startswith("Read 1 line.\nWould add 1 souvenir, ")
    assert call("backfill_souvenirs", as_file(tmp_path / "a.csv"), dry_run=True) == out
    with pytest.raises(CommandError, match="not allowed with argument"):
        call("backfill_souvenirs", file=as_file(tmp_path / "a.csv"), from_last_login=True)


def test_call_command__souvenirs_exporter() -> None:
    assert "souvenirs_up 1.0" in call("souvenirs_exporter", once=True)
    with pytest.raises(CommandError, match=r"must be \[address:\]port, .* not 'nowhere'"):
        call("souvenirs_exporter", address="nowhere")


def test_call_command__souvenirs_dashboards(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"--datasource-url: must be .* not 'nowhere'"):
        call("souvenirs_dashboards", tmp_path, datasource_url="nowhere")
    call("souvenirs_dashboards", tmp_path, datasource_url="https://prometheus.example.org")


# Dates at their limits


@pytest.mark.slow
@pytest.mark.parametrize("length", ["daily", "monthly", "yearly"])
@pytest.mark.parametrize("text", ["0001-01-01", "9999-12-31", "9999-12-31T23:59-12:00", "infinity"])
@pytest.mark.parametrize("name", ["after", "before", "subscription_start"])
def test_date_limits__show_usage(old_souvenir: None, name: str, text: str, length: str) -> None:
    options: Any = {length: True, name: text, "calendar": name != "subscription_start"}
    if (name, text) == ("before", "0001-01-01"):
        assert len(call("show_usage", **options).splitlines()) == 2  # no periods
        return
    if (name, text) == ("before", "9999-12-31"):  # the same as now
        assert call("show_usage", **options) == call("show_usage", **{**options, name: None})
        return
    with pytest.raises(CommandError) as caught:
        call("show_usage", **options)
    expected = ("which cannot be read", "years 1 to 9999 in every zone", "at most 100,000 periods")
    assert any(each in str(caught.value) for each in expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["start", "end"])
@pytest.mark.parametrize("text", ["0001-01-01", "9999-12-31"])
def test_date_limits__souvenirs_history(old_souvenir: None, name: str, text: str) -> None:
    options: Any = {name: text, "step": "1d"}
    if (name, text) in (("start", "0001-01-01"), ("end", "9999-12-31")):
        assert "souvenirs_active_users" in call("souvenirs_history", **options)
        return
    with pytest.raises(CommandError, match="There is no instant to write"):
        call("souvenirs_history", **options)


def test_date_limits__durations(old_souvenir: None) -> None:
    assert (
        call("prune_souvenirs", older_than="292y")
        == "Nothing to do: there are no souvenirs that old.\n"
    )
    for text in ("293y", "9" * 5_000 + "d"):
        with pytest.raises(CommandError, match="is not a duration"):
            call("prune_souvenirs", older_than=text)
