"""Sites in which the same key means different users in different requests: django-tenants on
PostgreSQL, and a router that depends on the request's tenant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import servers
from tests.conftest import site_environ
from tests.site.serving import client

pytestmark = pytest.mark.own_site

SETTINGS = """
SECRET_KEY = "of the tests"
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tenant_urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SILENCED_SYSTEM_CHECKS = ["souvenirs_metrics.W001"]
DATABASES = {{"default": {database!r}}}
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
TENANT_MODEL = "tenants.Tenant"
TENANT_DOMAIN_MODEL = "tenants.Domain"
USERS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
]
SHARED_APPS = ["django_tenants", "tests.tenants", "souvenirs_metrics", *USERS]
TENANT_APPS = [*USERS, "souvenirs"]
INSTALLED_APPS = [*SHARED_APPS, "souvenirs"]
MIDDLEWARE = [
    "django_tenants.middleware.main.TenantMainMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "souvenirs.middleware.SouvenirsMiddleware",
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
CACHES = {{"default": {{
    "BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": "cache",
}}}}
{more}
"""
URLS = """
from django.http import HttpResponse
from django.urls import include, path

class Elsewhere:
    def db_for_write(self, model, **hints):
        return "other"

class Nowhere:
    def db_for_write(self, model, **hints):
        if model.__name__ == "Souvenir":
            raise LookupError("nowhere")

def page(request):
    return HttpResponse(request.user.pk)

async def apage(request):
    return HttpResponse((await request.auser()).pk)

urlpatterns = [
    path("page/", page),
    path("apage/", apage),
    path("untouched/", lambda request: HttpResponse()),
    path("", include("souvenirs_metrics.urls")),
]
"""
START = """
import json, os, sys
import django
django.setup()
from datetime import datetime, timedelta, timezone
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.test import Client
from django_tenants.utils import schema_context
from souvenirs.control import count_active_users, last_seen, souvenez
from souvenirs.models import LastSeen, Rollup, Souvenir, Watermark

TENANTS = ["a", "b"]

def client_of(schema, name="ada"):
    client = Client(headers={"host": f"{schema}.example.org"})
    with schema_context(schema):
        client.force_login(User.objects.get(username=name))
    return client

def rows(schema):
    with schema_context(schema):
        return [souvenir.user_id for souvenir in Souvenir.objects.order_by("pk")]

def seen(schema):
    with schema_context(schema):
        return sorted(LastSeen.objects.filter(seen__isnull=False).values_list("user", flat=True))

def metrics(schema, query=""):
    client = Client(headers={"host": f"{schema}.example.org"})
    page = client.get(f"/metrics{query}").content.decode()
    lines = [line.rpartition(" ") for line in page.splitlines() if line[0] != "#"]
    return {name: float(value) for name, _, value in lines}

def show(value):
    print(json.dumps(value))
"""
MAKE = """
from tests.tenants.models import Domain, Tenant
call_command("migrate", verbosity=0)
for schema in ["public", *TENANTS]:
    tenant = Tenant(schema_name=schema, name=schema)
    tenant.save(verbosity=0)
    Domain.objects.create(domain=f"{schema}.example.org", tenant=tenant)
    with schema_context(schema):
        User.objects.create_user("ada")
with schema_context("b"):
    User.objects.create_user("grace")
    User.objects.create_user("joan")
"""


def run(directory: Path, code: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", START + code],
        cwd=directory,
        env=site_environ(directory),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def write(directory: Path, database: dict[str, Any], more: str = "") -> None:
    settings = SETTINGS.format(database=database, more=more)
    (directory / "site_settings.py").write_text(settings)
    (directory / "tenant_urls.py").write_text(URLS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A database with tenants a and b. Ada is user 1 in each; b has three users, a has one."""
    with servers.postgresql() as entry:
        entry = {**entry, "ENGINE": "django_tenants.postgresql_backend"}
        with connect(entry) as connection:
            connection.execute("CREATE DATABASE made")
        directory = tmp_path_factory.mktemp("made")
        write(directory, {**entry, "NAME": "made"})
        run(directory, MAKE)
        yield entry


def connect(entry: dict[str, Any]) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host=entry["HOST"], port=entry["PORT"], user=entry["USER"], dbname="postgres",
        autocommit=True,
    )  # fmt: skip


