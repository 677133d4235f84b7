"""What the documentation says about Prometheus, tested with the real one."""

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
from tests.code_blocks import block_with, write_people_app
from tests.conftest import ADMIN, site_environ

ROOT = Path(__file__).parent.parent


def texts() -> dict[str, str]:
    """All texts for users, and the programs that print some."""
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
def test_prometheus_yml__is_valid_with_its_comments_too(tmp_path: Path) -> None:
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


SCRAPERS = ROOT / "docs" / "scrapers.md"


@pytest.mark.own_site
def test_scrapers__have_equivalent_configurations(tmp_path: Path) -> None:
    """The YAML examples have Prometheus's format, and promtool checks them."""
    blocks = re.findall(r"(?ms)^```yaml\n(.+?)^```", SCRAPERS.read_text())
    collector, vmagent = map(yaml.safe_load, blocks)
    assert set(collector["exporters"]) == set(
        collector["service"]["pipelines"]["metrics"]["exporters"]
    )
    assert set(collector["receivers"]) == set(
        collector["service"]["pipelines"]["metrics"]["receivers"]
    )
    jobs = [
        job
        for config in (collector["receivers"]["prometheus"]["config"], vmagent)
        for job in config["scrape_configs"]
    ]
    token = tmp_path / "token"
    token.touch()
    for job in jobs:
        assert job["authorization"].pop("credentials_file").endswith("/souvenirs.token")
        job["authorization"]["credentials_file"] = str(token)
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
        promtool = [servers.program("promtool", "prometheus"), "check", "config", "prometheus.yml"]
        done = subprocess.run(promtool, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert jobs[0] == jobs[1]

    # Alloy has a different language for the same configuration
    (alloy,) = re.findall(r"(?ms)^```alloy\n(.+?)^```", SCRAPERS.read_text())
    said = dict(re.findall(r'(\w+)"?\s+= "([^"]+)"', alloy))
    (group,) = jobs[0]["static_configs"]
    assert group["targets"] == [said["__address__"]]
    for name in ("job_name", "scheme", "scrape_interval", "scrape_timeout"):
        assert said[name] == jobs[0][name]
    assert said["url"] == collector["exporters"]["prometheusremotewrite"]["endpoint"]
    assert said["credentials_file"].endswith("/souvenirs.token")
    forwarded = re.findall(r"forward_to +=.*prometheus\.remote_write\.(\w+)\.receiver", alloy)
    assert forwarded == re.findall(r'(?m)^prometheus\.remote_write "(\w+)"', alloy)


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
def test_history__of_the_recipe_is_complete_on_a_new_server(
    run_site: Callable[..., str], tmp_path: Path, page: str
) -> None:
    run_site(PAST)
    text = (ROOT / page).read_text().replace("\\\n", " ")
    for program in ["python manage.py souvenirs_history", "promtool"]:
        (line,) = re.findall(rf"(?m)^    ({program} .+)", text)
        line = line.replace("python manage.py", f"{shlex.quote(sys.executable)} -m django")
        subprocess.run(line, shell=True, cwd=tmp_path, env=site_environ(tmp_path), check=True)
    with servers.prometheus(data=tmp_path / "blocks") as url:
        # For two hours: an instant query reaches back five minutes only, which may just have passed
        query = {"query": 'souvenirs_active_users{window="1h",job="souvenirs"}[2h]'}
        answer = requests.get(f"{url}/api/v1/query", params=query, timeout=30).json()
    (values,) = [series["values"] for series in answer["data"]["result"]]
    newest, _ = values[-1]
    assert time.time() - float(newest) < 3600


@pytest.mark.own_site
def test_metrics__the_query_finds_deactivated_accounts(run_site: Callable[..., str]) -> None:
    printed = run_site(
        f"""
from django.contrib.auth.models import User
for name in ("ada", "bob"):
    souvenez(User.objects.create(username=name))
User.objects.create(username="eve", is_active=False)  # never active
User.objects.filter(username="bob").update(is_active=False)
{block_with("docs/metrics.md", "is_active=False")}
print(seen.count(), seen.filter(is_active=False).count())
for line in Client().get("/metrics").text.splitlines():
    if line.startswith('souvenirs_active_users{{window="30d"}}'):
        print(line.split()[1])
"""
    )
    assert printed.split() == ["2", "1", "2.0"]


@pytest.mark.own_site
@pytest.mark.parametrize("is_exempt", [True, False])
def test_deployment__exempts_the_page_from_redirects(
    run_site: Callable[..., str], is_exempt: bool
) -> None:
    settings = """
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware"]
SECURE_SSL_REDIRECT = True
"""
    if is_exempt:
        settings += block_with("docs/deployment.md", "SECURE_REDIRECT_EXEMPT")
    printed = run_site('print(Client().get("/metrics").status_code)', settings)
    assert printed.strip() == ("200" if is_exempt else "301")


@pytest.mark.own_site
def test_recording__the_admin_shows_and_sorts_by_last_seen(
    run_site: Callable[..., str], tmp_path: Path
) -> None:
    settings = write_people_app(tmp_path, block_with("docs/recording.md", "admin.site.unregister"))
    code = """
import re
from datetime import datetime, timezone
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
root = User.objects.create_superuser("root", password="pw")
client = Client()
client.force_login(root)
names = ["user%d" % n for n in range(9)]
for n, name in enumerate(names):
    user = User.objects.create(username=name)
    souvenez(user, when=datetime(2024, 1, 1 + n * 7 % 9, 12, tzinfo=timezone.utc))
count = []
for query in ("o=1", "o=6", "o=-6"):
    with CaptureQueriesContext(connection) as queries:
        page = client.get("/admin/auth/user/?" + query).text
    count.append(len(queries))
    print(*re.findall(r"/change/[^>]*>(user[0-9])<", page))
print(len(set(count)), "Jan. 9, 2024" in page)
print(len(queries) < 9)  # users: none for each
"""
    rising = [f"user{n}" for n in sorted(range(9), key=lambda n: n * 7 % 9)]
    shown = run_site(code, ADMIN + settings).splitlines()
    assert shown[0].split() == [f"user{n}" for n in range(9)]
    assert shown[1].split() == rising
    assert shown[2].split() == rising[::-1]
    assert shown[3:] == ["1 True", "True"]
