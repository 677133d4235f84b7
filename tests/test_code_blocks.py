"""The blocks of code in the documents: they run, or at least are what their readers take."""

from __future__ import annotations

import ast
import asyncio
import configparser
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from datetime import date, datetime, timedelta
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from django.conf import settings as site_settings
from django.core.asgi import get_asgi_application
from django.core.checks import run_checks
from django.core.management import call_command, get_commands, load_command_class
from django.core.management.base import CommandParser
from django.test import Client, override_settings

from souvenirs import reports, timestamps
from souvenirs.backfill import readers
from souvenirs.checks import TAG
from souvenirs.control import souvenez
from souvenirs.models import Souvenir
from tests import servers
from tests.code_blocks import FENCED, ROOT, block_with, blocks, write_people_app
from tests.conftest import ADMIN, site_environ
from tests.failing import in_postgresql, new_database
from tests.people import User, with_databases

PAGES = sorted(chain(ROOT.glob("*.md"), ROOT.glob("docs/*.md")))

PYTHON = (
    "from ", "import ", "def ", "class ", "@", "#", "path(", "urlpatterns", "souvenez",
    "call_command", "active_users_between", "INSTALLED_APPS", "MIDDLEWARE", "SOUVENIRS_",
    "SECURE_", "PRIMARY", "TENANT_APPS", "YEAR", "if last_seen", "other.delete",
)  # fmt: skip
QUERY = ("max", "sum", "histogram_quantile", "1 - max")
# They take no options of ours: what follows is another command
WRAPPERS = {"tenant_command", "all_tenants_command"}


def all_blocks() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        yield from ((name, block) for block in blocks(name))


def yaml_blocks(page: Path) -> Iterator[dict[str, Any]]:
    for language, block in FENCED.findall(page.read_text()):
        if language == "yaml":
            yield from yaml.safe_load_all(block)


def run_block(code: str, names: dict[str, Any]) -> str:
    """Return what it prints."""
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue()


# Commands


