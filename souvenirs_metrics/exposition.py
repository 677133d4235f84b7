"""The page: builds a registry for a request, and renders it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from souvenirs_metrics import instruments
from souvenirs_metrics.collector import SouvenirsCollector

collector = SouvenirsCollector()
is_registered = False


class DefaultRegistry(Collector):
    """All that is in prometheus_client's default registry, as one collector."""

    def describe(self) -> Iterable[Metric]:
        return []  # its collectors have registered there

    def collect(self) -> Iterable[Metric]:
        return REGISTRY.collect()


def register() -> None:
    """Puts our collector into the default registry, once (SOUVENIRS_METRICS_REGISTER)."""
    global is_registered
    if not is_registered:
        REGISTRY.register(collector)
        is_registered = True


def build_registry() -> CollectorRegistry:
    """A registry with our gauges, once, and the process metrics (in multiprocess mode, those of
    all processes)."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ and is_registered:
        return REGISTRY
    registry = CollectorRegistry()
    registry.register(collector)
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)
    else:
        registry.register(DefaultRegistry())
    return registry


def render(accept: str) -> tuple[bytes, str]:
    """The page in the format that an Accept header asks for, and its Content-Type.

    It is OpenMetrics or the Prometheus text format, as prometheus_client negotiates them.
    """
    instruments.flush()
    encode, content_type = choose_encoder(accept)
    return encode(build_registry()), content_type
