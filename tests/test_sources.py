"""The readers of backfill sources, with lines as they occur in practice."""

from __future__ import annotations

import io
import time
from datetime import datetime, timezone
from typing import Any

import pytest

from souvenirs.backfill import BackfillError, Entry, RejectedLine, load, readers
from souvenirs.backfill.lines import bounded_lines
from souvenirs.backfill.naming import Naming
from souvenirs.backfill.times import to_seconds
from tests.people import User, site, with_databases

pytestmark = with_databases

HOUR = 3_600
T = 1_700_042_400  # the beginning of an hour: 2023-11-15 11:00 in Paris
FOLD = 1_729_990_800  # 2024-10-27 03:00 summer time in Paris, when clocks are set back by an hour


@pytest.fixture
def users() -> list[Any]:
    return [User.objects.create(username=name) for name in ("ana", "bob", "eve")]


# Times


@pytest.mark.parametrize(
    ("when", "seconds"),
    [
        (1_700_042_400, T),
        (1_700_042_400.25, T + 0.25),
        ("1700042400", T),
        ("1700042400.000001", T + 0.000_001),
        ("1.7000424e9", T),
        ("2023-11-15T10:00:00Z", T),
        ("2023-11-15T10:00:00.5Z", T + 0.5),
        ("2023-11-15 10:00:00,5Z", T + 0.5),
        ("2023-11-15T10:00:00.500000999+00:00", T + 0.5),
        ("2023-11-15 05:00:00-05:00", T),
        ("2023-11-15T11:00", T),
        ("2023-11-15 11:00:00", T),
        ("2023-11-15", T - 11 * HOUR),
        ("2023-11-15 10:00:00 UTC", T),
        ("2023-11-15 10:00:00.5 utc", T + 0.5),
        ("2023-11-15T10:00:00GMT", T),
        ("15/Nov/2023:11:00:00 +0100", T),
        ("15/Nov/2023:10:00:00.25 +00:00", T + 0.25),
        (" 2023-11-15T11:00 ", T),
        ("2024-10-27T02:00:00", FOLD - HOUR),
        ("2024-10-27T02:00:00+01:00", FOLD),
    ],
)
def test_to_seconds(when: Any, seconds: float) -> None:
    assert to_seconds(when) == seconds


@pytest.mark.parametrize(
    "when",
    [
        "",
        "UTC",
        "15/Nov/2023",
        "31/Nov/2023:11:00:00 +0100",
        "yesterday",
        "2023-02-30",
        "2023-11-15T25:00",
        "nan",
        "-inf",
        "1e999",
        None,
        True,
        [],
        {},
    ],
)
def test_to_seconds__without_a_time(when: Any) -> None:
    with pytest.raises(ValueError, match=r".*"):
        to_seconds(when)


# CSV


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("user,when", f"12,{T}", Entry(2, "12", T)),
        ("id,when,user_id", f"7,{T},12", Entry(2, "12", T)),
        ("time,page,username", f'{T},"/a,b",ana', Entry(2, "ana", T, "username")),
        ("Email , Timestamp", f" a@b.org , {T} ", Entry(2, "a@b.org", T, "email")),
        ("pk,when", f"12,{T}", Entry(2, "12", T)),
        ("id,when", f"12,{T}", Entry(2, "12", T)),
        ("id,username,time", f"7,ana,{T}", Entry(2, "ana", T, "username")),
        ("remote_user,time_local", f"ana,{T}", Entry(2, "ana", T, "username")),
        ("page;user;when", f"/,a;12;{T}", Entry(2, "12", T)),
        ("user\tpage\twhen", f"12\t/;a\t{T}", Entry(2, "12", T)),
        ("user|page|when", f"12|/|{T}", Entry(2, "12", T)),
        ('"user", "when"', f'"12", "{T}"', Entry(2, "12", T)),
    ],
)
def test_read_csv__header_names_the_columns(header: str, row: str, expected: Entry) -> None:
    assert list(readers.read_csv([header + "\r\n", row + "\r\n"])) == [expected]


@pytest.mark.parametrize(
    ("user_by", "header", "row", "expected"),
    [
        ("username", "user,when", f"ana,{T}", Entry(2, "ana", T, "username")),
        ("email", "user,when", f"a@b.org,{T}", Entry(2, "a@b.org", T, "email")),
        ("pk", "username,id,when", f"ana,12,{T}", Entry(2, "12", T, "pk")),
        ("username", "user_id,username,when", f"12,ana,{T}", Entry(2, "ana", T, "username")),
    ],
)
def test_read_csv__user_by_chooses_the_column(
    user_by: str, header: str, row: str, expected: Entry
) -> None:
    assert list(readers.read_csv([header, row], Naming(user_by))) == [expected]


