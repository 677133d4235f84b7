"""What the documentation says about Prometheus, tried on the real one."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import yaml

from tests import servers
from tests.conftest import site_environ

ROOT = Path(__file__).parent.parent


def texts() -> dict[str, str]:
    """All that users read, and the programs that tell them something."""
    paths = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("prometheus/*.yml")]
    paths += [*ROOT.glob("demo/*.py"), *ROOT.glob("souvenirs_metrics/**/*.py")]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


@pytest.mark.own_site
def test_retention__is_the_same_everywhere() -> None:
    found = {
        name: set(re.findall(r"retention\.time=(\w+)", text))
        for name, text in texts().items()
        if "retention.time" in text
    }
    assert len(found) >= 7
    assert set().union(*found.values()) == {"5y"}, found


@pytest.mark.own_site
def test_prometheus_yml__with_its_comments_is_a_configuration_too(tmp_path: Path) -> None:
    text = (ROOT / "prometheus" / "prometheus.yml").read_text()
    uncommented = re.sub(
        r"(?m)^(    )# (scheme:|authorization:|  credentials_file:)", r"\1\2", text
    )
    (job,) = yaml.safe_load(uncommented)["scrape_configs"]
    assert job["scheme"] == "https"
    assert list(job["authorization"]) == ["credentials_file"]
    token = tmp_path / "token"
    token.touch()
    uncommented = uncommented.replace(job["authorization"]["credentials_file"], str(token))
    (tmp_path / "prometheus.yml").write_text(uncommented)
    rules = "souvenirs.rules.yml"
    (tmp_path / rules).write_text((ROOT / "prometheus" / rules).read_text())
    promtool = [servers.program("promtool", "prometheus"), "check", "config", "prometheus.yml"]
    done = subprocess.run(promtool, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PAST = """
import time
from django.contrib.auth.models import User
from souvenirs import timestamps
user = User.objects.create(username="ada")
for hours in range(30):
    souvenez(user, when=timestamps.to_datetime(time.time() - 3600 * hours))
"""


@pytest.mark.own_site
@pytest.mark.parametrize("page", ["README.md", "docs/prometheus-history.md"])
def test_history__of_the_recipe_leaves_nothing_out_on_a_new_server(
    run_site: Callable[..., str], tmp_path: Path, page: str
) -> None:
    run_site(PAST)
    text = (ROOT / page).read_text().replace("\\\n", " ")
    for program in ["python manage.py souvenirs_history", "promtool"]:
        (line,) = re.findall(rf"(?m)^    ({program} .+)", text)
        line = line.replace("python manage.py", f"{shlex.quote(sys.executable)} -m django")
        subprocess.run(line, shell=True, cwd=tmp_path, env=site_environ(tmp_path), check=True)
    with servers.prometheus(data=tmp_path / "blocks") as url:
        query = {"query": 'timestamp(souvenirs_active_users{window="1h",job="souvenirs"})'}
        answer = requests.get(f"{url}/api/v1/query", params=query, timeout=30).json()
    ((_, newest),) = [series["value"] for series in answer["data"]["result"]]
    assert time.time() - float(newest) < 3600  # a server that is asked now shows five minutes
