from __future__ import annotations

import gzip
import io
import sys
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.conf import settings as site_settings
from django.core.management import ManagementUtility, call_command
from django.core.management.base import CommandError
from django.test import override_settings

from souvenirs.backfill import readers
from souvenirs.control import last_seen
from souvenirs.models import Souvenir
from tests.people import User, site, with_databases

has_email = pytest.mark.where(not site_settings.SHAPE & {"uuid", "string"})
pytestmark = with_databases

T = 1_700_042_400  # 2023-11-15 11:00 in Paris, the site's time zone
KINDS = {
    "csv": f"username,when\nana,{T}\nana,{T + 1}\nbob,2023-11-15T12:30\n",
    "jsonl": (
        f'{{"username": "ana", "when": {T}}}\n'
        f'{{"username": "ana", "when": {T + 1}}}\n'
        '{"username": "bob", "when": "2023-11-15T12:30"}\n'
    ),
    "access-log": (
        '203.0.113.9 - ana [15/Nov/2023:11:00:00 +0100] "GET / HTTP/1.1" 200 51 "-" "Mozilla/5.0"\n'
        '203.0.113.9 - ana [15/Nov/2023:11:00:01 +0100] "GET /b HTTP/1.1" 200 5 "/" "Mozilla/5.0"\n'
        '2001:db8::7 - bob [15/Nov/2023:11:30:00 +0000] "GET / HTTP/2.0" 404 0 "-" "a \\"b\\""\n'
    ),
}
SUMMARY = """\
Read 3 lines.
Added 2 souvenirs, from 2023-11-15 11:00:00+01:00 to 2023-11-15 12:30:00+01:00.
Skipped 1 line within the rate limit.
"""
NONE_ADDED = """\
Read 3 lines.
Added 0 souvenirs.
Skipped 3 lines within the rate limit.
"""

Load = Callable[..., tuple[str, str]]


@pytest.fixture(autouse=True)
def users() -> list[Any]:
    return [User.objects.create(username=name) for name in ("ana", "bob")]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """`run("x.csv", "--strict", text=...)` runs the command in a directory where x.csv contains
    this text; "-", which stands for standard input, has it too. Returns the command's output and
    its errors."""

    def run(*args: str, text: str | bytes = "") -> tuple[str, str]:
        data = text.encode() if isinstance(text, str) else text
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        if args[:1] != ("-",) and not args[0].startswith("--") and data:
            Path(args[0]).write_bytes(data)
        out, err = io.StringIO(), io.StringIO()
        call_command("backfill_souvenirs", *args, stdout=out, stderr=err, no_color=True)
        assert not sys.stdin.closed
        return out.getvalue(), err.getvalue()

    return run


# Sources


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", "csv"),
        ("A.CSV", "csv"),
        ("a.jsonl", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("access.log", "access-log"),
        ("a.csv.gz", "csv"),
        ("access.log.gz", "access-log"),
        ("access.log.1", "access-log"),
        ("access.log.2.gz", "access-log"),
        ("intranet-access_log-20231115", "access-log"),
        ("a.json", "jsonl"),
        ("access.log", "jsonl"),
        ("log.csv", "csv"),
    ],
)
def test_file__format_is_taken_from_its_name(run: Load, name: str, kind: str) -> None:
    text = KINDS[kind].encode()
    assert run(name, text=gzip.compress(text) if name.endswith(".gz") else text) == (SUMMARY, "")
    assert run(name) == (NONE_ADDED, "")
    assert Souvenir.objects.count() == 2


@pytest.mark.parametrize("kind", KINDS)
def test_format__of_standard_input(run: Load, kind: str) -> None:
    assert run("-", "--format", kind, text=KINDS[kind]) == (SUMMARY, "")


@pytest.mark.parametrize("kind", KINDS)
def test_format__takes_precedence_over_the_name(run: Load, kind: str) -> None:
    assert run("access.log.1.csv", "--format", kind, text=KINDS[kind]) == (SUMMARY, "")


def test_file__of_keys_without_a_header(run: Load, users: list[Any]) -> None:
    ana, bob = users
    text = f"{ana.pk},{T}\r\n{ana.pk},{T + 1}\r\n{bob.pk},{T + 5_400}\r\n"
    assert run("a.csv", text=text) == (SUMMARY, "")


