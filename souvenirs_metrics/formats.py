"""The formats of the page, and the choice of one for a scraper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from django.http import HttpRequest
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

TEXT, OPENMETRICS = "text/plain", "application/openmetrics-text"


@dataclass(frozen=True)
class Format:
    """A format of the page.

    encode: renders the metrics of a collector.
    content_type: the Content-Type of the result.
    """

    encode: Callable[[Collector], bytes]
    content_type: str


def make_format(media_type: str, version: str, escaping: str = "") -> Format:
    encode = generate_openmetrics if media_type == OPENMETRICS else generate_latest
    content_type = f"{media_type}; version={version}; charset=utf-8"
    if not escaping:
        return Format(encode, content_type)
    return Format(partial(encode, escaping=escaping), f"{content_type}; escaping={escaping}")


DEFAULT = make_format(TEXT, "0.0.4")  # the format that every scraper can read

# Escaping schemes that scrapers ask for, and what they get. With "dots" and "values",
# prometheus_client would rename our metrics too, and dashboards and alerts would not find them
ESCAPINGS = {
    "": "",
    ";escaping=allow-utf-8": "allow-utf-8",
    ";escaping=underscores": "underscores",
    ";escaping=dots": "",
    ";escaping=values": "",
}
# By media type. Django compares all parameters of a media type at once, so each combination must be
# listed. Where a header prefers several equally, the first one is chosen
FORMATS = {
    f"{TEXT};version=0.0.4": DEFAULT,
    **{
        f"{media_type};version=1.0.0{asked}": make_format(media_type, "1.0.0", escaping)
        for media_type in (TEXT, OPENMETRICS)
        for asked, escaping in ESCAPINGS.items()
    },
}


def negotiate(request: HttpRequest) -> Format:
    """The format that a request's Accept header prefers, or else the text format.

    prometheus_client's negotiation ignores quality values, raises on malformed versions, and claims
    to support any version that it is asked for.
    """
    try:
        preferred = request.get_preferred_type(list(FORMATS))
    except (LookupError, ValueError):  # raised by Django for some malformed headers
        return DEFAULT
    return DEFAULT if preferred is None else FORMATS[preferred]