def test_read_csv__without_a_header_is_user_and_time() -> None:
    lines = [f"12,{T}\n", "\n", f"13,{T + 1}\n"]
    assert list(readers.read_csv(lines)) == [Entry(1, "12", T), Entry(3, "13", T + 1)]
    assert list(readers.read_csv([f"ana,{T}"], Naming("username"))) == [
        Entry(1, "ana", T, "username")
    ]
    assert list(readers.read_csv([])) == []


def test_read_csv__line_is_where_the_row_begins() -> None:
    lines = ["user,comment,when\n", '1,"two\n', f'lines",{T}\n', f"2,,{T}\n"]
    assert list(readers.read_csv(lines)) == [Entry(2, "1", T), Entry(4, "2", T)]


def test_read_csv__bad_lines() -> None:
    lines = ["user,when", "1", f"2,{T},x", "3,never", f",{T}", "4,", "x" * 200_000, f"5,{T}"]
    assert list(readers.read_csv(lines)) == [
        RejectedLine(2, "expected 2 columns", "1"),
        RejectedLine(3, "expected 2 columns", f"2,{T},x"),
        RejectedLine(4, "no time", "never"),
        Entry(5, None, 0.0),
        RejectedLine(6, "no time", ""),
        RejectedLine(7, "a value is too long", "x" * 1_000),
        Entry(8, "5", T),
    ]


def test_read_csv__naming_chooses_the_columns() -> None:
    lines = ["Konto;Tag;when\n", f"ana;{T};{T + 1}\n"]
    naming = Naming("username", "konto", "Tag")
    assert list(readers.read_csv(lines, naming)) == [Entry(2, "ana", T, "username")]
    assert list(readers.read_csv(lines, Naming(user_field="Konto"))) == [Entry(2, "ana", T + 1)]
    with pytest.raises(BackfillError, match=r"line 1 is not a header with 'konto' and 'tog': 'K"):
        list(readers.read_csv(lines, Naming(None, "konto", "tog")))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"12;{T}", Entry(1, "12", T)),
        ("12;2023-11-15 10:00:00,5Z", Entry(1, "12", T + 0.5)),
        ("12\t2023-11-15 11:00:00,5", Entry(1, "12", T + 0.5)),
        (f"-,{T}", Entry(1, None, 0.0)),
    ],
)
def test_read_csv__without_a_header_finds_the_delimiter(line: str, expected: Entry) -> None:
    assert list(readers.read_csv([line])) == [expected]


@pytest.mark.parametrize("first", ["name,date", "ana", "ana,never", f"ana,/,{T}", "x" * 200_000])
def test_read_csv__invalid_first_line_is_an_error(first: str) -> None:
    with pytest.raises(BackfillError) as caught:
        list(readers.read_csv(["\n", f"{first}\n", f"ana,{T}\n"]))
    message = str(caught.value)
    assert message.startswith(f"line 2 is neither a header nor a user and a time: '{first[:90]}")
    assert "user_id, user, username, email" in message
    assert "when, timestamp, time" in message
    assert "--user-field and --time-field" in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("stray", "bad"),
    [
        ('0,"a stray quote,{T}', '0,"a stray quote,{T}'),
        ('"0,a,{T}', '"0,a,{T}'),
        ('0,"a" b"c,{T}', None),
        ('0,"",{T}"', '{T}"'),
        ('0,"""a"",{T}', '0,"""a"",{T}'),
    ],
)
@pytest.mark.parametrize("after", [1, 2, 10_000])
def test_read_csv__a_stray_quote_affects_only_its_line(
    stray: str, bad: str | None, after: int
) -> None:
    """Also if another one follows, which could be mistaken for its end."""
    good = [f"{n},/,{T + n}\n" for n in range(1, after + 1)]
    lines = ["user,page,when\n", stray.format(T=T) + "\n", *good, stray.format(T=T) + "\n", *good]
    found = list(readers.read_csv(lines))
    assert [
        entry.when - T for entry in found if isinstance(entry, Entry) and entry.user != "0"
    ] == [
        *range(1, after + 1),
        *range(1, after + 1),
    ]
    rejected = [each.value for each in found if isinstance(each, RejectedLine)]
    assert rejected == ([bad.format(T=T)] * 2 if bad else [])


