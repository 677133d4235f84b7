"""Helpers that make tests independent of the site's shape: see tests/settings.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connections, models, router

from souvenirs import databases, timestamps
from souvenirs.models import Souvenir

T = TypeVar("T")

User: Any = get_user_model()

with_databases = pytest.mark.django_db(transaction=True, databases=list(settings.DATABASES))


def ours() -> Any:
    """The connection to the database of souvenirs."""
    return connections[router.db_for_write(Souvenir)]


# A key of the right type that no user has
if isinstance(User._meta.pk, models.UUIDField):
    NOBODY: Any = UUID("00000000-0000-4000-8000-000000987654")
else:
    NOBODY = User._meta.pk.to_python("987654")


def site(when: datetime) -> datetime:
    """A datetime in the form that the site's models store."""
    return timestamps.to_site(when)


def column(seconds: float) -> datetime:
    """The value of LastSeen.seen for a unix time."""
    return databases.to_column(seconds, ours().alias)


def run(awaitable: Awaitable[T]) -> T:
    """Run the coroutine in an event loop, and close the connections of the thread that Django used
    there."""

    async def main() -> T:
        try:
            return await awaitable
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(main())
