"""Format the numbers of the Usage page, in the reader's language."""

from __future__ import annotations

from django import template
from django.utils.formats import number_format
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _

register = template.Library()

UNKNOWN = "–"  # noqa: RUF001


@register.filter
def figure(value: int | None) -> str:
    return UNKNOWN if value is None else number_format(value, force_grouping=True)


@register.filter
def share(value: float | None) -> str:
    """Format a share, from 0 to 1, as a whole percentage."""
    return UNKNOWN if value is None else _("%(number)s%%") % {"number": round(value * 100)}


@register.filter
def change(value: float | None) -> str:
    """Format a change, such as -0.05, as a percentage with its sign."""
    if value is None:
        return UNKNOWN
    number = number_format(f"{abs(value) * 100:.1f}", 1, force_grouping=True)
    sign = "" if round(value, 3) == 0 else "+" if value > 0 else "−"  # noqa: RUF001
    return _("%(number)s%%") % {"number": f"{sign}{number}"}


@register.filter
def markup(svg: str) -> SafeString:
    """Mark a chart of souvenirs.charts as safe: all text in it is escaped."""
    return mark_safe(svg)  # noqa: S308
