"""Writes the files for Grafana and Prometheus that this package contains, as plain files or as
Kubernetes manifests."""

from __future__ import annotations

import json
import os
import re
import shlex
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import CommandError

from souvenirs.management.base import SouvenirsCommand
from souvenirs_metrics.kubernetes import manifests

DATASOURCE_URL = "http://localhost:9090"
NEXT = """
Put the site's address into {config} and start Prometheus with
    --config.file={config} --storage.tsdb.retention.time=5y
and start Grafana with this environment variable:
    GF_PATHS_PROVISIONING={provisioning}
"""
NEXT_IN_KUBERNETES = """
Create the secret with the token, and apply the files for the operators or sidecar in your cluster:
    kubectl create secret generic souvenirs-metrics --from-literal=token=...{namespace}
    kubectl apply --filename {directory}/servicemonitor.yaml
"""


def parse_url(text: str) -> str:
    """Return the URL of a server. Raise ArgumentTypeError for anything else."""
    try:
        url = urlsplit(text)
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_url = False
    if not is_url or re.search(r"\s", text):
        raise ArgumentTypeError(f"must be the URL of a server, like {DATASOURCE_URL}, not {text!r}")
    return text


def parse_namespace(text: str) -> str:
    """Return the name of a Kubernetes namespace. Raise ArgumentTypeError for anything else."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text):
        raise ArgumentTypeError(
            f"must be a namespace of up to 63 lower-case letters, digits and hyphens, not {text!r}"
        )
    return text


class Command(SouvenirsCommand):
    help = (
        "Writes the Grafana dashboards with their provisioning files, and the rules and an example"
        " configuration for Prometheus; or all of them as Kubernetes manifests."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "directory",
            metavar="DIR",
            help="where to write grafana/ and prometheus/, or kubernetes/",
        )
        parser.add_argument(
            "--datasource-url",
            type=parse_url,
            default=DATASOURCE_URL,
            metavar="URL",
            help=f"the URL at which Grafana reaches Prometheus (default: {DATASOURCE_URL})",
        )
        parser.add_argument(
            "--kubernetes",
            action="store_true",
            help="write kubernetes/ instead: ServiceMonitor, PodMonitor, PrometheusRule,"
            " GrafanaDashboards, and ConfigMaps for the sidecar of Grafana's Helm chart",
        )
        parser.add_argument(
            "--namespace",
            type=parse_namespace,
            metavar="N",
            help="the namespace of these manifests (default: kubectl's current namespace)",
        )
        parser.add_argument("--force", action="store_true", help="overwrite existing files")

    def require_tables(self) -> None:
        """Nothing to check: this command reads no tables."""

    def handle(self, *args: Any, **options: Any) -> None:
        directory = Path(options["directory"]).absolute()
        namespace = options["namespace"]
        if options["kubernetes"]:
            directory /= "kubernetes"
            contents = {directory / name: text for name, text in manifests(namespace).items()}
        elif namespace:
            raise CommandError("--namespace only applies to Kubernetes manifests: add --kubernetes")
        else:
            contents = dict(read_files(directory, options["datasource_url"]))
        existing = [path for path in contents if os.path.lexists(path)]
        if existing and not options["force"]:
            raise CommandError(
                f"{existing[0]} already exists, so nothing was written: add --force to overwrite"
                " it, or name another directory."
            )
        try:
            for path in contents:
                path.parent.mkdir(parents=True, exist_ok=True)
            for path, text in contents.items():
                path.write_text(text, encoding="utf-8")
                self.stdout.write(f"Wrote {path}")
        except OSError as error:
            raise CommandError(f"Cannot write {error.filename}: {error.strerror}") from None
        if options["kubernetes"]:
            self.stdout.write(
                NEXT_IN_KUBERNETES.format(
                    directory=shlex.quote(str(directory)),
                    namespace=f" --namespace {namespace}" if namespace else "",
                ),
                ending="",
            )
            return
        paths = {
            "config": directory / "prometheus" / "prometheus.yml",
            "provisioning": directory / "grafana" / "provisioning",
        }
        self.stdout.write(
            NEXT.format(**{name: shlex.quote(str(path)) for name, path in paths.items()}),
            ending="",
        )


def read_files(directory: Path, datasource_url: str) -> Iterator[tuple[Path, str]]:
    """Pairs of the path and the text of each file to write to the directory."""
    values = {"path": str(directory / "grafana" / "dashboards"), "url": datasource_url}
    for package, folders in {
        "grafana": ("provisioning/datasources", "provisioning/dashboards", "dashboards"),
        "prometheus": ("",),
    }.items():
        for folder in folders:
            found = files(f"souvenirs_metrics.{package}").joinpath(folder).iterdir()
            for file in sorted(found, key=lambda file: file.name):
                if file.name.endswith((".json", ".yml", ".libsonnet")) and file.is_file():
                    text = file.read_text(encoding="utf-8")
                    if folder.startswith("provisioning"):
                        text = set_yaml_values(text, values)
                    yield directory / package / folder / file.name, text


def set_yaml_values(text: str, values: dict[str, str]) -> str:
    """Set keys in the YAML of a provisioning file to these values.

    A $ is written as $$, because Grafana expands variables. JSON strings are valid YAML.
    """

    def set_value(match: re.Match[str]) -> str:
        value = values[match["key"]].replace("$", "$$")
        return f"{match['indent']}{match['key']}: {json.dumps(value, ensure_ascii=False)}"

    return re.sub(rf"(?m)^(?P<indent> +)(?P<key>{'|'.join(values)}):.*$", set_value, text)
