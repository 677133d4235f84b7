"""Lines of access logs, as Apache and nginx write them -> who, when, with which status."""

from __future__ import annotations

import re
from typing import NamedTuple

# Before the time come the client's address, the identity that identd gave, and the user, whose name
# may hold spaces; and before these maybe a virtual host, or what syslog adds. Both servers write
# quotes within quotes as \" or \x22. No part of the pattern can match in two ways, so a line takes
# time in proportion to its length.
LOG_LINE = re.compile(
    r'(?P<fields>.+?) \[(?P<time>[^\[\]]*)\] "[^"\\]*(?:\\.[^"\\]*)*" (?P<status>\d{3})(?!\S)'
)
VIRTUAL_HOST = re.compile(r"(?:[^\s:]+|\[[0-9a-fA-F:]+\]):\d+")
# All but ASCII is written as \x and two digits a byte
ESCAPE = re.compile(r'(?P<bytes>(?:\\x[0-9A-Fa-f]{2})+)|\\(?P<same>["\\])')


class Request(NamedTuple):
    """user: "" for nobody. status: as its three digits."""

    user: str
    time: str
    status: str


def parse_request(text: str) -> Request | None:
    """The request of a line in the common or the combined format, None for other lines."""
    found = LOG_LINE.match(text)
    user = _user(found["fields"]) if found else None
    if not found or user is None:
        return None
    return Request("" if user in ("-", '""') else user, found["time"], found["status"])


def _user(fields: str) -> str | None:
    words = fields.split(" ")
    # The identity is "-" wherever nobody runs identd: the first "-" that something comes before
    # and after
    at = next((at for at, word in enumerate(words[1:-1], 2) if word == "-"), None)
    if at is None:
        at = 3 if VIRTUAL_HOST.fullmatch(words[0]) else 2
    user = " ".join(words[at:])
    return ESCAPE.sub(_unescape, user) if user else None


def _unescape(found: re.Match[str]) -> str:
    if found["bytes"]:
        return bytes.fromhex(found["bytes"].replace("\\x", "")).decode(errors="replace")
    return found["same"]
