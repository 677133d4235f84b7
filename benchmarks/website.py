"""The site that the benchmarks measure on: Django's usual middleware, sessions in the database."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

OURS = "souvenirs.middleware.SouvenirsMiddleware"
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    OURS,
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

PEOPLE_ON_A_PAGE = 20
TEMPLATE = """{% load humanize %}<!doctype html>
<title>{{ user.username }}, and {{ total|intcomma }} others</title>
<h1>Hello {{ user.get_full_name|default:user.username }}</h1>
<table>
  {% for person in people %}
    <tr class="{% cycle 'odd' 'even' %}">
      <td>{{ forloop.counter }}</td>
      <td>{{ person.username }}</td>
      <td>{{ person.email|default:"no address" }}</td>
      <td>{{ person.date_joined|date:"j F Y" }}</td>
      <td>{% if person == user %}you{% elif person.is_active %}active{% endif %}</td>
    </tr>
  {% endfor %}
</table>
"""

SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}


def configure(
    database: dict[str, Any] = SQLITE,
    redis: str | None = None,
    other_caches: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    """Make this process one of the site's. Without `redis` (a URL), the cache is local memory."""
    cache = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    if redis is not None:
        cache = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": redis}
    options = {
        "SECRET_KEY": "of the benchmarks",
        "ALLOWED_HOSTS": ["127.0.0.1"],
        "USE_TZ": True,
        "TIME_ZONE": "Europe/Paris",
        "ROOT_URLCONF": __name__,
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "INSTALLED_APPS": [
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.humanize",
            "django.contrib.messages",
            "django.contrib.sessions",
            "souvenirs",
        ],
        "MIDDLEWARE": MIDDLEWARE,
        "DATABASES": {"default": {**database, "CONN_MAX_AGE": None}},
        "CACHES": {"default": cache, **(other_caches or {})},
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": [
                        (
                            "django.template.loaders.cached.Loader",
                            [("django.template.loaders.locmem.Loader", {"page.html": TEMPLATE})],
                        )
                    ],
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ],
                },
            }
        ],
    }
    settings.configure(**{**options, **changes})
    django.setup()


def migrate() -> None:
    call_command("migrate", verbosity=0)


def make_users(number: int, first: int = 1) -> list[Any]:
    from django.contrib.auth import get_user_model

    User: Any = get_user_model()
    return list(
        User.objects.bulk_create(
            [
                User(username=f"user{n}", email=f"user{n}@example.org", password="!none")
                for n in range(first, first + number)
            ],
            batch_size=1000,
        )
    )


def sign_in(users: list[Any]) -> list[str]:
    """Create sessions as signing in through the site would, and return their keys."""
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.sessions.backends.db import SessionStore
    from django.utils.crypto import get_random_string

    store: Any = SessionStore()
    sessions = []
    for user in users:
        data = {
            SESSION_KEY: str(user.pk),
            BACKEND_SESSION_KEY: "django.contrib.auth.backends.ModelBackend",
            HASH_SESSION_KEY: user.get_session_auth_hash(),
        }
        store._session_key = get_random_string(32)
        sessions.append(store.create_model_instance(data))
    SessionStore.get_model_class().objects.bulk_create(sessions, batch_size=1000)
    return [session.session_key for session in sessions]


def page(request: HttpRequest) -> HttpResponse:
    """Do what a typical page does: authenticate (two queries), two more queries, and a template."""
    from django.contrib.auth import get_user_model
    from django.shortcuts import render

    users = get_user_model().objects
    first = request.user.pk // PEOPLE_ON_A_PAGE * PEOPLE_ON_A_PAGE
    people = users.filter(pk__gte=first).order_by("pk")[:PEOPLE_ON_A_PAGE]
    return render(request, "page.html", {"people": people, "total": users.count()})


def visit(request: HttpRequest, pk: int) -> HttpResponse:
    """A page that costs next to nothing, of a user whom the view has authenticated."""
    from django.contrib.auth import get_user_model

    request.user = get_user_model()(pk=pk)
    return HttpResponse("Hello user")


def written(request: HttpRequest, since: int) -> JsonResponse:
    """How many users were last seen since then, and how many have a souvenir."""
    from souvenirs import timestamps
    from souvenirs.lastseen import get_store
    from souvenirs.models import Souvenir

    rows = Souvenir.objects.filter(when__gte=timestamps.to_datetime(since))
    seen = get_store().count([since], time.time(), "default").since[since]
    return JsonResponse({"seen": seen, "souvenirs": rows.values("user").distinct().count()})


urlpatterns = [
    path("", page),
    path("visit/<int:pk>/", visit),
    path("written/<int:since>/", written),
]


def application() -> WSGIHandler:
    """For gunicorn: the site, with the arguments of `configure` from BENCHMARK, as JSON."""
    configure(**json.loads(os.environ["BENCHMARK"]))
    return WSGIHandler()
