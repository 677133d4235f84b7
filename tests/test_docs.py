"""The documentation's links, names and pictures are valid."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest
import yaml

from docs.pictures.__main__ import write

ROOT = Path(__file__).parent.parent
PAGES = sorted(chain(ROOT.glob("*.md"), ROOT.glob("docs/*.md")))

pytestmark = pytest.mark.own_site


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub creates them."""
    page = page / "README.md" if page.is_dir() else page
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links__have_existing_targets(page: Path) -> None:
    for link in re.findall(r"\]\((?![a-z]+:)([^)]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_architecture__names_existing_files() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| `")]
    named = re.findall(r"`([^`]+)`", " ".join(line.split("|")[1] for line in table))
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "souvenirs_metrics" / name).exists(), name


def test_ci__runs_the_commands_of_the_makefile() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = {step["run"] for step in steps if "run" in step}
    targets = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text())
    assert commands == {"make lint", "make test", "make gate"}
    assert {command.removeprefix("make ") for command in commands} <= set(targets)


def test_pictures__are_up_to_date_with_the_generator(tmp_path: Path) -> None:
    write(tmp_path)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in ROOT.glob("docs/pictures/*.svg")}