RunTenants = Callable[..., Any]


@pytest.fixture
def database(made: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    name = f"site_{os.urandom(4).hex()}"
    with connect(made) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE made")  # type: ignore[call-overload]
    return {**made, "NAME": name}


@pytest.fixture
def run_tenants(database: dict[str, Any], tmp_path: Path) -> RunTenants:
    """`run_tenants(code, settings="")` runs a process of the site. Returns the values that it shows
    with `show`."""

    def run_code(code: str, settings: str = "") -> Any:
        write(tmp_path, database, settings)
        lines = run(tmp_path, code).stdout.splitlines()
        return json.loads(lines[-1])

    return run_code


def test_tenant__can_be_created_in_a_transaction(run_tenants: RunTenants) -> None:
    """As Django's admin creates one: PostgreSQL cannot build indexes concurrently in a
    transaction."""
    shown = run_tenants("""
from tests.tenants.models import Tenant
with transaction.atomic():
    Tenant(schema_name="c").save(verbosity=0)
with schema_context("c"), connection.cursor() as cursor:
    show("souvenirs_when_user" in connection.introspection.get_constraints(
        cursor, Souvenir._meta.db_table))
""")
    assert shown is True


# Recording


def test_same_key__in_two_tenants_is_two_users(run_tenants: RunTenants) -> None:
    shown = run_tenants("""
for schema in TENANTS:
    assert client_of(schema).get("/page/").content == b"1"
    client_of(schema).get("/page/")
show([rows("a"), rows("b"), seen("a"), seen("b")])
""")
    assert shown == [[1], [1], [1], [1]]


def test_souvenez__remembers_users_per_tenant(run_tenants: RunTenants) -> None:
    shown = run_tenants("""
results = []
for schema in [*TENANTS, *TENANTS]:
    with schema_context(schema):
        results.append(souvenez(1))
show([results, rows("a"), rows("b")])
""")
    assert shown == [["added", "added", "rate-limited", "rate-limited"], [1], [1]]


def test_claims__are_per_tenant(run_tenants: RunTenants) -> None:
    """In the cache that processes share."""
    visit = """
with schema_context("{}"):
    show(souvenez(1))
"""
    assert run_tenants(visit.format("a")) == "added"
    assert run_tenants(visit.format("b")) == "added"
    assert run_tenants(visit.format("a")) == "rate-limited"


def test_session__of_one_tenant_is_not_valid_in_another(run_tenants: RunTenants) -> None:
    """Even if the view does not use the session: then the middleware looks it up, and remembers the
    result."""
    shown = run_tenants("""
a, b = client_of("a"), client_of("b", "joan")
stolen = Client(headers={"host": "a.example.org"})
stolen.cookies = b.cookies
for _ in range(2):
    stolen.get("/untouched/")
    b.get("/untouched/")
    a.get("/untouched/")
show([rows("a"), rows("b")])
""")
    assert shown == [[1], [3]]


def test_asgi__records_and_collects_in_the_requests_thread(
    run_tenants: RunTenants, tmp_path: Path
) -> None:
    cookies = run_tenants("""
show({schema: client_of(schema).cookies["sessionid"].value for schema in ["public", *TENANTS]})
""")
    port = servers.free_port()
    command = ["uvicorn", f"--port={port}", "--factory", "django.core.asgi:get_asgi_application"]
    with (
        servers.running(
            [sys.executable, "-m", *command],
            lambda: servers.accepts(port),
            tmp_path / "server.log",
            cwd=tmp_path,
            env=site_environ(tmp_path),
        ),
        client() as session,
    ):

        def get(path: str, schema: str) -> str:
            headers = {"Host": f"{schema}.example.org", "Cookie": f"sessionid={cookies[schema]}"}
            response = session.get(f"http://127.0.0.1:{port}{path}", headers=headers, timeout=30)
            assert response.status_code == 200
            return response.text

        for path in ("/apage/", "/page/", "/untouched/"):
            for schema in ("public", "a", "b", "a"):
                get(path, schema)
        with ThreadPoolExecutor(8) as pool:
            pages = list(pool.map(partial(get, "/metrics"), ["a", "b"] * 4))
    names = ("souvenirs_up", 'souvenirs_active_users{window="1h"}', "souvenirs_registered_users")
    for page, accounts in zip(pages, [1, 3] * 4):
        for name, value in zip(names, (1, 1, accounts)):
            assert f"\n{name} {value}.0\n" in page
    assert run_tenants('show([rows("a"), rows("b")])') == [[1], [1]]


def test_asouvenez__uses_the_callers_tenant(run_tenants: RunTenants) -> None:
    shown = run_tenants("""
from asgiref.sync import async_to_sync
from souvenirs.control import asouvenez
results = []
for schema in [*TENANTS, *TENANTS]:
    with schema_context(schema):
        results.append(async_to_sync(asouvenez)(1))
show(results)
""")
    assert shown == ["added", "added", "rate-limited", "rate-limited"]


def test_transaction__committed_in_another_tenant_does_not_affect_it(
    run_tenants: RunTenants,
) -> None:
    shown = run_tenants("""
with schema_context("b"), transaction.atomic():
    with schema_context("a"):
        souvenez(1)
        Souvenir.objects.create(user_id=1)
results = [rows("a"), rows("b"), seen("a"), seen("b")]
with schema_context("b"):
    results.append(souvenez(1))
with schema_context("a"):
    results.append(souvenez(1))
show(results)
""")
    assert shown == [[1, 1], [], [1], [], "added", "rate-limited"]


def test_rollback__user_is_recorded_again(run_tenants: RunTenants) -> None:
    shown = run_tenants("""
from souvenirs.recording.throttle import throttle
with schema_context("a"):
    try:
        with transaction.atomic():
            souvenez(1)
            raise ZeroDivisionError
    except ZeroDivisionError:
        from django.core.cache import cache
        cache.clear()  # like the expiry of the claim after a minute
    show([rows("a"), souvenez(1), last_seen(1) is not None])
""")
    assert shown == [[], "added", True]


def test_router__failure_fails_no_request(run_tenants: RunTenants) -> None:
    shown = run_tenants(
        """
from prometheus_client import REGISTRY
status = client_of("a").get("/page/").status_code
show([status, REGISTRY.get_sample_value("souvenirs_records_total", {"result": "failed"})])
""",
        'DATABASE_ROUTERS.insert(0, "tenant_urls.Nowhere")',
    )
    assert shown == [200, 1]


def test_public_schema__without_our_tables_keeps_working(
    run_tenants: RunTenants,
) -> None:
    shown = run_tenants("""
public = client_of("public")
statuses = [public.get("/page/").status_code, public.get("/untouched/").status_code]
client_of("a").get("/page/")  # not affected by the failure there
with schema_context("public"):
    User.objects.get().delete()
show([statuses, rows("a"), metrics("public")["souvenirs_up"]])
""")
    assert shown == [[200, 200], [1], 0]


# Metrics


def test_metrics__are_per_tenant(run_tenants: RunTenants) -> None:
    """Also at the same time, and if a result might be reused."""
    shown = run_tenants(
        """
client_of("a").get("/page/")
for name in ("ada", "grace"):
    client_of("b", name).get("/page/")
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    pages = list(pool.map(metrics, TENANTS * 8))
names = ["souvenirs_up", 'souvenirs_active_users{window="1h"}', "souvenirs_registered_users"]
show([[page[name] for name in names] for page in pages])
""",
        "SOUVENIRS_METRICS_MAX_AGE_SECONDS = 60",
    )
    assert shown == [[1, 1, 1], [1, 2, 3]] * 8


def test_closed_periods__are_cached_per_tenant(run_tenants: RunTenants) -> None:
    """Even if the histories of two tenants have the same revision."""
    shown = run_tenants(
        """
now = datetime.now(timezone.utc)
for schema in TENANTS:
    with schema_context(schema):
        Souvenir.objects.bulk_create(
            Souvenir(user=user, when=now - timedelta(days=days))
            for user in User.objects.all() for days in range(31)
        )
        call_command("rollup_souvenirs", verbosity=0)
        Watermark.objects.update(revision=7)
names = [
    'souvenirs_previous_calendar_growth_users{change="retained",period="day"}',
    "souvenirs_active_days_gcount",
]
show([[metrics(schema).get(name) for name in names] for schema in TENANTS * 2])
""",
        "TIME_ZONE = 'UTC'",
    )
    assert shown == [[1, 1], [3, 3]] * 2


@pytest.mark.parametrize("is_multiprocess", [False, True])
def test_process_metrics__cover_all_tenants_and_are_on_no_page(
    is_multiprocess: bool, run_tenants: RunTenants
) -> None:
    """The default registry, which a site may serve elsewhere, has them."""
    settings = """
import os
os.makedirs("metrics", exist_ok=True)
os.environ["PROMETHEUS_MULTIPROC_DIR"] = "metrics"
"""
    shown = run_tenants(
        """
from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_client.multiprocess import MultiProcessCollector
Counter("of_the_site", "Also of all tenants.").inc()
for schema in TENANTS:
    client_of(schema).get("/page/")
pages = [metrics("b"), metrics("b", "?name[]=souvenirs_records_total&name[]=of_the_site_total")]
process = REGISTRY
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    process = CollectorRegistry()
    MultiProcessCollector(process)
show([
    [name for page in pages for name in page if not name.startswith("souvenirs_")],
    [name for page in pages for name in page if name.startswith("souvenirs_records")],
    process.get_sample_value("souvenirs_records_total", {"result": "added"}),
])
""",
        settings if is_multiprocess else "",
    )
    assert shown == [[], [], 2]


def test_metrics__registered_ones_are_on_the_tenants_page_once(run_tenants: RunTenants) -> None:
    shown = run_tenants(
        """
client_of("b").get("/page/")
page = Client(headers={"host": "b.example.org"}).get("/metrics").content.decode()
show([page.count("\\nsouvenirs_up "), 'souvenirs_active_users{window="1h"} 1.0' in page])
""",
        "SOUVENIRS_METRICS_REGISTER = True",
    )
    assert shown == [1, True]


def test_scrape__restores_the_requests_connection(run_tenants: RunTenants) -> None:
    """The scrape runs in the request's thread, and other middleware continues to use that
    connection."""
    shown = run_tenants("""
from souvenirs_metrics.exposition import render

connection.set_schema("b")
souvenez(1)
with connection.cursor() as cursor:
    cursor.execute("SET myapp.tenant = 'b'")
settings = {**connection.settings_dict}
page = render().decode()
with connection.cursor() as cursor:
    cursor.execute("SELECT current_schema(), current_setting('myapp.tenant'),"
        " current_setting('statement_timeout'), current_setting('transaction_isolation')")
    left = cursor.fetchone()
show(["souvenirs_up 1.0" in page, left, settings == connection.settings_dict])
""")
    assert shown == [True, ["b", "b", "0", "read committed"], True]


def test_scrape__ends_within_the_scrapers_timeout(run_tenants: RunTenants) -> None:
    """PostgreSQL aborts statements that would otherwise wait as long as the other transaction is
    open."""
    shown = run_tenants("""
client_of("a").get("/page/")
other = connections.create_connection("default")
other.set_schema("b")
with other.cursor() as cursor:
    cursor.execute("BEGIN; LOCK souvenirs_lastseen")
    client = Client(headers={"host": "b.example.org"})
    page = client.get("/metrics", headers={"X-Prometheus-Scrape-Timeout-Seconds": "2"}).content
    cursor.execute("ROLLBACK")
other.close()
show([b"souvenirs_up 0.0" in page, metrics("b")["souvenirs_up"]])
""")
    assert shown == [True, 1]


def test_scrapes__roll_up_each_tenant(run_tenants: RunTenants) -> None:
    """Whatever the state of another tenant's history."""
    shown = run_tenants("""
hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
for schema in TENANTS:
    with schema_context(schema):
        Souvenir.objects.create(user_id=1, when=hour_ago)
with schema_context("a"), connection.cursor() as cursor:
    cursor.execute("ALTER TABLE souvenirs_watermark RENAME TO away")
for schema in TENANTS:
    metrics(schema)
with schema_context("b"):
    show(Watermark.objects.get().rolled_up > hour_ago.timestamp() - 2 * 86_400)
""")
    assert shown is True


# History

PAST = """
start = datetime(2024, 5, 14, 12, tzinfo=timezone.utc)
day = start, start + timedelta(days=1)
for schema in TENANTS:
    with schema_context(schema):
        Souvenir.objects.create(user_id=1, when=start)

def past():
    counts = []
    for schema in TENANTS:
        with schema_context(schema):
            counts.append(count_active_users(*day))
    return counts

def delete(schema):
    with schema_context(schema):
        User.objects.get(username="ada").delete()
"""


@pytest.mark.parametrize("is_rolled_up", [False, True])
def test_deletion__keeps_past_counts(is_rolled_up: bool, run_tenants: RunTenants) -> None:
    roll_up = """
for schema in TENANTS:
    with schema_context(schema):
        call_command("rollup_souvenirs", verbosity=0)
"""
    shown = run_tenants(f"""{PAST}
{roll_up if is_rolled_up else ""}
counts = [past()]
delete("a")
counts.append(past())
{roll_up}
counts.append(past())
show([*counts, rows("a"), rows("b"), seen("a"), seen("b")])
""")
    assert shown == [[1, 1]] * 3 + [[], [1], [], [1]]


def test_commands__run_for_a_tenant_and_for_all(run_tenants: RunTenants) -> None:
    shown = run_tenants(f"""{PAST}
def rolled_up():
    found = []
    for schema in TENANTS:
        with schema_context(schema):
            found.append(Rollup.objects.filter(kind=Rollup.DAY).count())
    return found

from django.core.management import execute_from_command_line
def manage(*words):
    execute_from_command_line(["manage.py", *words])

manage("tenant_command", "rollup_souvenirs", "--schema", "b", "--verbosity=0")
results = [rolled_up()]
manage("all_tenants_command", "--no-public", "rollup_souvenirs", "--verbosity=0")
results.append(rolled_up())
manage("tenant_command", "prune_souvenirs", "--schema", "a", "--older-than=30d", "--verbosity=0")
results += [rows("a"), rows("b"), past()]
show(results)
""")
    assert shown == [[0, 1], [1, 1], [], [1], [1, 1]]


def test_commands__in_a_schema_without_our_tables_say_how_to_run_them(
    run_tenants: RunTenants,
) -> None:
    shown = run_tenants("""
from django.core.management.base import CommandError
messages = []
for command in ("rollup_souvenirs", "show_usage", "souvenirs_history"):
    try:
        call_command(command)
    except CommandError as error:
        messages.append(str(error))
show(messages)
""")
    (message,) = set(shown)
    assert len(shown) == 3
    assert "The schema 'public' has no tables of souvenirs" in message
    assert "tenant_command" in message


# Checks


def check(directory: Path, database: dict[str, Any], more: str) -> str:
    write(directory, database, more)
    done = run(directory, 'call_command("check")', check=False)
    assert done.returncode == 1, done.stdout
    return done.stderr


# A type of tenants with souvenirs, and one without
TYPES = """
HAS_MULTI_TYPE_TENANTS = True
MULTI_TYPE_DATABASE_FIELD = "name"
TENANT_TYPES = {
    "public": {"APPS": SHARED_APPS, "URLCONF": ROOT_URLCONF},
    "shop": {"APPS": [*USERS, "souvenirs"], "URLCONF": ROOT_URLCONF},
    "blog": {"APPS": USERS, "URLCONF": ROOT_URLCONF},
}
"""


@pytest.mark.parametrize(
    "settings",
    ["", 'TENANT_APPS[-1] = "souvenirs.apps.SouvenirsConfig"', TYPES],
)
def test_check__accepts_the_site(settings: str, run_tenants: RunTenants) -> None:
    assert run_tenants('call_command("check"); show("fine")', settings) == "fine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            'SOUVENIRS_LAST_SEEN_STORE = {"BACKEND": "souvenirs.lastseen.redis.RedisStore",'
            ' "LOCATION": "redis://127.0.0.1/0"}',
            "RedisStore would mix up the users of tenants",
        ),
        (
            'DATABASES["replica"] = DATABASES["default"]\nSOUVENIRS_METRICS_DATABASE = "replica"',
            "(souvenirs_metrics.E010) SOUVENIRS_METRICS_DATABASE is 'replica'",
        ),
        (
            'TENANT_APPS.remove("souvenirs")\nSHARED_APPS.append("souvenirs")',
            "(souvenirs.E011) Tenants have no tables of souvenirs",
        ),
        (
            'TENANT_APPS = ["souvenirs"]',
            "(souvenirs.E011) Tenants have no tables of django.contrib.auth",
        ),
        (
            TYPES + 'TENANT_TYPES["shop"]["APPS"] = ["souvenirs"]',
            "(souvenirs.E011) Tenants have no tables of django.contrib.auth",
        ),
        (
            'DATABASES["other"] = DATABASES["default"]\n'
            'DATABASE_ROUTERS.insert(0, "tenant_urls.Elsewhere")',
            "(souvenirs.E011) The router keeps souvenirs in 'other'",
        ),
        (
            'SOUVENIRS_SCOPE = "nowhere.tenant"',
            "(souvenirs.E010) SOUVENIRS_SCOPE is 'nowhere.tenant'",
        ),
    ],
)
def test_check__refuses_settings_that_would_mix_tenants(
    settings: str, message: str, database: dict[str, Any], tmp_path: Path
) -> None:
    assert message in check(tmp_path, database, settings)


