"""Loads past activity: from a file, an access log, or the users' last log-ins."""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import PurePath
from typing import IO, Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from souvenirs import backfill
from souvenirs.backfill import BackfillError, Bad, Entry, readers
from souvenirs.backfill.entries import USER_NAMES
from souvenirs.management.options import show

SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".log": "access-log"}
REPORTED = 20


class Command(BaseCommand):
    help = (
        "Adds souvenirs of past activity: one per user and slot of the rate limit, unless there is"
        " one. May be repeated, and interrupted. Times are ISO 8601 (without an offset: in the"
        " site's time zone) or unix seconds."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        source = parser.add_mutually_exclusive_group(required=True)
        source.add_argument(
            "file", nargs="?", help="what to read: a file, also a .gz, or - for standard input"
        )
        source.add_argument(
            "--from-last-login",
            action="store_true",
            help="read no file, but when each user last logged in, from the users' table",
        )
        parser.add_argument(
            "--format",
            choices=readers.READERS,
            help="of the file (default: as its name says: .csv, .jsonl, .log)",
        )
        parser.add_argument(
            "--user-by",
            choices=USER_NAMES,
            help="what names users in the file (default: as the header or the keys say, else pk;"
            " username in access logs)",
        )
        parser.add_argument(
            "--strict", action="store_true", help="at the first bad line, fail and add nothing"
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="add nothing, but say what would be added"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self.reported = 0
        kept = "Nothing was added" if options["strict"] else "What was added stays"
        kept = "Nothing was added" if options["dry_run"] else kept
        try:
            with ExitStack() as stack:
                entries: Iterable[Entry | Bad]
                if options["from_last_login"]:
                    entries = last_logins(options)
                else:
                    read = readers.READERS[to_format(options)]
                    file = stack.enter_context(open_file(options["file"]))
                    lines = stack.enter_context(closing(read_lines(file, options["file"])))
                    entries = read(lines, options["user_by"])
                summary = backfill.load(
                    entries,
                    strict=options["strict"],
                    dry_run=options["dry_run"],
                    on_bad=self.report,
                )
        except BackfillError as error:
            raise CommandError(f"{error}. {kept}.") from None
        except (OSError, EOFError, zlib.error) as error:
            name, reason = options["file"], getattr(error, "strerror", None) or error
            raise CommandError(f"{name} cannot be read: {reason}. {kept}.") from None
        except KeyboardInterrupt:
            raise CommandError(f"Interrupted. {kept}; repeat the command to go on.") from None
        self.stdout.write(describe(summary, options["dry_run"]))

    def report(self, bad: Bad) -> None:
        self.reported += 1
        if self.reported > REPORTED + 1:
            return
        with tqdm.external_write_mode(file=sys.stderr):
            self.stderr.write(
                str(bad)
                if self.reported <= REPORTED
                else "There are more bad lines: see the summary for how many"
            )


def to_format(options: dict[str, Any]) -> str:
    """The format that was asked for, or that the file's name shows. CommandError if neither is."""
    if options["format"]:
        return str(options["format"])
    suffix = PurePath(options["file"].lower().removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise CommandError(
            f"The name of {options['file']!r} does not say what is in it: add --format, one of"
            f" {', '.join(readers.READERS)}"
        )
    return SUFFIXES[suffix]


def last_logins(options: dict[str, Any]) -> Iterable[Entry]:
    for name in ("format", "user_by"):
        if options[name]:
            option = "--" + name.replace("_", "-")
            raise CommandError(f"{option} is about a file: leave it out with --from-last-login")
    return tqdm(readers.read_last_logins(), unit=" users", disable=None)


def open_file(name: str) -> AbstractContextManager[IO[bytes]]:
    """A file, or standard input if its name is "-". Raises CommandError if it cannot be opened."""
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return open(name, "rb")
    except OSError as error:
        raise CommandError(f"{name} cannot be read: {error.strerror}") from None


def read_lines(file: IO[bytes], name: str) -> Generator[str, None, None]:
    """The lines of a file, which is compressed if its name ends in .gz; on a terminal with a
    progress bar. Raises OSError, EOFError or zlib.error while it reads."""
    size = os.fstat(file.fileno()).st_size if name != "-" and file.seekable() else 0
    unit = {"total": size, "unit": "B"} if size else {"unit": " lines"}
    data: Any = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
    text = io.TextIOWrapper(data, encoding="utf-8-sig", errors="replace", newline="")
    try:
        with tqdm(**unit, unit_scale=True, disable=None) as bar:
            for line in text:
                if not bar.disable:
                    bar.update(file.tell() - bar.n if size else 1)
                yield line
    finally:
        text.detach()  # or standard input would be closed


def describe(summary: backfill.Summary, dry_run: bool) -> str:
    added = f"{'Would be added' if dry_run else 'Added'}: {summary.added}"
    if summary.first is not None and summary.last is not None:
        added += f", from {show(summary.first)} to {show(summary.last)}"
    bad = f"Bad: {summary.bad.total()}"
    if summary.bad:
        bad += f" ({', '.join(f'{n} {reason}' for reason, n in summary.bad.most_common())})"
    return "\n".join(
        [
            f"Lines read: {summary.read}",
            added,
            f"Rate-limited: {summary.limited}",
            f"Without a user: {summary.nobody}",
            bad,
        ]
    )