def commands() -> list[list[str]]:
    """The command lines of management commands, in blocks and in the text, as lists of words."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lines = re.findall(r"manage\.py +([a-z_]+ .*|[a-z_]+$)", text, re.MULTILINE)
        in_text = re.findall(r"`(?:python )?manage\.py\s+([^`]+)`", text)
        blocked = [line for line in lines if "`" not in line]
        for line in [*blocked, *(" ".join(each.split()) for each in in_text)]:
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|>&;")
            lexer.whitespace_split = True
            words = []
            for word in lexer:
                if word[0] in "|>&;":
                    break
                words.append(word)
            found.append(words)
    return found


def test_commands__exist_and_have_these_options() -> None:
    names = set()
    for name, *args in commands():
        if name in WRAPPERS:
            (name,) = [arg for arg in args if arg in get_commands()]
            args = []
        parser: CommandParser = load_command_class(get_commands()[name], name).create_parser(
            "manage.py", name
        )
        parser.parse_args(args)
        names.add(name)
    ours = {
        name for name, app in get_commands().items() if app in ("souvenirs", "souvenirs_metrics")
    }
    assert ours <= names


# Python


def python_blocks() -> list[tuple[str, str]]:
    found = []
    for page, block in all_blocks():
        if not block.startswith(PYTHON) or "://" in block.split("\n")[0]:
            continue
        # Of a page's recipe for a shell and for Python at the same time
        found.append((page, re.sub(r"(?m)^python manage\.py .+$", "", block)))
    return found


def parse(code: str) -> ast.Module:
    return compile(code, "a page", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_python__is_valid_and_imports_what_is_there() -> None:
    found = python_blocks()
    assert len(found) > 35
    for page, block in found:
        try:
            tree = parse(block)
        except SyntaxError as error:
            pytest.fail(f"{page}: {error}:\n{block}")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("souvenirs"):
                module = import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), block


def test_settings__are_all_in_the_page_of_settings() -> None:
    code = "".join(
        (ROOT / name / "conf.py").read_text() for name in ("souvenirs", "souvenirs_metrics")
    )
    rows = re.findall(r"(?m)^\| (SOUVENIRS_[A-Z_]+) \|", (ROOT / "docs/settings.md").read_text())
    assert len(rows) == len(set(rows))
    assert set(rows) == set(re.findall(r'"(SOUVENIRS_[A-Z_]+)"', code))


# README


SIGNED_IN = """
from django.contrib.auth.models import User
user = User.objects.create(username="ada")
client = Client()
client.force_login(user)
client.get("/home/")
"""


@pytest.fixture
def run_installed(run_site: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """`run_site` of a site that is made as README.md says."""
    installed, middleware = block_with("README.md", "MIDDLEWARE = [").split("\n\n", 1)
    urls = block_with("README.md", "urlpatterns = [")
    (tmp_path / "site_urls.py").write_text(
        "from django.http import HttpResponse\n"
        "from django.urls import include, path\n\n"
        + urls.replace("...,", 'path("home/", lambda request: HttpResponse("Welcome")),')
    )
    django = ["auth", "contenttypes", "sessions"]
    settings = "\n".join(
        [
            f"INSTALLED_APPS = {[f'django.contrib.{name}' for name in django]}",
            installed,
            middleware.replace("...,", '"django.contrib.sessions.middleware.SessionMiddleware",'),
            'ROOT_URLCONF = "site_urls"',
        ]
    )

    def run(code: str, **environ: str) -> str:
        return run_site(code, settings, **environ)

    return run


@pytest.mark.own_site
def test_readme__shows_the_first_number(run_installed: Callable[..., str]) -> None:
    documented = block_with("README.md", "| grep ^souvenirs_active_users")
    command, *lines = documented.splitlines()
    (name,) = re.findall(r"grep \^(\w+)$", command)
    (report,) = re.findall(r"show_usage (.+)", (ROOT / "README.md").read_text())[:1]
    printed = run_installed(
        f"""{SIGNED_IN}
for line in client.get("/metrics").text.splitlines():
    if line.startswith("{name}"):
        print(line)
call_command("show_usage", *{report.split()!r}, "--format=csv")
"""
    ).splitlines()
    assert printed[: len(lines)] == lines
    header, today = printed[len(lines) :]
    assert dict(zip(header.split(","), today.split(",")))["active"] == "1"


@pytest.mark.own_site
def test_readme__its_python_runs(run_installed: Callable[..., str]) -> None:
    block = block_with("README.md", "await asouvenez")
    printed = run_installed(
        f"""{SIGNED_IN}