def test_read_csv__a_quoted_value_may_contain_line_breaks() -> None:
    comment = '"first\n\nthird, with ""quotes"" and commas\n"\n'
    lines = ["user,when,comment\n", *f"1,{T},{comment}".splitlines(keepends=True), f"2,{T},\n"]
    assert list(readers.read_csv(lines)) == [Entry(2, "1", T), Entry(6, "2", T)]


def test_read_csv__a_stray_quote_at_the_end() -> None:
    lines = ["user,when\n", f"1,{T}\n", f'2,"{T}\n']
    assert list(readers.read_csv(lines)) == [Entry(2, "1", T), Entry(3, "2", T)]


# JSON lines


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f'{{"user": 12, "when": {T}}}', Entry(1, "12", T)),
        (f'{{"user_id": "12", "time": {T}.5}}', Entry(1, "12", T + 0.5)),
        ('{"username": "ana", "when": "2023-11-15T11:00"}', Entry(1, "ana", T, "username")),
        (f'{{"email": "a@b.org", "timestamp": "{T}"}}', Entry(1, "a@b.org", T, "email")),
        (f'{{"user": null, "when": {T}}}', Entry(1, None, 0.0)),
        (f'{{"when": {T}}}', RejectedLine(1, "no user among the keys", f'{{"when": {T}}}')),
        ('{"user": 12}', RejectedLine(1, "no time among the keys", '{"user": 12}')),
        ('{"user": 12, "when": null}', RejectedLine(1, "no time", "None")),
        ('{"user": 12, "when": true}', RejectedLine(1, "no time", "True")),
        (f'{{"user": 12, "when": 1{"0" * 400}}}', RejectedLine(1, "no time", "1" + "0" * 400)),
        (f'{{"user": true, "when": {T}}}', RejectedLine(1, "unknown user", "True")),
        (f'{{"user": [12], "when": {T}}}', RejectedLine(1, "unknown user", "[12]")),
        ("[1]", RejectedLine(1, "not a JSON object", "[1]")),
        ("{", RejectedLine(1, "not a JSON object", "{")),
        ("[" * 100_000, RejectedLine(1, "not a JSON object", "[" * 1_000)),
    ],
)
def test_read_jsonl(line: str, expected: Entry | RejectedLine) -> None:
    assert list(readers.read_jsonl([line])) == [expected]


def test_read_jsonl__user_by_chooses_the_key() -> None:
    line = f'{{"user": "ana", "user_id": 12, "when": {T}}}\n'
    assert list(readers.read_jsonl([line, "\n", line])) == [Entry(1, "12", T), Entry(3, "12", T)]
    assert list(readers.read_jsonl([line], Naming("username"))) == [Entry(1, "ana", T, "username")]


NESTED = f'{{"request": {{"user": {{"id": 12}}, "names": ["ana", "x"]}}, "at": {{"ts": {T}}}}}'


@pytest.mark.parametrize(
    ("naming", "line", "expected"),
    [
        (Naming(None, "request.user.id", "at.ts"), NESTED, Entry(1, "12", T)),
        (Naming("username", "request.names.0", "at.ts"), NESTED, Entry(1, "ana", T, "username")),
        (
            Naming(user_field="user.email"),
            f'{{"user.email": "a@b.org", "@timestamp": {T}}}',
            Entry(1, "a@b.org", T, "email"),
        ),
        (
            Naming(user_field="user.id"),
            f'{{"user": {{"id": "7"}}, "ts": {T}}}',
            Entry(1, "7", T),
        ),
        (Naming(user_field="user.id"), f'{{"user": null, "ts": {T}}}', Entry(1, None, 0.0)),
        (
            Naming(time_field="at.ts"),
            '{"user": 1, "at": {}}',
            RejectedLine(1, "no time among the keys", '{"user": 1, "at": {}}'),
        ),
        (
            Naming(user_field="Id"),
            f'{{"Id": {{"a": 1}}, "ts": {T}}}',
            RejectedLine(1, "unknown user", "{'a': 1}"),
        ),
    ],
)
def test_read_jsonl__naming_names_the_keys(
    naming: Naming, line: str, expected: Entry | RejectedLine
) -> None:
    assert list(readers.read_jsonl([line], naming)) == [expected]