def test_redis__is_not_used_even_without_running_the_checks(run_tenants: RunTenants) -> None:
    with servers.redis() as (url, _):
        store = {"BACKEND": "souvenirs.lastseen.redis.RedisStore", "LOCATION": url}
        shown = run_tenants(
            """
response = client_of("a").get("/page/")
show([response.status_code, metrics("a")["souvenirs_up"]])
""",
            f"SOUVENIRS_LAST_SEEN_STORE = {store!r}",
        )
        assert servers.redis_cli("-u", url, "dbsize") == "0\n"
    assert shown == [200, 0]


def test_exporter__refuses_to_serve_but_prints_a_tenants_page(
    run_tenants: RunTenants, tmp_path: Path
) -> None:
    shown = run_tenants("""
import subprocess
from django.core.management.base import CommandError
for name in ("ada", "grace"):
    client_of("b", name).get("/page/")
try:
    call_command("souvenirs_exporter", "127.0.0.1:0")
except CommandError as error:
    refusal = str(error)
pages = []
for schema in TENANTS:
    command = ["souvenirs_exporter", "--once"]
    done = subprocess.run(
        [sys.executable, "-m", "django", "tenant_command", *command, "--schema", schema],
        capture_output=True, text=True, check=True,
    )
    pages.append('souvenirs_active_users{window="1h"} 2.0' in done.stdout)
show([refusal, pages])
""")
    refusal, pages = shown
    assert "each of your tenants" in refusal
    assert pages == [False, True]