def test_file__from_a_spreadsheet_has_a_byte_order_mark(run: Load) -> None:
    assert run("a.csv", text="\ufeff" + KINDS["csv"]) == (SUMMARY, "")


def test_file__not_utf8(run: Load) -> None:
    out, err = run("a.csv", text=KINDS["csv"].encode() + b"zo\xeb,1700042400\n")
    assert out.endswith("Rejected 1 line (unknown user: 1).\n")
    assert err == "line 5: unknown user: 'zo\ufffd'\n"


def test_file__empty(run: Load, tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    out, _ = run("a.csv")
    assert out == "Read 0 lines.\nAdded 0 souvenirs.\n"


def test_user_by__says_what_the_column_has(run: Load) -> None:
    text = KINDS["csv"].replace("username", "user")
    assert run("a.csv", "--user-by", "username", text=text) == (SUMMARY, "")


@has_email
def test_user_by__email(run: Load) -> None:
    User.objects.filter(username="ana").update(email="ana@example.org")
    text = f"ana@example.org,{T}\nnobody@example.org,{T}\n"
    out, err = run("a.csv", "--user-by", "email", text=text)
    assert "Added 1 souvenir, " in out
    assert err == "line 2: unknown user: 'nobody@example.org'\n"


@pytest.mark.where("uuid" in site_settings.SHAPE or "string" in site_settings.SHAPE)
def test_user_by__email_if_users_have_none(run: Load) -> None:
    with pytest.raises(CommandError, match=r"cannot be found by email: \S+ has no field email"):
        run("a.csv", "--user-by", "email", text=f"ana@example.org,{T}\n")


def test_access_log__counts_lines_without_a_user(run: Load) -> None:
    text = KINDS["access-log"].replace(" - bob ", " - - ")
    assert run("access.log", text=text) == (
        "Read 3 lines.\n"
        "Added 1 souvenir, from 2023-11-15 11:00:00+01:00 to 2023-11-15 11:00:00+01:00.\n"
        "Skipped 1 line within the rate limit.\n"
        "Skipped 1 line without a user.\n",
        "",
    )


def test_from_last_login(run: Load, users: list[Any]) -> None:
    when = site(datetime.fromtimestamp(T, timezone.utc))
    User.objects.filter(pk=users[0].pk).update(last_login=when)
    out, _ = run("--from-last-login")
    assert out.startswith(
        "Read 1 last log-in.\nAdded 1 souvenir, from 2023-11-15 11:00:00+01:00 to "
    )
    assert last_seen(users[0]) == when
    assert Souvenir.objects.get().user_id == users[0].pk
    assert run("--from-last-login")[0].startswith("Read 1 last log-in.\nAdded 0 souvenirs.\n")


def test_fields__are_columns_or_keys(run: Load) -> None:
    options = ["--user-field=who.name", "--time-field=at", "--user-by=username"]
    text = f'{{"who": {{"name": "ana"}}, "at": {T}}}\n{{"who": null, "at": {T}}}\n'
    out, err = run("access.log", *options, text=text)
    assert (out.splitlines()[-1], err) == ("Skipped 1 line without a user.", "")
    out, err = run("a.tsv", *options, text=f"at\twho.name\n{T + 3600}\tana\n")
    assert (out.startswith("Read 1 line.\nAdded 1 souvenir, "), err) == (True, "")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "name,date\nana,2024-01-31\n",
            "line 1 is neither a header nor a user and a time",
        ),
        ("a.json", '{"name": "ana"}\n', "no line has the key 'user'; recognised names are"),
        ("access.log", KINDS["access-log"], "an access log in the combined format has no keys"),
    ],
)
def test_fields__missing(run: Load, name: str, text: str, message: str) -> None:
    options = [] if name == "a.csv" else ["--user-field=user"]
    with pytest.raises(CommandError) as caught:
        run(name, *options, text=text)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(". Nothing was added.")


