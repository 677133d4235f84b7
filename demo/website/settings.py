"""Settings of the demo site. It runs on loopback only: its secret key is public.

The environment variable DEMO_DIR is the directory of its database, demo/var by default.
"""

import os
from importlib.util import find_spec
from pathlib import Path

from demo import rhythm

DIRECTORY = Path(os.environ.get("DEMO_DIR") or Path(__file__).parents[1] / "var")
DIRECTORY.mkdir(parents=True, exist_ok=True)

SECRET_KEY = "of the demo, which listens on loopback only"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "demo.website.urls"
WSGI_APPLICATION = "demo.website.wsgi.application"
USE_TZ = True
TIME_ZONE = rhythm.ZONE.key
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "articles"
LOGOUT_REDIRECT_URL = "home"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "souvenirs",
    "souvenirs_metrics",
    "demo.website",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "souvenirs.middleware.SouvenirsMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
# Adds its metrics to the same page; optional, because it supports new versions of Django later
if find_spec("django_prometheus"):
    INSTALLED_APPS.append("django_prometheus")
    MIDDLEWARE = [
        "django_prometheus.middleware.PrometheusBeforeMiddleware",
        *MIDDLEWARE,
        "django_prometheus.middleware.PrometheusAfterMiddleware",
    ]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DIRECTORY / "db.sqlite3",
        "OPTIONS": {
            # Several processes write: take the lock when a transaction starts, and wait for it
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}
SILENCED_SYSTEM_CHECKS = ["souvenirs_metrics.W001"]  # /metrics is open, on loopback