# A database for each tenant, chosen by a router that knows the request

TENANCY = """
from contextvars import ContextVar

tenant = ContextVar("tenant", default="default")

def current():
    if tenant.get() == "nowhere":
        raise LookupError("no such tenant")
    return tenant.get()

class Router:
    def db_for_read(self, model, **hints):
        return tenant.get()

    db_for_write = db_for_read

def middleware(get_response):
    def handle(request):
        token = tenant.set(request.headers["X-Tenant"])
        try:
            return get_response(request)
        finally:
            tenant.reset(token)
    return handle
"""
DATABASES = """
SILENCED_SYSTEM_CHECKS = ["souvenirs_metrics.W001"]
DATABASES["b"] = {**DATABASES["default"], "NAME": "b.sqlite3"}
DATABASE_ROUTERS = ["tenancy.Router"]
INSTALLED_APPS.append("django.contrib.sessions")
ROOT_URLCONF = "tenant_urls"
MIDDLEWARE = [
    "tenancy.middleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "souvenirs.middleware.SouvenirsMiddleware",
]
SOUVENIRS_SCOPE = "tenancy.current"
"""
TWO_DATABASES = """
import json
from datetime import datetime, timedelta, timezone
from django.contrib.auth.models import User
from souvenirs.control import count_active_users
from souvenirs.models import Souvenir
from tenancy import tenant

TENANTS = ["default", "b"]
clients = {}
for name in TENANTS:
    call_command("migrate", database=name, verbosity=0)
    token = tenant.set(name)
    clients[name] = Client(headers={"X-Tenant": name})
    clients[name].force_login(User.objects.create_user("ada"))
    tenant.reset(token)
for name in [*TENANTS, *TENANTS]:
    assert clients[name].get("/page/").status_code == 200
"""