# Limits


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "access.log.gz"])
def test_file__of_one_huge_line_is_read_in_pieces(run: Load, name: str) -> None:
    compressed = gzip.compress(b"x" * 100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(CommandError, match=r"^(No line could be loaded|line 1 is neither)"):
            run(name, text=compressed)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def test_file__with_one_stray_quote(run: Load) -> None:
    """None of the 8,800 lines after it is lost."""
    lines = "".join(f"ana,{T + 60 * n},/\n" for n in range(8_800))
    with override_settings(SOUVENIRS_RATELIMIT_SECONDS=60):
        out, err = run("a.csv", text=f'username,when,page\nana,"{T},/\n{lines}')
    assert out.startswith("Read 8,801 lines.\nAdded 8,800 souvenirs, ")
    assert err == f"line 2: expected 3 columns: 'ana,\"{T},/'\n"


# Options


@pytest.mark.parametrize("strict", [[], ["--strict"]])
def test_dry_run__adds_nothing(run: Load, strict: list[str]) -> None:
    out, _ = run("a.csv", "--dry-run", *strict, text=KINDS["csv"])
    assert out == SUMMARY.replace("Added", "Would add")
    assert not Souvenir.objects.exists()


def test_strict__with_good_lines(run: Load) -> None:
    assert run("a.csv", "--strict", text=KINDS["csv"]) == (SUMMARY, "")


def test_strict__fails_at_the_first_bad_line(run: Load) -> None:
    with pytest.raises(CommandError) as caught:
        run("a.csv", "--strict", text=KINDS["csv"] + f"eve,{T}\nana,never\n")
    assert str(caught.value) == "line 5: unknown user: 'eve'. Nothing was added."
    assert not Souvenir.objects.exists()


# Bad lines


def test_bad_lines__do_not_stop_the_others(run: Load) -> None:
    text = f"username,when\neve,{T}\nana,{T}\nana,never\nana,{T}000\nfay,{T}\n"
    with time_machine.travel(T + 60):
        out, err = run("a.csv", text=text + f"ana,{T + 61}\n")
    assert err == (
        "line 2: unknown user: 'eve'\n"
        "line 4: no time: 'never'\n"
        f"line 5: after 5138 (milliseconds?): 'ana at {T}000'\n"
        "line 6: unknown user: 'fay'\n"
        f"line 7: in the future: 'ana at {site(datetime.fromtimestamp(T + 61, timezone.utc))}'\n"
    )
    assert out == (
        "Read 6 lines.\n"
        "Added 1 souvenir, from 2023-11-15 11:00:00+01:00 to 2023-11-15 11:00:00+01:00.\n"
        "Rejected 5 lines (unknown user: 2; no time: 1; after 5138 (milliseconds?): 1;"
        " in the future: 1).\n"
    )
    assert Souvenir.objects.count() == 1


def test_bad_lines__are_reported_one_by_one_up_to_twenty(run: Load) -> None:
    text = "username,when\n" + "".join(f"nobody{n},{T}\n" for n in range(50))
    out, err = run("a.csv", text=text + f"ana,{T}\n")
    lines = err.splitlines()
    assert lines[19] == "line 21: unknown user: 'nobody19'"
    assert lines[20:] == ["There are more bad lines: the summary has their number"]
    assert out.endswith("Rejected 50 lines (unknown user: 50).\n")


def test_bad_lines__alone_are_an_error(run: Load, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError) as caught:
        run("a.csv", text=f"username,when\neve,{T}\n,{T}\n")
    assert (str(caught.value), caught.value.returncode) == ("No line could be loaded.", 1)
    # Nobody was signed in; a log may well be so
    out, _ = run("access.log", text=KINDS["access-log"].splitlines()[0].replace(" ana ", " - "))
    assert out == "Read 1 line.\nAdded 0 souvenirs.\nSkipped 1 line without a user.\n"
    # All of it is already there
    assert run("b.csv", text=KINDS["csv"]) == (SUMMARY, "")
    out, _ = run("b.csv", text=f"username,when\neve,{T}\nana,{T}\n")
    assert out.endswith("Rejected 1 line (unknown user: 1).\n")


@pytest.mark.where("string" not in site_settings.SHAPE)  # users whose usernames are keys
def test_bad_lines__users_identified_in_another_way(run: Load) -> None:
    hint = "'ana' is the username of a user: try --user-by username."
    with pytest.raises(CommandError) as caught:
        run("a.csv", text=f"user,when\nuser0001,{T}\nana,{T}\n")
    assert str(caught.value) == f"No line could be loaded. {hint}"
    with pytest.raises(CommandError) as caught:
        run("a.csv", "--strict", text=f"user,when\nana,{T}\n")
    assert str(caught.value) == f"line 2: unknown user: 'ana'. Nothing was added. {hint}"
    key = User.objects.get(username="bob").pk
    out, err = run("a.csv", text=f"user,when\nana,{T}\n{key},{T}\n")
    assert out.startswith("Read 2 lines.\nAdded 1 souvenir, ")
    assert err == f"line 2: unknown user: 'ana'\n{hint}\n"
    with pytest.raises(CommandError, match=r"try --user-by username\.$"):
        run("a.csv", "--dry-run", text=f"user,when\nana,{T}\n")


@has_email
def test_bad_lines__users_of_a_log_identified_by_email(run: Load) -> None:
    User.objects.filter(username="ana").update(email="ana@example.org")
    text = KINDS["access-log"].replace(" bob ", " ana ").replace(" ana ", " ana@example.org ")
    with pytest.raises(
        CommandError, match=r"'ana@example\.org' is the email of a user: try --user"
    ):
        run("access.log", text=text)
    out, _ = run("access.log", "--user-by=email", text=text)
    assert out.startswith("Read 3 lines.\nAdded 2 souvenirs, ")


# Errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.csv"], "missing.csv cannot be read: No such file or directory"),
        ([".", "--format=csv"], ". cannot be read: Is a directory"),
        (
            ["a.txt"],
            "The name of 'a.txt' does not show its format: add --format, one of csv, jsonl,"
            " access-log",
        ),
        (
            ["-"],
            "The name of '-' does not show its format: add --format, one of csv, jsonl, access-log",
        ),
        (
            ["--from-last-login", "--user-by=email"],
            "--user-by is only for files: omit it with --from-last-login",
        ),
        (
            ["--from-last-login", "--format=csv"],
            "--format is only for files: omit it with --from-last-login",
        ),
        (["--strict"], "Error: name a FILE, or add --from-last-login"),
        (
            ["a.csv", "--from-last-login"],
            "Error: argument --from-last-login: not allowed with argument file",
        ),
    ],
)
def test_errors__say_what_to_do(run: Load, args: list[str], message: str) -> None:
    with pytest.raises(CommandError) as caught:
        run(*args)
    assert str(caught.value) == message


