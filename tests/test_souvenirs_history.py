from __future__ import annotations

import io
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import requests
from django.core.management import CommandError, ManagementUtility, call_command
from django.test import override_settings
from django.utils.connection import ConnectionDoesNotExist
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from souvenirs.control import souvenez
from tests import servers
from tests.conftest import site_environ
from tests.history import DAY, HOUR, MINUTE, at, people, record, roll_up, to_when, unix
from tests.people import User, with_databases
from tests.test_dashboards import DECLARED, PANELS, PanelClient, days_shown, selectors

pytestmark = with_databases

T = unix(2024, 5, 14, 22)  # Paris: midnight of the 15th
NOW = T + 3 * DAY + 25 * MINUTE
FACTS = [(who, T + 600 + who * 7 * HOUR + n * 11 * HOUR) for who in range(3) for n in range(6)]


@pytest.fixture
def users() -> list[Any]:
    users = people(3)
    for who, t in FACTS:
        souvenez(users[who], when=to_when(t))
    return users


def run(*args: str) -> tuple[str, str]:
    """Run the command; return what it writes to stdout and to stderr."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with at(NOW):
        call_command("souvenirs_history", *args, stdout=stdout, stderr=stderr)
    return stdout.getvalue(), stderr.getvalue()


def refused(*args: str) -> str:
    with pytest.raises(CommandError) as caught:
        run(*args)
    return str(caught.value)


def samples(text: str) -> list[Any]:
    windows = text[: text.index("# HELP souvenirs_calendar")]
    [family] = text_string_to_metric_families(f"{windows}# EOF\n")
    return list(family.samples)


def instants(*args: str) -> list[int]:
    """The instants of the 1h window."""
    lines, _ = run(*args)
    found = [s.timestamp for s in samples(lines) if s.labels["window"] == "1h"]
    return [int(float(timestamp)) for timestamp in found]


def expected(seconds: int, instant: int) -> int:
    """The users of the window that ends at the last full hour."""
    end = instant // HOUR * HOUR
    return len({who for who, t in FACTS if end - seconds <= t < end})


def test_souvenirs_history__covers_the_first_record_until_four_hours_ago(users: list[Any]) -> None:
    lines, errors = run()
    assert errors == ""
    windows = {"1h": HOUR, "1d": DAY, "7d": 7 * DAY, "30d": 30 * DAY}
    values = {(s.labels["window"], int(float(s.timestamp))): s.value for s in samples(lines)}
    assert values == {
        (name, t): expected(seconds, t)
        for name, seconds in windows.items()
        for t in range(T, NOW - 4 * HOUR, 300)
        if FACTS[0][1] <= t // HOUR * HOUR - seconds
    }
    assert {name for name, _ in values} == {"1h", "1d"}


def test_souvenirs_history__takes_dates_in_the_sites_zone(users: list[Any]) -> None:
    found = instants("--start", "2024-05-16", "--end", "2024-05-16T01:00")
    assert found == list(range(T + DAY, T + DAY + HOUR, 300))
    found = instants("--start", "2024-05-15T23:00+01:00", "--end", "2024-05-15T23:00Z")
    assert found == list(range(T + DAY, T + DAY + HOUR, 300))


def test_souvenirs_history__aligns_instants_to_the_step(users: list[Any]) -> None:
    found = instants("--start", "2024-05-16 00:01", "--end", "2024-05-16 00:46", "--step", "15m")
    assert found == [T + DAY + n * 15 * MINUTE for n in (1, 2, 3)]


def test_souvenirs_history__ends_now_at_the_latest(users: list[Any]) -> None:
    assert instants("--start", "2024-05-18", "--end", "2030-01-01") == list(
        range(T + 3 * DAY, NOW, 300)
    )


def test_souvenirs_history__adds_labels(users: list[Any]) -> None:
    lines, _ = run("--label", "job=souvenirs", "--label", 'instance="a\\b",\nü=1')
    for sample in samples(lines):
        window = sample.labels["window"]
        assert sample.labels == {
            "job": "souvenirs",
            "instance": '"a\\b",\nü=1',
            "window": window,
        }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("job", "must be name=value, like job=souvenirs, not 'job'"),
        ("job=", "must be name=value, like job=souvenirs, not 'job='"),
        ("=a", "must be name=value, like job=souvenirs, not '=a'"),
        ("a-b=c", "must be name=value, like job=souvenirs, not 'a-b=c'"),
        ("1a=c", "must be name=value, like job=souvenirs, not '1a=c'"),
        ("a=\udce4", "must be name=value, like job=souvenirs, not 'a=\\udce4'"),
        ("window=1h", "window is reserved"),
        ("change=new", "change is reserved"),
        ("age=1", "age is reserved"),
        ("le=1", "le is reserved"),
        ("__name__=up", "__name__ is reserved"),
    ],
)
def test_souvenirs_history__refuses_invalid_labels(
    users: list[Any], text: str, message: str
) -> None:
    assert message in refused(f"--label={text}")


def test_souvenirs_history__refuses_two_values_of_a_label(users: list[Any]) -> None:
    assert "two values" in refused("--label", "job=a", "--label", "job=b")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--step", "soon"), ("--step", "0s"), ("--start", "soon"), ("--end", "2024-13-01")],
)
def test_souvenirs_history__names_a_value_that_cannot_be_read(
    users: list[Any], option: str, value: str
) -> None:
    assert repr(value) in refused(option, value)


def test_souvenirs_history__exits_with_2_for_bad_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        ManagementUtility(["manage.py", "souvenirs_history", "--label", "job"]).execute()
    assert caught.value.code == 2
    assert "--label: must be name=value" in capsys.readouterr().err


def test_souvenirs_history__fails_without_anything_to_write(users: list[Any]) -> None:
    message = refused("--start", "2024-05-16", "--end", "2024-05-15")
    assert "between 2024-05-16 00:00:00+02:00 (inclusive)" in message
    assert "and 2024-05-15 00:00:00+02:00 (exclusive)" in message
    assert "no instant" in refused("--start", "2024-05-16 00:01", "--end", "2024-05-16 00:04")
    assert "no instant" in refused("--end", "2024-05-01")


def test_souvenirs_history__fails_without_souvenirs() -> None:
    assert "There are no souvenirs" in refused()


def test_souvenirs_history__warns_of_gaps(users: list[Any]) -> None:
    assert run("--step", "5m")[1] == ""
    assert "--step is more than 5m" in run("--step", "5m1s")[1]


def test_souvenirs_history__writes_to_a_file(users: list[Any], tmp_path: Path) -> None:
    lines, _ = run("--label", "job=ü")
    path = tmp_path / "history.txt"
    assert run("--label", "job=ü", "--output", str(path)) == (
        f"Wrote {lines.count('{')} samples to {path}.\n",
        "",
    )
    assert path.read_text(encoding="utf-8") == lines


def test_souvenirs_history__names_the_file_that_cannot_be_written(
    users: list[Any], tmp_path: Path
) -> None:
    message = refused("--output", str(tmp_path / "none" / "history.txt"))
    assert message == f"Cannot write {tmp_path}/none/history.txt: No such file or directory"


def test_souvenirs_history__reads_from_the_database_of_scrapes(users: list[Any]) -> None:
    with (
        override_settings(SOUVENIRS_METRICS_DATABASE="replica"),
        pytest.raises(ConnectionDoesNotExist, match="replica"),
    ):
        run()


PAST = """
import time
from django.contrib.auth.models import User
from souvenirs import timestamps
user = User.objects.create(username="ada")
souvenez(user, when=timestamps.to_datetime(time.time() - 60 * 86400))
"""


@pytest.mark.own_site
@pytest.mark.parametrize("hours", [5, 1_000])  # less and more than is written at a time
def test_souvenirs_history__exits_quietly_if_the_pipe_is_closed(
    run_site: Callable[..., str], tmp_path: Path, hours: int
) -> None:
    run_site(PAST)
    start = datetime.now(timezone.utc) - timedelta(hours=hours)
    command = ["django", "souvenirs_history", "--skip-checks", "--start", start.isoformat()]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", *command],
        cwd=tmp_path,
        env=site_environ(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


@pytest.mark.own_site
@pytest.mark.parametrize("flags", [[], ["--max-block-duration=744h"]])
def test_souvenirs_history__is_imported_by_prometheus(
    users: list[Any], tmp_path: Path, flags: list[str]
) -> None:
    roll_up(NOW)
    labels = {"job": "souvenirs", "instance": 'www.example.org:443 "a\\b"'}
    options = [f"--label={name}={value}" for name, value in labels.items()]
    run("--end", "2030-01-01", "--output", str(tmp_path / "history.txt"), *options)
    promtool = servers.program("promtool", "prometheus")
    subprocess.run(
        [promtool, "tsdb", "create-blocks-from", "openmetrics", *flags, "history.txt", "data"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert len(os.listdir(tmp_path / "data")) == (1 if flags else 37)
    query = {"query": "souvenirs_active_users[10d]", "time": str(NOW)}
    with servers.prometheus(data=tmp_path / "data") as url:
        answer = requests.get(f"{url}/api/v1/query", params=query, timeout=30).json()
    found = {}
    for series in answer["data"]["result"]:
        window = series["metric"]["window"]
        assert series["metric"] == {
            **labels,
            "__name__": "souvenirs_active_users",
            "window": window,
        }
        found[window] = {t: int(value) for t, value in series["values"]}
    assert found == {
        "1h": {t: expected(HOUR, t) for t in range(T + 2 * HOUR, NOW, 300)},
        "1d": {t: expected(DAY, t) for t in range(T + 25 * HOUR, NOW, 300)},
    }


# Facts about the present, which have no past values
LIVE = re.compile("up|ALERTS|souvenirs_(up|build_info|rollup_lag_seconds|collection_.+|.+_total)")


@pytest.mark.soak
@pytest.mark.own_site
def test_souvenirs_history__of_a_year_leaves_no_panel_empty(tmp_path: Path) -> None:
    now = int(time.time())
    chance = random.Random(1)
    users = people(30)
    joined = {user.pk: now - chance.randrange(420) * DAY for user in users}
    for user in users:
        User.objects.filter(pk=user.pk).update(date_joined=to_when(joined[user.pk] - 1))
        days = range(joined[user.pk], now, chance.randrange(1, 9) * DAY)
        record(user, *(day + chance.randrange(DAY) for day in days if day < now - DAY), now - HOUR)
    roll_up(now)
    path = tmp_path / "history.txt"
    labels = ["--label=job=souvenirs", "--label=instance=www.example.org:443"]
    start = to_when(now - 126 * DAY).isoformat()  # enough for the panels
    call_command(
        "souvenirs_history",
        "--start",
        start,
        "--end",
        "now",
        *labels,
        output=str(path),
        verbosity=0,
    )
    command = ["tsdb", "create-blocks-from", "openmetrics", "--max-block-duration=9000h"]
    promtool = servers.program("promtool", "prometheus")
    subprocess.run(
        [promtool, *command, str(path), str(tmp_path / "data")],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with servers.prometheus(data=tmp_path / "data") as url:
        panel_client = PanelClient(url, now)
        empty = [
            f"{panel['title']}: {target['expr']}"
            for panel in PANELS
            for target in panel["targets"]
            if not any(DECLARED.fullmatch(name) for name, _ in selectors(target["expr"]))
            and not all(LIVE.fullmatch(name) for name, _ in selectors(target["expr"]))
            and not panel_client.query(target, days=days_shown(panel))
        ]
    assert empty == []
