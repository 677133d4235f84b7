"""The URLs of a site with an admin, for benchmarks/pages.py."""

from __future__ import annotations

from django.contrib.admin import AdminSite
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import User
from django.urls import include, path

from souvenirs.admin import LastSeenAdmin, LastSeenMixin, UsageAdmin
from souvenirs.models import LastSeen, Usage


class People(LastSeenMixin, UserAdmin):
    show_full_result_count = False


site = AdminSite()
site.register(User, People)
site.register(LastSeen, LastSeenAdmin)
site.register(Usage, UsageAdmin)

urlpatterns = [path("admin/", site.urls), path("", include("souvenirs_metrics.urls"))]
