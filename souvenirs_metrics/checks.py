"""System checks of the settings."""

from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from souvenirs.periods import parse_duration
from souvenirs_metrics.conf import DEFAULT_WINDOWS


@register
def check_windows(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_METRICS_WINDOWS", DEFAULT_WINDOWS)
    hint = f"Set it to a list of Prometheus durations, such as {list(DEFAULT_WINDOWS)!r}."
    if not isinstance(value, (list, tuple)):
        return [
            Error(
                f"SOUVENIRS_METRICS_WINDOWS is {value!r}, which is no list of windows.",
                hint=hint,
                id="souvenirs_metrics.E001",
            )
        ]
    errors: list[CheckMessage] = []
    for name in value:
        try:
            parse_duration(name)
        except ValueError as error:
            errors.append(
                Error(
                    f"SOUVENIRS_METRICS_WINDOWS: {error}.",
                    hint=hint,
                    id="souvenirs_metrics.E001",
                )
            )
    return errors


@register
def check_database(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_METRICS_DATABASE", None)
    if value is None:
        return []
    if not isinstance(value, str) or value not in settings.DATABASES:
        return [
            Error(
                f"SOUVENIRS_METRICS_DATABASE is {value!r}, which is not in DATABASES.",
                hint=f"Set it to one of {', '.join(map(repr, settings.DATABASES))},"
                " or add it to DATABASES.",
                id="souvenirs_metrics.E002",
            )
        ]
    return []


@register
def check_register(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_METRICS_REGISTER", False)
    if not isinstance(value, bool):
        return [
            Error(
                f"SOUVENIRS_METRICS_REGISTER is {value!r}, which is neither True nor False.",
                hint="Set it to True if another view serves prometheus_client's default registry.",
                id="souvenirs_metrics.E003",
            )
        ]
    return []


@register
def check_multiprocess_directory(**kwargs: Any) -> list[CheckMessage]:
    value = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if value is not None and not os.path.isdir(value):
        return [
            Error(
                f"PROMETHEUS_MULTIPROC_DIR is {value!r}, which is no directory.",
                hint="Make it, empty, before the site starts; or unset the variable.",
                id="souvenirs_metrics.E004",
            )
        ]
    return []
