"""The test site with an admin. A module that uses the `admin_site` fixture imports it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.test import Client, override_settings

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


@pytest.fixture
def admin_site(db: None) -> Iterator[None]:
    with override_settings(
        INSTALLED_APPS=[
            *settings.INSTALLED_APPS,
            "django.contrib.admin",
            "django.contrib.messages",
            "django.contrib.staticfiles",
        ],
        MIDDLEWARE=[*settings.MIDDLEWARE, "django.contrib.messages.middleware.MessageMiddleware"],
        TEMPLATES=TEMPLATES,
        STATIC_URL="/static/",
        ROOT_URLCONF="tests.admin_urls",
    ):
        yield


def signed_in(*permissions: str, is_staff: bool = True, is_active: bool = True) -> Client:
    """A client signed in as a user with these permissions of the app souvenirs."""
    user = User.objects.create(
        username=f"staff{User.objects.count()}", is_staff=is_staff, is_active=is_active
    )
    for codename in permissions:
        user.user_permissions.add(
            Permission.objects.get(codename=codename, content_type__app_label="souvenirs")
        )
    client = Client()
    client.force_login(user)
    return client