@pytest.fixture
def run_routed(tmp_path: Path, run_site: Callable[..., str]) -> RunTenants:
    (tmp_path / "tenancy.py").write_text(TENANCY)
    (tmp_path / "tenant_urls.py").write_text(URLS)

    def run_code(code: str, settings: str = "") -> Any:
        return json.loads(run_site(TWO_DATABASES + code, DATABASES + settings).splitlines()[-1])

    return run_code


def test_router_by_request__separates_users_and_metrics(run_routed: RunTenants) -> None:
    shown = run_routed("""
pages = [clients[name].get("/metrics").content.decode() for name in TENANTS]
print(json.dumps([
    [Souvenir.objects.using(name).count() for name in TENANTS],
    ['souvenirs_active_users{window="1h"} 1.0' in page for page in pages],
    ["souvenirs_records" in page for page in pages],
]))
""")
    assert shown == [[1, 1], [True, True], [False, False]]


def test_router_by_request__deletion_keeps_past_counts(run_routed: RunTenants) -> None:
    shown = run_routed("""
start = datetime(2024, 5, 14, 12, tzinfo=timezone.utc)
counts = []
for name in TENANTS:
    tenant.set(name)
    Souvenir.objects.create(user_id=1, when=start)
    if name == "default":
        User.objects.get().delete()
for name in TENANTS:
    tenant.set(name)
    counts.append([count_active_users(start, start + timedelta(days=1)), Souvenir.objects.count()])
print(json.dumps(counts))
""")
    assert shown == [[1, 0], [1, 2]]


