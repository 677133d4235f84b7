"""The commands' progress bars on a terminal."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import OutputWrapper

from souvenirs.control import souvenez
from souvenirs.management import progress
from tests.history import DAY, Terminal, at, people, to_when, unix
from tests.people import User, with_databases

pytestmark = with_databases

T = unix(2024, 5, 14, 22)  # Paris: midnight of the 15th
NOW = T + 3 * DAY + DAY / 3


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The output of a command to stderr, a terminal with colours, while the clock stands still."""
    user = people(1)[0]
    User.objects.update(last_login=to_when(T))
    with at(NOW):
        for day in range(3):
            souvenez(user, when=to_when(T + day * DAY + 60))
    lines = "".join(f"{user.pk},{T + hour * 3600}\n" for hour in range(9))
    (tmp_path / "a.csv").write_text(f"user,when\nnobody,{T}\n{lines}")

    def run(name: str, *args: str) -> str:
        terminal = Terminal()
        folder = "souvenirs_metrics" if name == "souvenirs_history" else "souvenirs"
        module: Any = import_module(f"{folder}.management.commands.{name}")
        command = module.Command(stdout=io.StringIO(), stderr=terminal, force_color=True)
        stdin = SimpleNamespace(buffer=(tmp_path / "a.csv").open("rb"))
        monkeypatch.setattr(sys, "stdin", stdin)
        with at(NOW), stdin.buffer:
            call_command(command, *(arg.format(tmp_path) for arg in args))
        return terminal.getvalue()

    return run


COMMANDS = [
    (["rollup_souvenirs", "--repair"], "rolling up: 100%|", "| 3/3 days ["),
    (["prune_souvenirs", "--older-than=1d"], "pruning: 100%|", "| 3/3 souvenirs ["),
    (["backfill_souvenirs", "--from-last-login"], "", "1 users ["),
    (["backfill_souvenirs", "-", "--format=csv"], "", "11 lines ["),
    (["backfill_souvenirs", "{}/a.csv"], "100%|", "B"),
    (["souvenirs_history", "--end=now"], "reading: 100%|", "| 4/4 days ["),
]
each_command = pytest.mark.parametrize(
    ("command", "begin", "end"), COMMANDS, ids=[" ".join(command) for command, *_ in COMMANDS]
)


@each_command
def test_progress__is_a_plain_line_with_whole_numbers(
    run: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    begin: str,
    end: str,
) -> None:
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0)
    text = run(*command)
    states = [state for state in re.split(r"[\r\n]", text) if "[00:00" in state]
    assert begin in states[-1]
    assert end in states[-1]
    if end != "B":
        assert not any(re.search(r"\d\.\d", state) for state in states)
    assert not re.search(r"\[00:00[^\r\n]*\x1b\[", text)  # a coloured state
    # finished bars
    assert len(re.findall(r"\[00:00[^\r\n]*\n", text)) == (2 if "repair" in text else 1)


@each_command
def test_progress__is_not_shown_in_the_first_second(
    run: Callable[..., str], command: list[str], begin: str, end: str
) -> None:
    assert "[00:00" not in run(*command)


@pytest.mark.parametrize("delay", [0, 1])
def test_progress__is_cleared_for_other_lines(monkeypatch: pytest.MonkeyPatch, delay: int) -> None:
    monkeypatch.setattr(progress, "DELAY_SECONDS", delay)
    stderr = OutputWrapper(Terminal())
    with at(NOW), progress.Progress(stderr, total=2, unit="days") as bar:
        bar.update(1)
        with progress.interrupted(stderr):
            stderr.write("a line")
    before, after = stderr.getvalue().split("a line\n")
    assert re.search(r"\r *\r$", before)
    assert ("0/2" in before, "1/2" in after) == ((True, True) if delay == 0 else (False, False))


def test_progress__is_shown_on_terminals_only(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0)
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    with at(NOW):
        call_command("rollup_souvenirs", stdout=io.StringIO())
    assert errors.getvalue() == ""
