"""Manifests for Kubernetes: resources for the Prometheus and Grafana operators, and ConfigMaps for
the sidecar of Grafana's Helm chart."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from textwrap import indent

APIS = {
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "GrafanaDashboard": "grafana.integreatly.org/v1beta1",
    "ConfigMap": "v1",
}
# A site is a job, and the rules watch the job of this name from its first scrape
MONITOR = """\
spec:
  selector:
    matchLabels:
      {label}
  {endpoints}:
    - port: {port}
      path: /metrics
      interval: 15s
      scrapeTimeout: 10s
      authorization:
        type: Bearer
        credentials:
          name: souvenirs-metrics
          key: token
      relabelings:
        - action: replace
          targetLabel: job
          replacement: souvenirs
"""
EXPORTER = MONITOR.format(
    label="app.kubernetes.io/name: souvenirs-exporter", endpoints="endpoints", port="metrics"
)
SITE = MONITOR.format(label="souvenirs-metrics: site", endpoints="podMetricsEndpoints", port="http")
DASHBOARD = """\
spec:
  instanceSelector:
    matchLabels:
      dashboards: grafana
  allowCrossNamespaceImport: true
  folder: Souvenirs
  json: |
"""


def manifests(namespace: str | None = None) -> dict[str, str]:
    """Map file names to YAML, of one or several documents each.

    Without a namespace, kubectl's current namespace applies.
    """

    def manifest(kind: str, name: str, content: str, **labels: str) -> str:
        lines = [f"apiVersion: {APIS[kind]}", f"kind: {kind}", "metadata:", f"  name: {name}"]
        # Quoted, because a namespace may look like a number
        lines += [f'  namespace: "{namespace}"'] if namespace else []
        lines += ["  labels:", "    app.kubernetes.io/part-of: souvenirs"]
        lines += [f'    {label}: "{value}"' for label, value in labels.items()]
        return "\n".join([*lines, content])

    rules = files("souvenirs_metrics.prometheus").joinpath("souvenirs.rules.yml")
    spec = "spec:\n" + indent(rules.read_text(encoding="utf-8"), "  ")
    operator, sidecar = [], []
    for name, text in read_dashboards():
        block = indent(text, "    ")
        operator.append(manifest("GrafanaDashboard", name, DASHBOARD + block))
        data = f"data:\n  {name}.json: |\n{block}"
        sidecar.append(manifest("ConfigMap", name, data, grafana_dashboard="1"))
    return {
        "servicemonitor.yaml": manifest("ServiceMonitor", "souvenirs-exporter", EXPORTER),
        "podmonitor.yaml": manifest("PodMonitor", "souvenirs-site", SITE),
        "prometheusrule.yaml": manifest("PrometheusRule", "souvenirs", spec),
        "grafanadashboards.yaml": "---\n".join(operator),
        "configmaps.yaml": "---\n".join(sidecar),
    }


def read_dashboards() -> Iterator[tuple[str, str]]:
    """The name and the JSON of each dashboard."""
    found = files("souvenirs_metrics.grafana").joinpath("dashboards").iterdir()
    for file in sorted(found, key=lambda file: file.name):
        if file.name.endswith(".json"):
            yield file.name.removesuffix(".json"), file.read_text(encoding="utf-8")