def test_read_jsonl__records_without_a_user_may_lack_the_key() -> None:
    lines = [f'{{"ts": {T}}}\n', f'{{"user": {{"id": 1}}, "ts": {T}}}\n', '{"user": {}}\n']
    assert list(readers.read_jsonl(lines, Naming(user_field="user.id"))) == [
        Entry(1, None, 0.0),
        Entry(2, "1", T),
        Entry(3, None, 0.0),
    ]
    with pytest.raises(BackfillError, match=r"no line has the key 'user\.ID'; recognised names"):
        list(readers.read_jsonl(lines, Naming(user_field="user.ID")))


def test_read_jsonl__of_web_servers() -> None:
    nginx = '{"time_local":"15/Nov/2023:11:00:00 +0100","remote_user":"%s","status":%s}\n'
    lines = [nginx % ("ana", 200), nginx % ("", 200), nginx % ("-", 200), nginx % ("eve", "401")]
    nobodys = [Entry(n, None, 0.0, "username") for n in (2, 3, 4)]
    assert list(readers.read_jsonl(lines)) == [Entry(1, "ana", T, "username"), *nobodys]
    assert list(readers.read_access_log(lines)) == list(readers.read_jsonl(lines))
    caddy = f'{{"ts":{T}.5,"request":{{"uri":"/"}},"user_id":"ana","status":200}}\n'
    assert list(readers.read_access_log(["\n", caddy], Naming("username", "user_id"))) == [
        Entry(2, "ana", T + 0.5, "username")
    ]


# Access logs

LOG = r"""
203.0.113.9 - ana [15/Nov/2023:11:00:00 +0100] "GET / HTTP/1.1" 200 5120 "-" "Mozilla/5.0 (X11)"
2001:db8::1f - bob [15/Nov/2023:05:00:01 -0500] "POST /a HTTP/2.0" 302 0 "https://x/?q=[1]" "curl/8"
203.0.113.9 - - [15/Nov/2023:11:00:02 +0100] "GET /static/a.css HTTP/1.1" 304 - "-" "-"
203.0.113.9 - "" [15/Nov/2023:11:00:02 +0100] "GET / HTTP/1.1" 200 12 "-" "-"
203.0.113.9 - eve [15/Nov/2023:11:00:03 +0100] "GET /login HTTP/1.1" 401 381 "-" "Mozilla/5.0"
::1 ident ana [15/Nov/2023:11:00:04 +0100] "GET /?q=\"b\" [1/Nov/1999:11:00 +0100] HTTP/1.1" 200 7
203.0.113.9 - Zo\xc3\xab de\x20Wit [15/Nov/2023:11:00:05 +0100] "GET / HTTP/1.1" 200 9 "-" "a \"b\""
203.0.113.9 - CORP\\ana \"x\" [15/Nov/2023:11:00:06 +0100] "-" 408 0 "-" "-"
203.0.113.9 - ana [15/Brr/2023:11:00:07 +0100] "GET / HTTP/1.1" 200 9 "-" "-"
203.0.113.9 - ana [31/Feb/2023:11:00:08 +0100] "GET / HTTP/1.1" 200 9 "-" "-"
203.0.113.9 - ana [15/Nov/2023:11:00:09 +0100] "GET / HT
"""


def test_read_access_log() -> None:
    lines = LOG.strip().splitlines(keepends=True)
    assert list(readers.read_access_log(lines)) == [
        Entry(1, "ana", T, "username"),
        Entry(2, "bob", T + 1, "username"),
        Entry(3, None, 0.0, "username"),
        Entry(4, None, 0.0, "username"),
        Entry(5, None, 0.0, "username"),  # a failed attempt to sign in
        Entry(6, "ana", T + 4, "username"),
        Entry(7, "Zoë de Wit", T + 5, "username"),
        Entry(8, 'CORP\\ana "x"', T + 6, "username"),
        RejectedLine(9, "no time", "15/Brr/2023:11:00:07 +0100"),
        RejectedLine(10, "no time", "31/Feb/2023:11:00:08 +0100"),
        RejectedLine(11, "not in the combined or common log format", lines[10].strip()),
    ]


def test_read_access_log__user_by_chooses_the_lookup() -> None:
    [found] = readers.read_access_log(LOG.strip().splitlines()[:1], Naming("email"))
    assert found == Entry(1, "ana", T, "email")


