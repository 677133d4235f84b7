"""The Usage page of the admin, and its table as CSV."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_safe

import souvenirs.admin.tables as tables
from souvenirs import moment, reports, scopes
from souvenirs.history import counting
from souvenirs.isolation import repeatable_read
from souvenirs.models import Souvenir
from souvenirs.selection import DEFAULT_PERIOD, Selection, SelectionError, select
from souvenirs.spreadsheets import csv_lines

PERIODS = {
    "day": _("Days"),
    "week": _("Weeks"),
    "month": _("Months"),
    "quarter": _("Quarters"),
    "year": _("Years"),
}
WINDOWS = {
    "1h": _("Last hour"),
    "1d": _("Last 24 hours"),
    "7d": _("Last 7 days"),
    "30d": _("Last 30 days"),
}
PARAMETERS = ("period", "start", "end", "recent")
MOST_COHORTS = 24
MOST_AGES = 12


class UsageAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The Usage page, for staff with the permission souvenirs.view_usage."""

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        page = wrap(self.changelist_view)
        page.model_admin = self  # type: ignore[attr-defined]  # as in Django's pages
        return [
            path("", page, name="souvenirs_usage_changelist"),
            path("csv/", wrap(self.csv_view), name="souvenirs_usage_csv"),
        ]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return scopes.has_table(Souvenir) and super().has_view_permission(request, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return require_safe(self._page)(request, extra_context or {})

    def csv_view(self, request: HttpRequest) -> HttpResponse:
        return require_safe(self._csv)(request)

    def _page(self, request: HttpRequest, extra_context: dict[str, Any]) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "title": _("Usage"),
            "opts": self.opts,
            "periods": PERIODS.items(),
            "period": request.GET.get("period") or DEFAULT_PERIOD,
            "parameters": {name: request.GET.get(name, "") for name in PARAMETERS},
            **extra_context,
        }
        status = 200
        try:
            context.update(page_context(select(request.GET.dict())))
        except SelectionError as error:
            context["error"], status = str(error), 400
        request.current_app = self.admin_site.name
        name = "admin/souvenirs/usage/change_list.html"
        return TemplateResponse(request, name, context, status=status)

    def _csv(self, request: HttpRequest) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            selection = select(request.GET.dict())
            found = read_reports(selection)
        except SelectionError as error:
            return HttpResponse(f"{error}\n", "text/plain", status=400)
        lines = csv_lines(tables.CSV_HEADERS, tables.csv_rows(selection.period, found))
        response = HttpResponse("".join(lines), "text/csv; charset=utf-8")
        name = f"usage-by-{selection.period}.csv"
        response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return response


def read_reports(selection: Selection, ages: int | None = None) -> list[tables.Report]:
    """Return the usage and growth of each period, with retention up to `ages` periods later. Takes
    a fixed number of queries."""
    found = selection.read(partial(reports.calendar_overview, selection.period, ages=ages))
    if not found:
        raise SelectionError(_("There are no periods between the start and the end."))
    return found


def page_context(selection: Selection) -> dict[str, Any]:
    """Return the template's context. The history is read from one snapshot, if possible.

    Raises SelectionError.
    """
    period = selection.period
    with repeatable_read(router.db_for_read(Souvenir)):
        windows = moment.read_windows(selection.now)
        first = counting.first_recorded()
        found = read_reports(selection, MOST_AGES)
    rows = tables.rows_of(period, found)
    cohorts = tables.cohorts_of(period, found[-MOST_COHORTS:])
    named = {name: getattr(selection, name) for name in PARAMETERS}
    return {
        "windows": [(WINDOWS[each.name], each) for each in windows],
        "has_record": first is not None,
        "rows": rows,
        "newest_first": rows[::-1],
        "active_chart": tables.active_chart(rows),
        "growth_chart": tables.growth_chart(rows),
        "legend": [
            (name, tables.label_of(name))
            for name in (tables.NEW, tables.RESURRECTED, tables.CHURNED)
        ],
        "has_partial": not all(row.complete for row in rows),
        "cohorts": cohorts[::-1],
        "ages": range(max((len(cohort.cells) for cohort in cohorts), default=0)),
        "csv_query": urlencode({name: value for name, value in named.items() if value}),
    }
