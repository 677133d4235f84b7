"""Last-seen times in the admin: a column for the site's list of users, and a separate list."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ORDER_VAR, ChangeList
from django.contrib.auth import get_user_model
from django.db.models import F, Q
from django.db.models.expressions import OrderBy
from django.http import HttpRequest
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from souvenirs import control, scopes, timestamps
from souvenirs.lastseen import get_store
from souvenirs.lastseen.inactive import SEEN, never_seen, not_seen_since, seen_since
from souvenirs.models import LastSeen
from souvenirs.users import has_constraint

HOUR, DAY = 3_600, 86_400
NEVER = "never"
COLUMN = "when_last_seen"

Condition = Callable[[float, str], Q]
CHOICES: dict[str, tuple[Any, Condition, int]] = {
    "1h": (_("Within the last hour"), seen_since, HOUR),
    "1d": (_("Within the last 24 hours"), seen_since, DAY),
    "7d": (_("Within the last 7 days"), seen_since, 7 * DAY),
    "30d": (_("Within the last 30 days"), seen_since, 30 * DAY),
    "not-30d": (_("Not in the last 30 days"), not_seen_since, 30 * DAY),
    "not-90d": (_("Not in the last 90 days"), not_seen_since, 90 * DAY),
    "not-180d": (_("Not in the last 180 days"), not_seen_since, 180 * DAY),
    "not-365d": (_("Not in the last 365 days"), not_seen_since, 365 * DAY),
}


class LastSeenFilter(admin.SimpleListFilter):
    """Filter users, or LastSeen rows, by when the user was last seen. There is a separate choice
    for users who have never been seen."""

    title = _("last seen")
    parameter_name = "seen"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        choices = [(name, label) for name, (label, _, _) in CHOICES.items()]
        return choices if model_admin.model is LastSeen else [*choices, (NEVER, _("Never"))]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        column = "seen" if queryset.model is LastSeen else SEEN
        value = self.value()
        if value == NEVER:
            return queryset.filter(never_seen(column))
        if value in CHOICES:
            _label, condition, seconds = CHOICES[value]
            return queryset.filter(condition(time.time() - seconds, column))
        return queryset


class SeenColumn(F):
    """The users' last-seen time. In either sort order, users who have never been seen come last."""

    def asc(self, **kwargs: Any) -> OrderBy:
        return super().asc(nulls_last=True)

    def desc(self, **kwargs: Any) -> OrderBy:
        return super().desc(nulls_last=True)


class LastSeenChangeList(ChangeList):
    """A list of users that adds last-seen times to its page."""

    def get_ordering_field(self, field_name: Any) -> Any:
        if field_name == COLUMN and not has_constraint():
            return None  # the times are in another database
        return super().get_ordering_field(field_name)

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        by_time = self._sorted_by_time()
        is_whole = not self.multi_page or (self.show_all and self.can_show_all)
        if by_time and not is_whole:
            self.result_list = self.queryset.filter(pk__in=self._keys_of_page(by_time))
        times = get_store().get_many([user.pk for user in self.result_list])
        for user in self.result_list:
            user._souvenirs_seen = times.get(user.pk)
        if by_time:  # within a rate-limit slot, a store may have later times than the table
            sort_rows(self.result_list, sort_key(descending=by_time.descending))

    def _sorted_by_time(self) -> OrderBy | None:
        """Return the sort order if last-seen time is the only column that was chosen. What the
        admin adds to it does not matter: it only orders users with the same time."""
        chosen = self.params.get(ORDER_VAR, "")
        first = next(iter(self.queryset.query.order_by), None)
        is_by_time = isinstance(first, OrderBy) and isinstance(first.expression, SeenColumn)
        return first if is_by_time and chosen and "." not in chosen else None

    def _keys_of_page(self, order: OrderBy) -> list[Any]:
        """Return the keys of the page's users, from the index on times. If it had to sort by the
        column, a database would join and sort all users for each page, as some have no time."""
        start = (self.page_num - 1) * self.list_per_page
        end = start + self.list_per_page
        sign = "-" if order.descending else ""
        seen = self.queryset.filter(**{f"{SEEN}__isnull": False}).order_by(
            f"{sign}{SEEN}", f"{sign}souvenirs_last_seen__id"
        )
        keys = list(seen.values_list("pk", flat=True)[start:end])
        if len(keys) < self.list_per_page:  # users who have never been seen follow
            number = start + len(keys) if keys or not start else seen.count()
            never = self.queryset.filter(never_seen()).order_by("-pk")
            rest = never.values_list("pk", flat=True)
            keys += rest[max(0, start - number) : end - number]
        return keys


