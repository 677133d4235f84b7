"""The URLs of a site with a custom admin site, and the metrics."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import User
from django.urls import include, path

from souvenirs.admin import LastSeenAdmin, LastSeenMixin, UsageAdmin
from souvenirs.models import LastSeen, Usage


class People(LastSeenMixin, UserAdmin):
    list_per_page = 4
    list_editable = ("first_name",)

    def log_change(self, *args: Any) -> Any:
        """Does nothing: the test database has no table for it."""


site = AdminSite(name="backstage")
site.register(User, People)
site.register(LastSeen, LastSeenAdmin)
site.register(Usage, UsageAdmin)

urlpatterns = [path("backstage/", site.urls), path("", include("souvenirs_metrics.urls"))]
