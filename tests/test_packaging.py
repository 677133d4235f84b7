"""The installed files: from a wheel, and from an editable install."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

import souvenirs
from tests.conftest import ROOT, SETTINGS
from tests.test_souvenirs_dashboards import DATASOURCE, FILES, PROVIDER, contents

LIST_FILES = """
import importlib.resources, json
OPERATORS = "grafana", "prometheus"

def files(directory):
    for path in directory.iterdir():
        if path.is_dir():
            yield from (f"{path.name}/{name}" for name in files(path))
        else:
            yield path.name

root = importlib.resources.files
packages = "souvenirs", "souvenirs_metrics", *(f"souvenirs_metrics.{x}" for x in OPERATORS)
print(json.dumps({name: sorted(files(root(name))) for name in packages}))
"""

EXPECTED = {
    "souvenirs": [
        "py.typed",
        "migrations/0001_initial.py",
        "lastseen/database.py",
        "management/commands/show_usage.py",
        "templates/admin/souvenirs/usage/change_list.html",
        "static/souvenirs/usage.css",
    ],
    "souvenirs_metrics": ["py.typed", "collector.py"],
    "souvenirs_metrics.grafana": [
        "dashboards/souvenirs-active-users.json",
        "provisioning/dashboards/souvenirs.yml",
        "provisioning/datasources/prometheus.yml",
    ],
    "souvenirs_metrics.prometheus": ["mixin.libsonnet", "prometheus.yml", "souvenirs.rules.yml"],
}

pytestmark = pytest.mark.own_site


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files under version control, so that nothing is built into the working tree."""
    path = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, tracked):
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return path


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", path, checkout],
        check=True, capture_output=True,
    )  # fmt: skip
    (built,) = path.glob("*.whl")
    return built


def install(path: Path, *arguments: str | Path) -> Path:
    """The Python of a new environment in which `pip install` was run with these arguments."""
    venv.create(path)
    python = path / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, *arguments], check=True, cwd=path)
    return python


def assert_complete(python: Path) -> dict[str, list[str]]:
    """Assert that none of the expected files of each package is missing; return its files in the
    environment."""
    listing = subprocess.run(
        [python, "-c", LIST_FILES], check=True, capture_output=True, text=True, cwd=python.parent
    )
    files: dict[str, list[str]] = json.loads(listing.stdout)
    for package, names in EXPECTED.items():
        assert set(names) <= set(files[package]), package
    return files


@pytest.fixture(scope="module")
def with_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("installed") / "venv", wheel)


def test_wheel__has_types_migrations_and_operators_files(wheel: Path, with_wheel: Path) -> None:
    files = assert_complete(with_wheel)
    code = [name for name in files["souvenirs_metrics.grafana"] if name.endswith(".py")]
    assert code == ["__init__.py"]  # without the generator
    top_level = {name.split("/")[0] for name in ZipFile(wheel).namelist()}
    assert top_level == {
        "souvenirs", "souvenirs_metrics", f"django_souvenirs-{souvenirs.__version__}.dist-info",
    }  # fmt: skip


def test_wheel__has_links_that_work_on_pypi(wheel: Path, checkout: Path) -> None:
    (name,) = (n for n in ZipFile(wheel).namelist() if n.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(ZipFile(wheel).read(name))
    home = "https://github.com/appsembler/django-souvenirs"
    links = re.findall(r"\]\(([^)]+)\)", str(metadata.get_payload()))
    assert f"{home}/blob/master/docs/metrics.md" in links
    pictures = [link for link in links if link.endswith(".png")]
    assert pictures
    assert all(link.startswith(f"{home}/raw/master/") for link in pictures)
    assert [link for link in links if not link.startswith("https://")] == []
    urls = [url.split(", ")[1] for url in metadata.get_all("Project-URL", [])]
    assert metadata["Home-page"] == home or home in urls
    prefix = re.compile(rf"{home}/(?:blob|raw|tree)/master/([^#]+)")
    for match in filter(None, map(prefix.match, [*links, *urls])):
        assert (checkout / match[1]).exists(), match[1]


def test_editable_install__has_types_migrations_and_operators_files(
    checkout: Path, tmp_path: Path
) -> None:
    assert_complete(install(tmp_path / "venv", "--editable", checkout))


@pytest.mark.where((ROOT / "setup.py").exists())
def test_wheel__has_the_command_that_writes_operators_files(
    with_wheel: Path, tmp_path: Path
) -> None:
    # The dependencies come from this environment
    [packages] = with_wheel.parents[1].glob("lib/python*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    (tmp_path / "site_settings.py").write_text(SETTINGS)
    site = {"DJANGO_SETTINGS_MODULE": "site_settings", "PYTHONPATH": str(tmp_path)}
    subprocess.run(
        [with_wheel, "-W", "error", "-m", "django", "souvenirs_dashboards", "out"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"], **site}, check=True,
    )  # fmt: skip
    written = contents(tmp_path / "out")
    assert set(written) == FILES
    for name in FILES - {DATASOURCE, PROVIDER}:
        assert written[name] == (ROOT / name).read_bytes()