REQUEST = '[15/Nov/2023:11:00:00 +0100] "GET / HTTP/1.1" 200 5120 "-" "Mozilla/5.0"'


@pytest.mark.parametrize(
    ("fields", "user"),
    [
        ("198.51.100.4 - ana", "ana"),
        ("intranet.example.org:80 198.51.100.4 - ana", "ana"),
        ("intranet.example.org:80 198.51.100.4 - -", None),
        ("[2001:db8::1]:443 2001:db8::7 - ana", "ana"),
        ("[2001:db8::1]:443 2001:db8::7 - -", None),
        ("intranet.example.org 198.51.100.4 - ana maria", "ana maria"),
        ("intranet.example.org:80 198.51.100.4 ident ana", "ana"),
        ("intranet.example.org:80 198.51.100.4 ident -", None),
        ("198.51.100.4 ident -", None),
        ("2001:db8::7 ident ana", "ana"),
        ("10.0.0.1, 198.51.100.4 - ana", "ana"),
        ("- 198.51.100.4 - ana", "ana"),
        ("<190>Nov 15 11:00:00 web nginx: 198.51.100.4 - ana", "ana"),
        ("<190>Nov 15 11:00:00 web nginx: 198.51.100.4 - -", None),
        ("198.51.100.4 - ana - maria", "ana - maria"),
        ("198.51.100.4 - [ana]", "[ana]"),
        ("198.51.100.4 - ana [x", "ana [x"),
    ],
)
def test_read_access_log__with_a_virtual_host(fields: str, user: str | None) -> None:
    [found] = readers.read_access_log([f"{fields} {REQUEST}\n"])
    assert found == Entry(1, user, T if user else 0.0, "username")


def test_read_access_log__has_no_keys_to_be_named() -> None:
    with pytest.raises(BackfillError, match="omit --user-field and --time-field"):
        list(readers.read_access_log(LOG.strip().splitlines(), Naming(user_field="user")))


# Limits


@pytest.mark.parametrize(
    "line",
    [
        "a - b" + " [" * 300_000,
        "a - b" + ' [x] "' * 150_000,
        'a - b [x] "' + '\\"' * 400_000,
        "a " * 400_000 + "[",
        "- " * 400_000 + '[x] "" 2000',
    ],
    ids=["brackets", "requests", "escapes", "words", "dashes"],
)
def test_read_access_log__takes_time_proportional_to_a_lines_length(line: str) -> None:
    """With a pattern that tries all pairs of brackets, it would take minutes."""
    before = time.process_time()
    [found] = readers.read_access_log([line])
    assert isinstance(found, RejectedLine)
    assert found.reason == "not in the combined or common log format"
    assert time.process_time() - before < 20


@pytest.mark.parametrize("name", readers.READERS)
def test_read__lines_over_a_megabyte_are_rejected(name: str) -> None:
    good = {
        "csv": f"ana,{T}\n",
        "jsonl": f'{{"username": "ana", "when": {T}}}\n',
        "access-log": f"::1 - ana {REQUEST}\n",
    }[name]
    quoted = '"' + "x" * 1_000_000 + '"\n'
    lines = list(bounded_lines(io.StringIO(good + quoted + good + "x" * 3_000_000 + "\n" + good)))
    assert [len(line) for line in lines] == [len(good), 1_000_001, len(good), 1_000_001, len(good)]
    found = list(readers.READERS[name](lines, Naming("username")))
    assert [isinstance(each, Entry) and each.user for each in found[::2]] == ["ana"] * 3
    for each in found[1::2]:
        assert isinstance(each, RejectedLine)
        assert each.reason == "longer than 1 MB"
        assert len(each.value) <= 1_000


def test_read__names_of_any_length_are_shortened() -> None:
    [found] = readers.read_jsonl([f'{{"user": "{"x" * 500_000}", "when": {T}}}'])
    assert found == RejectedLine(1, "unknown user", "x" * 1_000)


# The users' table


def test_read_last_logins__pages(users: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PAGE_SIZE", 2)
    for i in range(5):
        when = site(datetime.fromtimestamp(T + i, timezone.utc))
        User.objects.create(username=f"user{i}", last_login=when)
    found = list(readers.read_last_logins())
    assert [entry.line for entry in found] == [1, 2, 3, 4, 5]
    assert sorted(entry.when for entry in found) == [T, T + 1, T + 2, T + 3, T + 4]
    assert load(found).added == 5
