"""The pages and columns of souvenirs in the Django admin. Only the admin, and sites that use it,
import this package."""

from __future__ import annotations

from django.apps import apps
from django.contrib import admin

from souvenirs.admin.lastseen import LastSeenAdmin, LastSeenFilter, LastSeenMixin
from souvenirs.admin.usage import UsageAdmin
from souvenirs.models import LastSeen, Usage

__all__ = ["LastSeenAdmin", "LastSeenFilter", "LastSeenMixin", "UsageAdmin"]

if apps.is_installed("django.contrib.admin"):
    admin.site.register(LastSeen, LastSeenAdmin)
    admin.site.register(Usage, UsageAdmin)
