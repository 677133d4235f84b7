"""Parse lines of access logs, as Apache and nginx write them: user, time and status."""

from __future__ import annotations

import re
from typing import NamedTuple

# Before the time are the client's address, the identity from identd, and the user, whose name may
# contain spaces; before these there may be a virtual host, or what syslog adds. Both servers write
# quotes within quotes as \" or \x22. No part of the pattern can match in two ways, so the time to
# match is proportional to the line's length.
LOG_LINE = re.compile(
    r'(?P<fields>.+?) \[(?P<time>[^\[\]]*)\] "[^"\\]*(?:\\.[^"\\]*)*" (?P<status>\d{3})(?!\S)'
)
VIRTUAL_HOST = re.compile(r"(?:[^\s:]+|\[[0-9a-fA-F:]+\]):\d+")
# Bytes outside ASCII are written as \x and two hexadecimal digits
ESCAPE = re.compile(r'(?P<bytes>(?:\\x[0-9A-Fa-f]{2})+)|\\(?P<same>["\\])')


class Request(NamedTuple):
    """A request in a log. user: "" if anonymous. status: its three digits."""

    user: str
    time: str
    status: str


def parse_request(text: str) -> Request | None:
    """Parse a line in the common or the combined format; return None for other lines."""
    found = LOG_LINE.match(text)
    user = _user(found["fields"]) if found else None
    if not found or user is None:
        return None
    return Request("" if user in ("-", '""') else user, found["time"], found["status"])


def _user(fields: str) -> str | None:
    words = fields.split(" ")
    # The identity is "-" unless identd runs: the first "-" with something before and after it
    at = next((at for at, word in enumerate(words[1:-1], 2) if word == "-"), None)
    if at is None:
        at = 3 if VIRTUAL_HOST.fullmatch(words[0]) else 2
    user = " ".join(words[at:])
    return ESCAPE.sub(_unescape, user) if user else None


def _unescape(found: re.Match[str]) -> str:
    if found["bytes"]:
        return bytes.fromhex(found["bytes"].replace("\\x", "")).decode(errors="replace")
    return found["same"]
