"""Load past activity: from a file, an access log, or the users' last log-ins."""

from __future__ import annotations

import gzip
import io
import os
import re
import sys
import zlib
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from pathlib import PurePath
from typing import IO, Any

from django.core.management.base import CommandError, CommandParser, OutputWrapper

from souvenirs import backfill, checks
from souvenirs.backfill import BackfillError, Entry, RejectedLine, readers
from souvenirs.backfill.entries import UNKNOWN_USER, USER_BY
from souvenirs.backfill.lines import bounded_lines
from souvenirs.backfill.naming import Naming
from souvenirs.backfill.users import find_users
from souvenirs.management.base import SouvenirsCommand
from souvenirs.management.options import show
from souvenirs.management.progress import Progress, interrupted

FORMATS = {
    "csv": "csv",
    "tsv": "csv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "log": "access-log",
}
# Also access.log.1, access.log-20240131.gz and access_log
SUFFIX = re.compile(rf"[._]({'|'.join(FORMATS)})(?![a-z0-9])")
REPORTED = 20


class Command(SouvenirsCommand):
    help = (
        "Adds souvenirs for past activity: one per user and rate-limit slot, unless there is one"
        " already. It may be repeated, and interrupted. Times are ISO 8601 (in the site's time zone"
        " unless they have an offset) or Unix seconds."
    )
    requires_system_checks = (checks.TAG,)

    def add_arguments(self, parser: CommandParser) -> None:
        source = parser.add_mutually_exclusive_group()  # required: see `handle`
        source.add_argument(
            "file", nargs="?", help="the file to read, which may be a .gz; - for standard input"
        )
        source.add_argument(
            "--from-last-login",
            action="store_true",
            help="instead of a file, read when each user last logged in from the users' table",
        )
        parser.add_argument(
            "--format",
            choices=readers.READERS,
            help="format of the file (default: from its name: .csv, .tsv, .jsonl, .json, .log)",
        )
        parser.add_argument(
            "--user-by",
            choices=USER_BY,
            help="what users are identified by in the file (default: what the header or the keys"
            " say, otherwise pk; username in access logs)",
        )
        parser.add_argument(
            "--user-field",
            metavar="NAME",
            help="the column or key with the user; join nested keys by dots, as in request.user.id",
        )
        parser.add_argument("--time-field", metavar="NAME", help="the column or key with the time")
        parser.add_argument(
            "--strict", action="store_true", help="at the first bad line, fail and add nothing"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="add nothing, but print what would be added"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["file"] and not options["from_last_login"]:
            # argparse cannot require it: it does not see a file passed to call_command by keyword
            raise CommandError("Error: name a FILE, or add --from-last-login", returncode=2)
        self.reported = 0
        self.unknown: list[str] = []  # the first unknown users
        self.is_strict = options["strict"]
        kept = "Nothing was added" if self.is_strict else "Souvenirs added so far were kept"
        kept = "Nothing was added" if options["dry_run"] else kept
        try:
            with ExitStack() as stack:
                entries: Iterable[Entry | RejectedLine]
                if options["from_last_login"]:
                    entries = last_logins(options, self.stderr)
                else:
                    read = readers.READERS[to_format(options)]
                    file = stack.enter_context(open_file(options["file"]))
                    lines = stack.enter_context(
                        closing(read_lines(file, str(options["file"]), self.stderr))
                    )
                    naming = (options[name] for name in Naming._fields)
                    entries = read(lines, Naming(*naming))
                summary = backfill.load(
                    entries,
                    strict=options["strict"],
                    dry_run=options["dry_run"],
                    on_bad=self.report,
                )
        except BackfillError as error:
            raise CommandError(f"{error}. Nothing was added.{self.hint()}") from None
        except (OSError, EOFError, zlib.error) as error:
            name, reason = options["file"], getattr(error, "strerror", None) or error
            raise CommandError(f"{name} cannot be read: {reason}. {kept}.") from None
        except KeyboardInterrupt:
            raise CommandError(f"Interrupted. {kept}; repeat the command to continue.") from None
        self.stdout.write(describe(summary, options))
        if summary.bad and not summary.added and not summary.limited:
            raise CommandError(f"No line could be loaded.{self.hint()}")
        if hint := self.hint():
            self.stderr.write(hint.strip())

    def report(self, bad: RejectedLine) -> None:
        if bad.reason == UNKNOWN_USER and len(self.unknown) < REPORTED:
            self.unknown.append(bad.value)
        self.reported += 1
        if self.is_strict or self.reported > REPORTED + 1:
            return
        with interrupted(self.stderr):
            self.stderr.write(
                str(bad)
                if self.reported <= REPORTED
                else "There are more bad lines: the summary has their number"
            )

    def hint(self) -> str:
        """Suggest another --user-by if it would find a user that is unknown."""
        for user_by in USER_BY:
            with suppress(BackfillError):  # the user model has no such field
                found = find_users(self.unknown, user_by)
                if known := [name for name in self.unknown if found[name]]:
                    return f" {known[0]!r} is the {user_by} of a user: try --user-by {user_by}."
        return ""


def to_format(options: dict[str, Any]) -> str:
    """Return --format, or the format that the file's name shows. Raises CommandError if there is
    neither."""
    if options["format"]:
        return str(options["format"])
    found = SUFFIX.findall(PurePath(options["file"]).name.lower())
    if not found:
        raise CommandError(
            f"The name of {str(options['file'])!r} does not show its format: add --format, one of"
            f" {', '.join(readers.READERS)}"
        )
    return FORMATS[found[-1]]


def last_logins(options: dict[str, Any], stderr: OutputWrapper) -> Iterable[Entry]:
    for name in ("format", *Naming._fields):
        if options[name]:
            option = "--" + name.replace("_", "-")
            raise CommandError(f"{option} is only for files: omit it with --from-last-login")
    return Progress(stderr, readers.read_last_logins(), unit="users")


def open_file(name: str) -> AbstractContextManager[IO[bytes]]:
    """Open a file, or standard input if its name is "-". Raises CommandError if that fails."""
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return open(name, "rb")
    except OSError as error:
        raise CommandError(f"{name} cannot be read: {error.strerror}") from None


def read_lines(file: IO[bytes], name: str, stderr: OutputWrapper) -> Generator[str, None, None]:
    """Yield the lines of a file, which is compressed if its name ends in .gz. Show a progress bar
    on a terminal. Raises OSError, EOFError or zlib.error while it reads."""
    size = os.fstat(file.fileno()).st_size if name != "-" and file.seekable() else 0
    unit = {"total": size, "unit": "B"} if size else {"unit": "lines"}
    data: Any = gzip.GzipFile(fileobj=file) if name.lower().endswith(".gz") else file
    text = io.TextIOWrapper(data, encoding="utf-8-sig", errors="replace", newline="")
    try:
        with Progress(stderr, **unit, unit_scale=bool(size)) as bar:
            for line in bounded_lines(text):
                if not bar.disable:
                    bar.update(file.tell() - bar.n if size else 1)
                yield line
    finally:
        text.detach()  # otherwise standard input would be closed


def describe(summary: backfill.Summary, options: dict[str, Any]) -> str:
    unit = "last log-in" if options["from_last_login"] else "line"
    added = f"{'Would add' if options['dry_run'] else 'Added'} {count(summary.added, 'souvenir')}"
    if summary.first is not None and summary.last is not None:
        added += f", from {show(summary.first)} to {show(summary.last)}"
    parts = [f"Read {count(summary.read, unit)}", added]
    if summary.limited:
        parts.append(f"Skipped {count(summary.limited, unit)} within the rate limit")
    if summary.anonymous:
        parts.append(f"Skipped {count(summary.anonymous, unit)} without a user")
    if summary.bad:
        reasons = "; ".join(f"{reason}: {n:,}" for reason, n in summary.bad.most_common())
        parts.append(f"Rejected {count(summary.bad.total(), unit)} ({reasons})")
    return "".join(f"{part}.\n" for part in parts).rstrip("\n")


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
