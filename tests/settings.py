"""The settings of the tests. The environment chooses the site's shape; the default is SQLite and
Django's defaults:

DATABASE=postgresql or mariadb: a real server, which is started for the run.
SHAPE, of these words:
    uuid or string: the type of the users' key (models in tests/users)
    naive: USE_TZ is False
    routed: souvenirs are in another database than users
"""

import os

from tests import servers

SHAPE = set(os.environ.get("SHAPE", "").split())
if unknown := SHAPE - {"uuid", "string", "naive", "routed"}:
    raise ValueError(f"SHAPE has unknown words: {unknown}")

SECRET_KEY = "of the tests"
SOUVENIRS_ENABLED = True  # as pytest leaves it off in the tests of sites
SOUVENIRS_FLUSH_SECONDS = 0  # tests of the writer set it
USE_TZ = "naive" not in SHAPE
TIME_ZONE = "Europe/Paris"
ROOT_URLCONF = "tests.urls"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
ALLOWED_HOSTS = ["*"]
SILENCED_SYSTEM_CHECKS = ["souvenirs_metrics.W001"]  # its /metrics is open

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "tests.users",
    "tests.segments",
    "souvenirs",
    "souvenirs_metrics",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "souvenirs.middleware.SouvenirsMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]

DATABASES = {"default": servers.database(os.environ.get("DATABASE", "sqlite"))}
if "routed" in SHAPE:
    DATABASES["history"] = {**DATABASES["default"], "TEST": {"NAME": "test_history"}}
    if "sqlite" in DATABASES["history"]["ENGINE"]:
        DATABASES["history"]["TEST"] = {}
    DATABASE_ROUTERS = ["tests.users.routers.History"]

if "uuid" in SHAPE:
    AUTH_USER_MODEL = "users.UuidUser"
if "string" in SHAPE:
    AUTH_USER_MODEL = "users.StringUser"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
SIMPLE_JWT = {"SIGNING_KEY": "of the tests, and as long as tokens want it"}