import ast, asyncio
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
now = datetime.now(timezone.utc)
start, end, login_time = now - timedelta(days=3), now, now - timedelta(days=2)
request = SimpleNamespace(user=user)
names = globals()
code = compile({block!r}, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
asyncio.run(eval(code, names))
print(count_active_users(start, end), *active_users_between(start, end), last_seen(user) <= now)
print(*with_last_seen(User.objects.all()).filter(last_seen__gte=start))
""",
        DJANGO_ALLOW_ASYNC_UNSAFE="1",
    )
    assert printed.split() == ["1", "ada", "True", "ada"]


def test_readme__make_has_these_targets() -> None:
    targets = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text())
    named = chain.from_iterable(
        re.findall(r"(?:`|^    )make ([a-z]+)", page.read_text(), re.MULTILINE) for page in PAGES
    )
    assert {"demo", "test", "gate"} <= {*named} <= {*targets}


# Prometheus


def test_queries__are_what_prometheus_takes(tmp_path: Path) -> None:
    queries = [
        query
        for _, block in all_blocks()
        if block.startswith(QUERY)
        for query in re.split(r"\n(?=(?:max|sum) by|job)", block.strip())
    ]
    assert len(queries) > 20
    rules = [{"record": f"query:number_{n}", "expr": query} for n, query in enumerate(queries)]
    (tmp_path / "rules.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]})
    )
    promtool = servers.program("promtool", "prometheus")
    done = subprocess.run(
        [promtool, "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_jobs__are_what_prometheus_takes(tmp_path: Path) -> None:
    found = [each for page in PAGES for each in yaml_blocks(page) if [*each] == ["scrape_configs"]]
    assert len(found) > 7
    (tmp_path / "token").touch()
    jobs = [job for document in found for job in document["scrape_configs"]]
    for number, job in enumerate(jobs):
        job["job_name"] += f"-{number}"  # of which a configuration has each only once
        if "authorization" in job:
            job["authorization"]["credentials_file"] = str(tmp_path / "token")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": jobs}))
    promtool = [servers.program("promtool", "prometheus"), "check", "config", "prometheus.yml"]
    done = subprocess.run(promtool, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Deployment


def test_gunicorn__empties_the_directory_and_forgets_workers_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "metrics"
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
    config: dict[str, Any] = {}
    exec(block_with("docs/deployment.md", "def on_starting"), config)
    config["on_starting"](None)
    files = [directory / name for name in ("counter_7.db", "gauge_liveall_7.db", "counter_8.db")]
    for file in files:
        file.touch()
    config["child_exit"](None, SimpleNamespace(pid=7))
    assert {*directory.iterdir()} == {files[0], files[2]}
    config["on_starting"](None)
    assert [*directory.iterdir()] == []


def test_asgi__wraps_the_application() -> None:
    names = {"get_asgi_application": get_asgi_application}
    run_block(block_with("docs/deployment.md", "import flush_at_shutdown"), names)
    sent = []

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup" if not sent else "lifespan.shutdown"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    application: Any = names["application"]
    asyncio.run(application({"type": "lifespan"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_service__is_a_unit_with_what_the_exporter_takes() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(block_with("docs/deployment.md", "[Unit]"))
    assert unit.sections() == ["Unit", "Service", "Install"]
    credential, _ = unit["Service"]["LoadCredential"].split(":")
    assert f"${{CREDENTIALS_DIRECTORY}}/{credential}" in unit["Service"]["ExecStart"]


@pytest.mark.own_site
def test_role__may_read_the_metrics_and_roll_up(
    run_site: Callable[..., str], postgresql: dict[str, Any]
) -> None:
    entry = new_database(postgresql)
    role = f"souvenirs_exporter_{entry['NAME']}"

    def settings(user: str) -> str:
        return f"DATABASES = { ({'default': {**entry, 'USER': user}})!r}\n"

    run_site(
        """
from datetime import datetime, timedelta, timezone
from django.contrib.auth.models import User
ada = User.objects.create(username="ada")
souvenez(ada, when=datetime.now(timezone.utc) - timedelta(days=2))
souvenez(ada)
""",
        settings(entry["USER"]),
    )
    page = "docs/deployment.md"
    reading, rolling_up = block_with(page, "CREATE ROLE"), block_with(page, "GRANT INSERT, UPDATE")
    with in_postgresql(entry) as session:
        session.execute(reading.replace("souvenirs_exporter", role))
    printed = run_site("call_command('souvenirs_exporter', '--once')", settings(role))
    assert "souvenirs_up 1.0" in printed
    assert 'souvenirs_active_users{window="7d"} 1.0' in printed
    with in_postgresql(entry) as session:  # it may read what it exports, that is enough
        session.execute(f"REVOKE ALL ON django_migrations FROM {role}")
    assert "souvenirs_up 1.0" in run_site(
        "call_command('souvenirs_exporter', '--once')", settings(role)
    )
    with in_postgresql(entry) as session:
        session.execute(rolling_up.replace("souvenirs_exporter", role))
    printed = run_site(
        """
call_command("rollup_souvenirs", verbosity=0)
call_command("souvenirs_exporter", "--once")
""",
        settings(role),
    )
    assert "souvenirs_rollup_lag_seconds 0.0" in printed
    assert 'souvenirs_previous_calendar_active_users{period="day"}' in printed


# The admin


@pytest.mark.own_site
def test_admin__the_mixin_shows_last_seen_and_another_site_has_our_pages(
    run_site: Callable[..., str], tmp_path: Path
) -> None:
    settings = write_people_app(
        tmp_path,
        block_with("docs/admin.md", "import LastSeenMixin"),
        "my_site = admin.AdminSite('mine')\n"
        + block_with("docs/admin.md", "my_site.register")
        + 'urlpatterns += [path("mine/", my_site.urls)]\n',
    )
    code = """
from datetime import datetime, timezone
from django.contrib.auth.models import User
root = User.objects.create_superuser("root", password="pw")
client = Client()
client.force_login(root)
souvenez(root, when=datetime(2024, 1, 9, 12, tzinfo=timezone.utc))
print("Jan. 9, 2024" in client.get("/admin/auth/user/").text)
for page in ("usage", "lastseen"):
    print(client.get(f"/mine/souvenirs/{page}/").status_code)
"""
    assert run_site(code, ADMIN + settings).split() == ["True", "200", "200"]


# Past activity


def test_backfill__reads_the_examples() -> None:
    page = "docs/backfill.md"
    examples = {
        "csv": (block_with(page, "username,page,when"), ["ana", "bob"]),
        "jsonl": (block_with(page, '{"user_id": 12'), ["12", "13"]),
        "access-log": (
            block_with(page, "intranet.example.org:80").split("\n\n$")[0],
            ["ana", "ana"],
        ),
    }
    noon = datetime.fromisoformat("2024-01-31T12:00:00+01:00").timestamp()
    for name, (text, users) in examples.items():
        entries = [*readers.READERS[name](text.splitlines(keepends=True))]
        assert [str(entry.user) for entry in entries] == users
        assert all(abs(entry.when - noon) <= 3600 for entry in entries)


class Orders:
    """As far as recipes use it, a queryset of a site's orders."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def order_by(self, *names: str) -> Orders:
        return self

    def values_list(self, *names: str) -> Orders:
        return self

    def iterator(self) -> Iterator[Any]:
        return iter(self.rows)

    def filter(self, *, placed__gte: datetime, placed__lt: datetime) -> Orders:
        return Orders([row for row in self.rows if placed__gte <= row[2] < placed__lt])

    def count(self) -> int:
        return len(self.rows)


ORDERED = timestamps.to_site(datetime.fromisoformat("2024-01-31T12:00:00+01:00"))


@with_databases
def test_backfill__loads_what_is_elsewhere() -> None:
    user = User.objects.create(username="ana")
    order = SimpleNamespace(objects=Orders([(1, user.pk, ORDERED), (2, user.pk, ORDERED)]))
    printed = run_block(block_with("docs/backfill.md", "import Entry, load"), {"Order": order})
    assert printed == "1 1 Counter()\n"
    assert Souvenir.objects.count() == 1


# Reports and counts


@with_databases
def test_reports__have_what_the_examples_show() -> None:
    user = User.objects.create(username="ana")
    souvenez(user, when=datetime.fromisoformat("2016-01-20T12:00:00+01:00"))
    page, names = "docs/reports.md", {"date": date}
    printed = run_block(block_with(page, "import calendar_monthly_usage"), names).splitlines()
    assert len(printed) == 12
    assert printed[0] == "2016-01 1"
    assert run_block(block_with(page, "import active_days, growth"), names)
    (shape,) = [block for block in blocks(page) if block.startswith("{\n")]
    (row,) = reports.calendar_monthly_usage(date(2016, 1, 1), date(2016, 2, 1))
    documented = eval(shape, {"datetime": datetime})
    assert {key: [*row[key]] for key in row} == {key: [*documented[key]] for key in documented}
    assert row["labels"] == documented["labels"]


@with_databases
def test_reports__commands_take_python_values() -> None:
    names = {"call_command": call_command, "date": date, "timedelta": timedelta}
    run_block(block_with("docs/reports.md", 'call_command("show_usage"'), names)


@with_databases
def test_reports__of_a_function_have_what_it_adds(settings: Any) -> None:
    User.objects.create(username="ana")
    order = SimpleNamespace(objects=Orders([(1, 1, ORDERED)]))
    code = block_with("docs/reports.md", "def usage_and_orders")
    names: dict[str, Any] = {"Order": order}
    run_block(code, names)
    globals()["usage_and_orders"] = names["usage_and_orders"]
    settings.SOUVENIRS_USAGE_REPORTS_FUNCTION = f"{__name__}.usage_and_orders"
    rows = reports.calendar_monthly_usage(date(2024, 1, 1), date(2024, 3, 1))
    assert [row["usage"]["orders"] for row in rows] == [1, 0]


@with_databases
def test_history__counts_as_the_example_does() -> None:
    user = User.objects.create(username="ana")
    souvenez(user, when=datetime.fromisoformat("2024-01-31T12:00:00+01:00"))
    bounds = {
        name: datetime.fromisoformat(f"2024-{month}-01T00:00:00+01:00")
        for name, month in (("start", "01"), ("end", "02"))
    }
    code = block_with("docs/history.md", "import active_users_between, count_active_users")
    names: dict[str, Any] = dict(bounds)
    run_block(code, names)
    assert names["count_active_users"](**bounds) == 1
    assert [*names["active_users_between"](**bounds)] == [user]


@with_databases
def test_json__is_as_the_example_shows() -> None:
    souvenez(User.objects.create(username="ana"))
    command, *lines = block_with("docs/usage-json.md", "$ curl").splitlines()
    (path,) = re.findall(r"'https://www\.example\.org(/[^']+)'", command)

    def keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: keys(each) for key, each in value.items()}
        return [*map(keys, value)] if isinstance(value, list) else None

    assert keys(Client().get(path).json()) == keys(json.loads("".join(lines)))


