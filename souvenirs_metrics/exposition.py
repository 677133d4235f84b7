"""Builds the registry for a request, and renders the page."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterator
from copy import copy

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from souvenirs import scopes
from souvenirs_metrics import deadline, families, instruments
from souvenirs_metrics.collector import SouvenirsCollector
from souvenirs_metrics.deadline import scrape_timeout
from souvenirs_metrics.formats import DEFAULT, Format

logger = logging.getLogger("souvenirs_metrics")

PREFIX = "souvenirs_"  # of the names of all our metrics

collector = SouvenirsCollector()
is_registered = False


def is_multiprocess() -> bool:
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


class ProcessMetrics(Collector):
    """Everything in prometheus_client's default registry or, in multiprocess mode, in the files of
    all processes.

    This includes the site's collectors. If one of them raises, the page is served without the rest
    of these metrics.
    """

    def collect(self) -> Iterator[Metric]:
        try:
            source = multiprocess_collector() if is_multiprocess() else REGISTRY
            yield from source.collect()
        except Exception as error:
            logger.exception("Left process metrics out of the page: %r", error)


def multiprocess_collector() -> Collector:
    """Raise ValueError if PROMETHEUS_MULTIPROC_DIR is not a directory."""
    source: Collector = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
    return source


def register() -> None:
    """Put our collector into the default registry, once (SOUVENIRS_METRICS_REGISTER)."""
    global is_registered
    if not is_registered:
        REGISTRY.register(collector)
        is_registered = True


class NameFilter(Collector):
    """Filter metrics by family or sample name.

    CollectorRegistry.restricted_registry only knows sample names, so it finds nothing for
    "souvenirs_build". It also loses the order of the page.
    """

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
    """Return True if `name` may be one of the gauges that the collector reads. Our counters are
    process metrics."""
    return name.startswith(PREFIX) and not name.startswith(families.COUNTERS)


def build_registry(names: Collection[str] = ()) -> CollectorRegistry:
    """A registry with our gauges, once, and the process metrics (in multiprocess mode, those of all
    processes).

    names: only these metrics; empty for all.

    On a scoped site, each page is for one tenant. Process metrics cover all tenants, so they are
    left out.
    """
    collectors: list[Collector] = [] if scopes.is_scoped() else [ProcessMetrics()]
    # If it is registered, the default registry already has it, except in multiprocess mode
    if is_multiprocess() or not is_registered or not collectors:
        collectors.insert(0, collector)
    if names:
        if not any(map(is_collected, names)) and collector in collectors:
            collectors.remove(collector)  # so that nothing is queried
        collectors = [NameFilter(each, names) for each in collectors]
    registry = CollectorRegistry()
    for each in collectors:
        registry.register(each)
    return registry


def render(
    page_format: Format = DEFAULT,
    names: Collection[str] = (),
    seconds: float = deadline.DEFAULT_SECONDS,
) -> bytes:
    """The page in the given format.

    names: only these metrics; empty for all.
    seconds: how long collecting our gauges may take.
    """
    instruments.flush()
    started = time.monotonic()
    token = scrape_timeout.set(seconds)
    try:
        return page_format.encode(build_registry(names))
    except Exception as error:  # for example, a sample of the site's cannot be encoded
        logger.exception("Left process metrics out of the page: %r", error)
        scrape_timeout.set(max(0, seconds - (time.monotonic() - started)))
        return page_format.encode(NameFilter(collector, names) if names else collector)
    finally:
        scrape_timeout.reset(token)