def sort_rows(rows: Any, key: Callable[[Any], Any]) -> None:
    """Sort loaded rows in place: the forms of a list need the queryset."""
    (rows if isinstance(rows, list) else rows._result_cache).sort(key=key)


def sort_key(*, descending: bool) -> Callable[[Any], tuple[bool, int]]:
    sign = -1 if descending else 1

    def key(user: Any) -> tuple[bool, int]:
        seen = user._souvenirs_seen
        return seen is None, sign * (seen or 0)

    return key


class LastSeenMixin:
    """Mixin for the site's UserAdmin: a sortable column with last-seen times, and a filter.

        class UserAdmin(LastSeenMixin, DjangoUserAdmin): ...

    The column, `when_last_seen`, is the last one unless `list_display` contains it; it may be in
    `readonly_fields` too. A page takes one query for last-seen times, whatever its length.
    """

    def when_last_seen(self, user: Any) -> datetime | None:
        if not hasattr(user, "_souvenirs_seen"):  # not in a list
            return control.last_seen(user) if user.pk else None
        seen = user._souvenirs_seen
        return None if seen is None else timestamps.to_datetime(seen)

    when_last_seen.short_description = _("last seen")  # type: ignore[attr-defined]
    when_last_seen.admin_order_field = SeenColumn(SEEN)  # type: ignore[attr-defined]
    when_last_seen.empty_value_display = _("Never")  # type: ignore[attr-defined]

    def get_list_display(self, request: HttpRequest) -> Any:
        columns = super().get_list_display(request)  # type: ignore[misc]
        return columns if COLUMN in columns else [*columns, COLUMN]

    def get_list_filter(self, request: HttpRequest) -> Any:
        filters = super().get_list_filter(request)  # type: ignore[misc]
        if LastSeenFilter in filters or not has_constraint():
            return filters
        return [*filters, LastSeenFilter]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        base = super().get_changelist(request, **kwargs)  # type: ignore[misc]
        return type("ChangeList", (LastSeenChangeList, base), {})


class TimesChangeList(ChangeList):
    """A list of LastSeen that adds users and the store's times to its page."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        keys = [row.user_id for row in self.result_list]
        users = get_user_model()._base_manager.in_bulk(keys)
        times = get_store().get_many(keys)
        for row in self.result_list:
            row._shown_user = users.get(row.user_id)
            row._shown_time = times.get(row.user_id)
        if self.queryset.query.order_by == ("-seen", "-pk"):
            sort_rows(self.result_list, lambda row: -(row._shown_time or 0))


class LastSeenAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """A read-only list of last-seen times, for staff with the permission view_lastseen."""

    list_display = ("shown_user", "shown_time")
    list_display_links = None
    list_filter = (LastSeenFilter,)
    ordering = ("-seen",)

    @admin.display(description=_("user"))
    def shown_user(self, row: Any) -> Any:
        """Return the user with a link to their page, if this admin has one."""
        model, user = get_user_model(), row._shown_user
        if user is None:  # deleted a moment ago
            return row.user_id
        if not self.admin_site.is_registered(model):
            return user
        name = f"{self.admin_site.name}:{model._meta.app_label}_{model._meta.model_name}_change"
        return format_html('<a href="{}">{}</a>', reverse(name, args=[user.pk]), user)

    @admin.display(description=_("last seen"), ordering="seen")
    def shown_time(self, row: Any) -> datetime | None:
        return None if row._shown_time is None else timestamps.to_datetime(row._shown_time)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).exclude(seen=None)

    def get_search_fields(self, request: HttpRequest) -> list[str]:
        return [f"user__{get_user_model().USERNAME_FIELD}"] if has_constraint() else []

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return TimesChangeList

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_changelist"
        return [path("", self.admin_site.admin_view(self.changelist_view), name=name)]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return scopes.has_table(LastSeen) and super().has_view_permission(request, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Rows cannot be deleted here. But they are deleted with their user, and the admin checks
        the permission for each of them."""
        return obj is not None