# Tests of a site


@with_databases
def test_recording__its_test_of_a_site_passes(fresh_souvenirs: None) -> None:
    names: dict[str, Any] = {}
    run_block(block_with("docs/recording.md", 'usefixtures("fresh_souvenirs")'), names)
    names["test_page__records_the_user"](Client(), User.objects.create(username="ana"))


# Settings


def test_scaling__its_store_passes_the_checks() -> None:
    names: dict[str, Any] = {}
    run_block(block_with("docs/scaling.md", "SOUVENIRS_LAST_SEEN_STORE = {"), names)
    with override_settings(SOUVENIRS_LAST_SEEN_STORE=names["SOUVENIRS_LAST_SEEN_STORE"]):
        assert run_checks(tags=[TAG]) == []


@pytest.mark.own_site
def test_scaling__the_prefix_is_printed(run_site: Callable[..., str], tmp_path: Path) -> None:
    run_site("")
    (line,) = re.findall(
        r"(?m)^    python manage\.py (shell .+)", (ROOT / "docs/scaling.md").read_text()
    )
    command = [sys.executable, "-m", "django", *shlex.split(line)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=site_environ(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r"souvenirs\.[0-9a-f]{12}\.\n", done.stdout)


# Its groups are those of Django's own user model
@pytest.mark.where(not {"uuid", "string", "routed"} & site_settings.SHAPE)
def test_segments__of_the_example_pass_the_checks() -> None:
    names: dict[str, Any] = {}
    run_block(block_with("docs/segments.md", "SOUVENIRS_METRICS_SEGMENTS = {"), names)
    declared = {name: value for name, value in names.items() if name.startswith("SOUVENIRS_")}
    assert len(declared) == 2
    with override_settings(**declared):
        assert run_checks(tags=[TAG]) == []
