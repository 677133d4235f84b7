"""What is installed: from a wheel, and from an editable install."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

import souvenirs

ROOT = Path(__file__).parent.parent

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
    ],
    "souvenirs_metrics": ["py.typed", "collector.py"],
    "souvenirs_metrics.grafana": [
        "dashboards/souvenirs-active-users.json",
        "provisioning/dashboards/souvenirs.yml",
        "provisioning/datasources/prometheus.yml",
    ],
    "souvenirs_metrics.prometheus": ["prometheus.yml", "souvenirs.rules.yml"],
}

pytestmark = pytest.mark.own_site


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git knows of, so that nothing is built into the working tree."""
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


def installed_files(install: list[str], path: Path) -> dict[str, list[str]]:
    """The files of each package after `pip install` of the arguments, in a new environment."""
    venv.create(path, with_pip=True)
    python = path / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", *install], check=True, cwd=path
    )
    listing = subprocess.run(
        [python, "-c", LIST_FILES], check=True, capture_output=True, text=True, cwd=path
    )
    files: dict[str, list[str]] = json.loads(listing.stdout)
    return files


def assert_complete(files: dict[str, list[str]]) -> None:
    for package, names in EXPECTED.items():
        assert set(names) <= set(files[package]), package


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", path, checkout],
        check=True, capture_output=True,
    )  # fmt: skip
    (built,) = path.glob("*.whl")
    return built


def test_wheel__has_types_migrations_and_operators_files(wheel: Path, tmp_path: Path) -> None:
    files = installed_files([str(wheel)], tmp_path / "venv")
    assert_complete(files)
    code = [name for name in files["souvenirs_metrics.grafana"] if name.endswith(".py")]
    assert code == ["__init__.py"]  # and not the generator
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
    assert [link for link in links if not link.startswith("https://")] == []
    urls = [url.split(", ")[1] for url in metadata.get_all("Project-URL", [])]
    assert metadata["Home-page"] == home or home in urls
    prefix = re.compile(rf"{home}/(?:blob|tree)/master/([^#]+)")
    for match in filter(None, map(prefix.match, [*links, *urls])):
        assert (checkout / match[1]).exists(), match[1]


def test_editable_install__has_types_migrations_and_operators_files(
    checkout: Path, tmp_path: Path
) -> None:
    assert_complete(installed_files(["--editable", str(checkout)], tmp_path / "venv"))