def test_scope__failure_fails_no_request(run_routed: RunTenants) -> None:
    shown = run_routed("""
from django.http import HttpRequest, HttpResponse
from prometheus_client import REGISTRY
from souvenirs.middleware import SouvenirsMiddleware
tenant.set("nowhere")
request = HttpRequest()
request.user = User(pk=1)
response = SouvenirsMiddleware(lambda request: HttpResponse("fine"))(request)
failed = REGISTRY.get_sample_value("souvenirs_records_total", {"result": "failed"})
print(json.dumps([response.content.decode(), failed]))
""")
    assert shown == ["fine", 1]


@pytest.mark.parametrize(("settings", "errors"), [("", 0), ("del SOUVENIRS_SCOPE", 1)])
def test_router_by_request__undeclared_is_logged_once(
    settings: str, errors: int, run_routed: RunTenants
) -> None:
    shown = run_routed(
        """
import logging
handler = logging.Handler()
messages = []
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("souvenirs").addHandler(handler)
for name, key in (("default", 10), ("b", 20), ("b", 21), ("default", 22)):
    tenant.set(name)
    souvenez(User.objects.create(pk=key, username=f"user {key}"))
print(json.dumps([message for message in messages if "SOUVENIRS_SCOPE" in message]))
""",
        settings,
    )
    assert len(shown) == errors
    assert all("('b', 'default')" in message for message in shown)
