"""The page: builds a registry for a request, and renders it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from copy import copy
from functools import partial

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from souvenirs_metrics import deadline, families, instruments
from souvenirs_metrics.collector import SouvenirsCollector
from souvenirs_metrics.deadline import scrape_timeout

logger = logging.getLogger("souvenirs_metrics")

PREFIX = "souvenirs_"  # of the names of all our metrics

collector = SouvenirsCollector()
is_registered = False


def is_multiprocess() -> bool:
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


class ProcessMetrics(Collector):
    """All that is in prometheus_client's default registry, as one collector; in multiprocess mode,
    all that the processes have written to their files.

    Others' collectors are in there too: one that raises does not take the page with it.
    """

    def describe(self) -> Iterable[Metric]:
        return []  # their names are taken in the default registry

    def collect(self) -> Iterator[Metric]:
        try:
            source = multiprocess_collector() if is_multiprocess() else REGISTRY
            yield from source.collect()
        except Exception as error:
            logger.exception("Left process metrics out of the page: %r", error)


def multiprocess_collector() -> Collector:
    """Raises ValueError if PROMETHEUS_MULTIPROC_DIR names no directory."""
    source: Collector = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
    return source


def register() -> None:
    """Puts our collector into the default registry, once (SOUVENIRS_METRICS_REGISTER)."""
    global is_registered
    if not is_registered:
        REGISTRY.register(collector)
        is_registered = True


class NameFilter(Collector):
    """What of a collector's metrics goes by one of the names: of a family, or of its samples."""

    def __init__(self, source: Collector, names: Collection[str]) -> None:
        self.source = source
        self.names = names

    def collect(self) -> Iterator[Metric]:
        for family in self.source.collect():
            selected = copy(family)
            if family.name not in self.names:
                selected.samples = [s for s in family.samples if s.name in self.names]
            if selected.samples:
                yield selected


def is_collected(name: str) -> bool:
    """Whether it may be of one of our gauges; a counter is the process's, and needs no database."""
    return name.startswith(PREFIX) and not name.startswith(families.RECORDS_NAME)


def build_registry(names: Collection[str] = ()) -> CollectorRegistry:
    """A registry with our gauges, once, and the process metrics (in multiprocess mode, those of
    all processes). `names`: only the metrics of these names."""
    collectors: list[Collector] = [ProcessMetrics()]
    if is_multiprocess() or not is_registered:  # else it is among the process metrics
        collectors.insert(0, collector)
    if names:
        if not any(map(is_collected, names)):
            collectors = collectors[-1:]  # then nothing is asked of the database
        collectors = [NameFilter(each, names) for each in collectors]
    registry = CollectorRegistry()
    for each in collectors:
        registry.register(each)
    return registry


# What we write, by media type and version; None: for those who name no version
Encoder = Callable[..., bytes]
FORMATS: dict[tuple[str, str | None], tuple[Encoder, str]] = {
    ("application/openmetrics-text", None): (openmetrics.generate_latest, "1.0.0"),
    ("application/openmetrics-text", "1.0.0"): (openmetrics.generate_latest, "1.0.0"),
    ("text/plain", None): (generate_latest, "0.0.4"),
    ("text/plain", "0.0.4"): (generate_latest, "0.0.4"),
    ("text/plain", "1.0.0"): (generate_latest, "1.0.0"),
}
# Not "dots" and "values", with which prometheus_client renames our metrics too, so that dashboards
# and alerts would find none
ESCAPINGS = ("allow-utf-8", "underscores")


def parse_media_range(text: str) -> tuple[str, dict[str, str], float]:
    """Media type, parameters and quality of an item of an Accept header (RFC 9110, 12.5.1).

    The quality is 0, which is "not acceptable", if what is said of it makes no sense.
    """
    media_type, *pairs = text.split(";")
    parameters = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        parameters[name.strip().lower()] = value.strip().strip('"')
    try:
        quality = float(parameters.get("q", 1))
    except ValueError:
        quality = 0
    return media_type.strip().lower(), parameters, quality if 0 <= quality <= 1 else 0


def negotiate(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """The encoder that an Accept header asks for, and the Content-Type of what it writes.

    That is the format of the highest quality, the first of equals. Formats that we do not write
    are passed over; where none is left it is the text format, which everybody can read.
    prometheus_client's own negotiation ignores qualities, raises on malformed versions and claims
    any version that it is asked for.
    """
    ranges = [parse_media_range(text) for text in accept.split(",")]
    for media_type, parameters, quality in sorted(ranges, key=lambda r: r[2], reverse=True):
        known = FORMATS.get((media_type, parameters.get("version")))
        if known is None or not quality:
            continue
        encode, version = known
        content_type = f"{media_type}; version={version}; charset=utf-8"
        escaping = parameters.get("escaping")
        if version == "0.0.4" or escaping not in ESCAPINGS:
            return encode, content_type
        return partial(encode, escaping=escaping), f"{content_type}; escaping={escaping}"
    return generate_latest, "text/plain; version=0.0.4; charset=utf-8"


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header allows gzip by its name."""
    qualities = {name: q for name, _, q in map(parse_media_range, accept_encoding.split(","))}
    return qualities.get("gzip", 0) > 0


def render(
    accept: str, names: Collection[str] = (), seconds: float = deadline.DEFAULT_SECONDS
) -> tuple[bytes, str]:
    """The page in the format that an Accept header asks for, and its Content-Type.

    It is OpenMetrics or the Prometheus text format. `names`: only the metrics of these names.
    `seconds`: how long the collection of our gauges may take.
    """
    instruments.flush()
    encode, content_type = negotiate(accept)
    started = time.monotonic()
    token = scrape_timeout.set(seconds)
    try:
        return encode(build_registry(names)), content_type
    except Exception as error:  # others' samples are encoded here too, whatever is in them
        logger.exception("Left process metrics out of the page: %r", error)
        scrape_timeout.set(max(0, seconds - (time.monotonic() - started)))
        return encode(NameFilter(collector, names) if names else collector), content_type
    finally:
        scrape_timeout.reset(token)
