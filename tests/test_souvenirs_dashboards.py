"""The command that writes the files for Grafana and Prometheus, run from the source tree
(test_packaging runs it from a wheel)."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.resources import files
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from tests.servers import program

pytestmark = pytest.mark.own_site

DATASOURCE = "grafana/provisioning/datasources/prometheus.yml"
PROVIDER = "grafana/provisioning/dashboards/souvenirs.yml"
FILES = {
    DATASOURCE,
    PROVIDER,
    "grafana/dashboards/souvenirs-active-users.json",
    "grafana/dashboards/souvenirs-exporter.json",
    "grafana/dashboards/souvenirs-growth.json",
    "grafana/dashboards/souvenirs-segments.json",
    "prometheus/mixin.libsonnet",
    "prometheus/prometheus.yml",
    "prometheus/souvenirs.rules.yml",
}


def run(directory: Path | str, *args: str) -> str:
    output = StringIO()
    call_command("souvenirs_dashboards", str(directory), *args, stdout=output)
    return output.getvalue()


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def packaged(name: str) -> bytes:
    package, _, path = name.partition("/")
    return files(f"souvenirs_metrics.{package}").joinpath(path).read_bytes()


def value(directory: Path, name: str, key: str) -> str:
    """The value of a key in a YAML file, in which values are written as JSON."""
    [text] = re.findall(rf"(?m)^ +{key}: (.+)$", (directory / name).read_text(encoding="utf-8"))
    found: str = json.loads(text)
    return found


def test_command__writes_all_files(tmp_path: Path) -> None:
    output = run(tmp_path / "new" / "site")
    written = contents(tmp_path / "new" / "site")
    assert set(written) == FILES
    for name in FILES - {DATASOURCE, PROVIDER}:
        assert written[name] == packaged(name)
    said = re.findall(r"(?m)^Wrote (.+)$", output)
    assert sorted(said) == sorted(str(tmp_path / "new" / "site" / name) for name in FILES)


def test_command__writes_files_that_prometheus_accepts(tmp_path: Path) -> None:
    run(tmp_path)
    config = tmp_path / "prometheus" / "prometheus.yml"
    subprocess.run([program("promtool", "prometheus"), "check", "config", config], check=True)


def test_command__provisions_its_directory_and_the_data_source(tmp_path: Path) -> None:
    run(tmp_path)
    assert value(tmp_path, DATASOURCE, "url") == "http://localhost:9090"
    assert value(tmp_path, PROVIDER, "path") == str(tmp_path / "grafana/dashboards")
    run(tmp_path, "--force", "--datasource-url", "https://prometheus.example.org/a?b='c'")
    assert value(tmp_path, DATASOURCE, "url") == "https://prometheus.example.org/a?b='c'"


def test_command__paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = run("here")
    assert value(tmp_path / "here", PROVIDER, "path") == str(tmp_path / "here/grafana/dashboards")
    assert f"GF_PATHS_PROVISIONING={tmp_path}/here/grafana/provisioning\n" in output


def test_command__in_a_directory_with_a_strange_name(tmp_path: Path) -> None:
    directory = tmp_path / "my \"site\"\\ 'é': $HOME"
    output = run(directory)
    # Grafana replaces $$ with $, and takes $HOME for a variable
    path = value(directory, PROVIDER, "path").replace("$$", "\0")
    assert "$" not in path
    assert path.replace("\0", "$") == str(directory / "grafana/dashboards")
    [command] = re.findall(r"GF_PATHS_PROVISIONING=.+", output)
    shell = subprocess.run(
        ["sh", "-c", f'{command}; printf %s "$GF_PATHS_PROVISIONING"'],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert shell.stdout == str(directory / "grafana/provisioning")


@pytest.mark.parametrize("name", sorted(FILES))
def test_command__overwrites_nothing_without_force(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(CommandError, match=rf"{re.escape(name)} already exists.*--force"):
        run(tmp_path)
    assert contents(tmp_path) == {name: b"mine"}
    run(tmp_path, "--force")
    assert set(contents(tmp_path)) == FILES
    assert (tmp_path / name).read_text() != "mine"


def test_command__does_not_overwrite_a_broken_link(tmp_path: Path) -> None:
    link = tmp_path / DATASOURCE
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CommandError, match="already exists"):
        run(tmp_path)
    assert contents(tmp_path) == {}


def test_command__writes_nothing_if_a_directory_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "prometheus").write_text("mine")
    with pytest.raises(CommandError, match=r"Cannot write .*prometheus: \w"):
        run(tmp_path)
    assert contents(tmp_path) == {"prometheus": b"mine"}


@pytest.mark.parametrize(
    "url",
    ["localhost:9090", "prometheus", "", "ftp://a.example", "http://", "http://[a", "http://a b/"],
)
def test_command__refuses_an_invalid_url(tmp_path: Path, url: str) -> None:
    with pytest.raises(CommandError, match="like http://localhost:9090, not"):
        run(tmp_path, f"--datasource-url={url}")
    assert contents(tmp_path) == {}
