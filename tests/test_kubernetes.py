"""The Kubernetes manifests that the command writes, and those in docs/kubernetes.md."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from django.core.management import CommandError, call_command

from souvenirs_metrics import families
from souvenirs_metrics.kubernetes import manifests
from souvenirs_metrics.management.commands import souvenirs_exporter
from souvenirs_metrics.server import PAGES
from tests.manifests import MAX_BYTES, SCHEMAS
from tests.servers import program
from tests.test_mixin import DASHBOARDS, SHIPPED, TARGET

pytestmark = pytest.mark.own_site

Json = dict[str, Any]

FILES = {
    "servicemonitor.yaml": ["ServiceMonitor"],
    "podmonitor.yaml": ["PodMonitor"],
    "prometheusrule.yaml": ["PrometheusRule"],
    "grafanadashboards.yaml": ["GrafanaDashboard"] * 4,
    "configmaps.yaml": ["ConfigMap"] * 4,
}
PAGE = (Path(__file__).parent.parent / "docs" / "kubernetes.md").read_text()


def run(directory: Path, *args: str) -> str:
    output = StringIO()
    call_command("souvenirs_dashboards", str(directory), *args, stdout=output)
    return output.getvalue()


@cache
def documents(text: str) -> list[Json]:
    return [*yaml.load_all(text, Loader=yaml.CSafeLoader)]


def written(directory: Path) -> dict[str, list[Json]]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    assert {path.parent for path in paths} == {directory / "kubernetes"}
    return {path.name: documents(path.read_text()) for path in paths}


def of_kind(kind: str) -> list[Json]:
    """The manifests of a kind that the command writes, or that the page has."""
    [*yaml_of_page] = re.findall(r"```yaml\n(.+?)```", PAGE, re.DOTALL)
    found = [each for text in [*manifests().values(), *yaml_of_page] for each in documents(text)]
    return [each for each in found if each["kind"] == kind]


def only(kind: str) -> Json:
    [found] = of_kind(kind)
    return found


def assert_valid(manifest: Json) -> None:
    jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])
    assert len(json.dumps(manifest)) < MAX_BYTES


def test_command__writes_valid_manifests(tmp_path: Path) -> None:
    output = run(tmp_path, "--kubernetes", "--namespace", "123")
    files = written(tmp_path)
    assert {name: [each["kind"] for each in found] for name, found in files.items()} == FILES
    for manifest in chain(*files.values()):
        assert_valid(manifest)
        assert manifest["metadata"]["namespace"] == "123"
    names = [(each["kind"], each["metadata"]["name"]) for found in files.values() for each in found]
    assert len(set(names)) == len(names)
    assert {Path(line).name for line in re.findall(r"Wrote (.+)", output)} == set(FILES)
    assert (
        "create secret generic souvenirs-metrics --from-literal=token=... --namespace 123" in output
    )


def test_command__without_a_namespace_leaves_it_to_kubectl(tmp_path: Path) -> None:
    run(tmp_path, "--kubernetes")
    for manifest in chain(*written(tmp_path).values()):
        assert_valid(manifest)
        assert "namespace" not in manifest["metadata"]


def test_command__overwrites_no_manifest_without_force(tmp_path: Path) -> None:
    run(tmp_path, "--kubernetes")
    with pytest.raises(CommandError, match=r"\.yaml already exists.*--force"):
        run(tmp_path, "--kubernetes", "--namespace", "shop")
    run(tmp_path, "--kubernetes", "--namespace", "shop", "--force")
    assert written(tmp_path)["podmonitor.yaml"][0]["metadata"]["namespace"] == "shop"


@pytest.mark.parametrize("namespace", ["", "Shop", "a_b", "-a", "a-", "a.b", "a" * 64, "a\n"])
def test_command__refuses_an_invalid_namespace(tmp_path: Path, namespace: str) -> None:
    with pytest.raises(CommandError, match="must be a namespace of up to 63 lower-case"):
        run(tmp_path, "--kubernetes", f"--namespace={namespace}")
    assert [*tmp_path.iterdir()] == []


def test_command__refuses_a_namespace_for_other_files(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="add --kubernetes"):
        run(tmp_path, "--namespace=shop")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_schema__rejects_unknown_fields(kind: str) -> None:
    manifest = {**of_kind(kind)[0], "sepc": {}}
    with pytest.raises(jsonschema.ValidationError, match="sepc"):
        assert_valid(manifest)


@pytest.mark.parametrize(
    ("kind", "endpoints"), [("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")]
)
def test_monitor__scrapes_the_page_with_the_token(kind: str, endpoints: str) -> None:
    [endpoint] = only(kind)["spec"][endpoints]
    assert endpoint["path"] in PAGES
    secret = {"name": "souvenirs-metrics", "key": "token"}
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": secret}
    timeout, interval = (int(endpoint[key].rstrip("s")) for key in ("scrapeTimeout", "interval"))
    assert 0 < timeout < interval
    [relabeling] = endpoint["relabelings"]
    [target] = [rule for rule in SHIPPED["groups"][0]["rules"] if rule.get("record") == TARGET]
    assert f'up{{job=~"{relabeling["replacement"]}"}}' in target["expr"]


def test_rules__are_the_shipped_ones_and_accepted_by_prometheus(tmp_path: Path) -> None:
    spec = only("PrometheusRule")["spec"]
    assert spec == SHIPPED
    (tmp_path / "rules.json").write_text(json.dumps(spec))
    promtool = program("promtool", "prometheus")
    subprocess.run([promtool, "check", "rules", tmp_path / "rules.json"], check=True)


def test_dashboards__are_the_shipped_ones() -> None:
    shipped = {path.stem: path.read_text() for path in DASHBOARDS.glob("*.json")}
    operator = documents(manifests()["grafanadashboards.yaml"])
    assert {each["metadata"]["name"]: each["spec"]["json"] for each in operator} == shipped
    sidecar = documents(manifests()["configmaps.yaml"])
    assert {name: text for each in sidecar for name, text in each["data"].items()} == {
        f"{name}.json": text for name, text in shipped.items()
    }
    assert {each["metadata"]["labels"]["grafana_dashboard"] for each in sidecar} == {"1"}


def test_docs__have_a_deployment_that_is_restricted_and_probed() -> None:
    deployment = only("Deployment")
    assert_valid(deployment)
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    [container] = pod["containers"]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert (context["allowPrivilegeEscalation"], context["capabilities"]) == (
        False,
        {"drop": ["ALL"]},
    )
    [port] = container["ports"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        probed = container[probe]["httpGet"]
        assert probed["path"] in PAGES
        assert probed["path"] != "/metrics"  # it needs the token
        assert probed["port"] == port["name"]
    *_, command = container["command"]
    parser = souvenirs_exporter.Command().create_parser("manage.py", command)
    options = parser.parse_args(container["args"])
    assert options.address == ("0.0.0.0", port["containerPort"])
    [volume], [mount] = pod["volumes"], container["volumeMounts"]
    assert volume["name"] == mount["name"]
    [endpoint] = only("ServiceMonitor")["spec"]["endpoints"]
    secret = endpoint["authorization"]["credentials"]
    assert volume["secret"]["secretName"] == secret["name"]
    assert options.token_file == f"{mount['mountPath']}/{secret['key']}"


def test_docs__have_a_service_that_the_monitor_selects() -> None:
    service, deployment = only("Service"), only("Deployment")
    assert_valid(service)
    assert service["metadata"]["namespace"] == deployment["metadata"]["namespace"]
    pods = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= pods.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= pods.items()
    monitor = only("ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [port], [endpoint] = service["spec"]["ports"], monitor["endpoints"]
    assert port["name"] == endpoint["port"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert port["targetPort"] == container["ports"][0]["name"]


def test_docs__sites_pods_are_selected_by_the_monitor() -> None:
    monitor = only("PodMonitor")["spec"]
    [label] = monitor["selector"]["matchLabels"].items()
    assert f"    {label[0]}: {label[1]}\n" in PAGE
    assert f"- name: {monitor['podMetricsEndpoints'][0]['port']}\n" in PAGE


def test_docs__counters_come_only_from_the_sites_pods() -> None:
    [names] = re.findall(r'"name\[\]": \[(.+)\]', PAGE)
    counters = families.RECORDS_NAME, families.QUEUED_NAME, families.WRITE_ERRORS_NAME
    assert names.split(", ") == [f"{name}_total" for name in counters]
