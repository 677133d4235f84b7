"""What the Django admin shows of souvenirs. Only the admin itself, and sites that have it, import
this package."""

from __future__ import annotations

from django.apps import apps
from django.contrib import admin

from souvenirs.admin.lastseen import LastSeenAdmin, LastSeenFilter, LastSeenMixin
from souvenirs.models import LastSeen

__all__ = ["LastSeenAdmin", "LastSeenFilter", "LastSeenMixin"]

if apps.is_installed("django.contrib.admin"):
    admin.site.register(LastSeen, LastSeenAdmin)