def test_errors__unknown_format(run: Load) -> None:
    with pytest.raises(CommandError, match="argument --format: invalid choice: 'xml'"):
        run("a.csv", "--format=xml")


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"x" + data])
def test_errors__a_truncated_compressed_file(run: Load, damage: Callable[[bytes], bytes]) -> None:
    text = "".join(f"ana,{T + n}\n" for n in range(1_000)).encode()
    with pytest.raises(CommandError, match=r"a\.csv\.gz cannot be read: .*\. Nothing was added"):
        run("a.csv.gz", "--strict", text=damage(gzip.compress(text)))
    assert not Souvenir.objects.exists()


def test_errors__interrupted(run: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(lines: Any, user_by: Any) -> Any:
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setitem(readers.READERS, "csv", interrupt)
    with pytest.raises(CommandError) as caught:
        run("a.csv", text=KINDS["csv"])
    assert (
        str(caught.value)
        == "Interrupted. Souvenirs added so far were kept; repeat the command to continue."
    )


@pytest.mark.parametrize(
    ("args", "code"), [(["a.csv"], None), (["a.csv", "--strict"], 1), (["--format=csv"], 2)]
)
def test_exit_code(
    args: list[str],
    code: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text(KINDS["csv"] + f"eve,{T}\n")
    utility = ManagementUtility(["manage.py", "backfill_souvenirs", *args])
    if code is None:
        utility.execute()
        assert capsys.readouterr().out.endswith("Rejected 1 line (unknown user: 1).\n")
        return
    with pytest.raises(SystemExit) as caught:
        utility.execute()
    assert caught.value.code == code
    assert not Souvenir.objects.exists()


# Progress


def test_progress__only_in_a_terminal(run: Load, capsys: pytest.CaptureFixture[str]) -> None:
    run("a.csv", text=KINDS["csv"])
    assert capsys.readouterr().err == ""
