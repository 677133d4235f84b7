"""System checks of the settings."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.urls import reverse

from souvenirs import scopes
from souvenirs.checks import TAG, check_boolean, check_function, is_number
from souvenirs.logs import words_of
from souvenirs.periods import parse_duration
from souvenirs_metrics.conf import DEFAULT_WINDOWS
from souvenirs_metrics.segments import account_path, make_segment

MAX_AGE_SECONDS = 3600


@register(TAG)
def check_windows(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_METRICS_WINDOWS", DEFAULT_WINDOWS)
    hint = f"Set it to a list of Prometheus durations, such as {list(DEFAULT_WINDOWS)!r}."
    if not isinstance(value, (list, tuple)):
        return [
            Error(
                f"SOUVENIRS_METRICS_WINDOWS must be a list of windows, not {value!r}.",
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
                    f"SOUVENIRS_METRICS_WINDOWS: {words_of(error)}.",
                    hint=hint,
                    id="souvenirs_metrics.E001",
                )
            )
    return errors


@register(TAG)
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
    if scopes.is_scoped():
        return [
            Error(
                f"SOUVENIRS_METRICS_DATABASE is {value!r}, but each tenant has a separate database"
                " or schema: a scrape reads the one that its request belongs to.",
                hint="Remove it.",
                id="souvenirs_metrics.E010",
            )
        ]
    return []


@register(TAG)
def check_register(**kwargs: Any) -> list[CheckMessage]:
    hint = "Set it to True if another view serves prometheus_client's default registry."
    return check_boolean("SOUVENIRS_METRICS_REGISTER", hint, "souvenirs_metrics.E003")


@register(TAG)
def check_segments(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_METRICS_SEGMENTS", {})
    hint = 'Example: {"staff": "is_staff", "plan": {"FIELD": "subscription__plan", "VALUES":'
    hint += ' ["free", "pro"]}}.'
    check_id = "souvenirs_metrics.E011"
    if not isinstance(value, dict):
        problem = f"SOUVENIRS_METRICS_SEGMENTS must be a dictionary, not {value!r}."
        return [Error(problem, hint=hint, id=check_id)]
    errors: list[CheckMessage] = []
    for name, entry in value.items():
        try:
            if not isinstance(name, str) or not name:
                raise ValueError("a segment's name must be a non-empty string")
            make_segment(entry)
        except ValueError as error:
            problem = f"SOUVENIRS_METRICS_SEGMENTS[{name!r}]: {words_of(error)}."
            errors.append(Error(problem, hint=hint, id=check_id))
    return errors


@register(TAG)
def check_accounts(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_METRICS_ACCOUNTS", None)
    if value is None:
        return []
    try:
        account_path(value)
    except ValueError as error:
        return [
            Error(
                f"SOUVENIRS_METRICS_ACCOUNTS: {words_of(error)}.",
                hint='Set it to a path from the user model to the account, such as "organization"'
                ' or "membership__organization", or remove it.',
                id="souvenirs_metrics.E012",
            )
        ]
    return []


@register(TAG)
def check_max_age_seconds(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_METRICS_MAX_AGE_SECONDS", 0)
    if not is_number(value) or not 0 <= value <= MAX_AGE_SECONDS:
        return [
            Error(
                "SOUVENIRS_METRICS_MAX_AGE_SECONDS must be a number of seconds from 0 to"
                f" {MAX_AGE_SECONDS}, not {value!r}.",
                hint="Set it to 0, or to somewhat less than your scrape interval.",
                id="souvenirs_metrics.E007",
            )
        ]
    return []


@register(TAG)
def check_token(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_METRICS_TOKEN", None)
    tokens = [value] if isinstance(value, str) else value
    if value is None:
        return []
    # The message does not show the value: secrets do not belong in logs and terminals
    if not isinstance(tokens, (list, tuple)) or not all(map(is_token, tokens)) or not tokens:
        return [
            Error(
                "SOUVENIRS_METRICS_TOKEN must be a token or a non-empty list of tokens.",
                hint="Set it to a string of visible ASCII characters (try secrets.token_urlsafe()),"
                " or to a list of such strings while you rotate tokens.",
                id="souvenirs_metrics.E005",
            )
        ]
    return []


def is_token(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[!-~]+", value))


@register(TAG)
def check_authorize(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_METRICS_AUTHORIZE", None)
    if value is None:
        return []
    errors = check_function(
        "SOUVENIRS_METRICS_AUTHORIZE", "(request) -> bool", "souvenirs_metrics.E006"
    )
    if not errors and getattr(settings, "SOUVENIRS_METRICS_TOKEN", None) is not None:
        problem = "SOUVENIRS_METRICS_TOKEN is ignored, because SOUVENIRS_METRICS_AUTHORIZE is set."
        hint = "Remove one of the two settings."
        errors = [Error(problem, hint=hint, id="souvenirs_metrics.E006")]
    return errors


@register(Tags.security)  # not TAG: our commands do not serve the site's page
def check_open_endpoint(**kwargs: Any) -> list[CheckMessage]:
    names = ("SOUVENIRS_METRICS_TOKEN", "SOUVENIRS_METRICS_AUTHORIZE")
    if settings.DEBUG or any(getattr(settings, name, None) is not None for name in names):
        return []
    urls = []
    for name in ("souvenirs-metrics", "souvenirs-usage"):
        # It may not be served, or the URLs may be broken, which Django's checks report
        with suppress(Exception):
            urls.append(reverse(name))
    if not urls:
        return []
    return [
        Warning(
            "Anyone who can reach the site can read how many users it has, at"
            f" {' and '.join(urls)}.",
            hint="Set SOUVENIRS_METRICS_TOKEN or SOUVENIRS_METRICS_AUTHORIZE. If the web server"
            " already restricts access, add 'souvenirs_metrics.W001' to SILENCED_SYSTEM_CHECKS.",
            id="souvenirs_metrics.W001",
        )
    ]


@register(TAG)
def check_multiprocess_directory(**kwargs: Any) -> list[CheckMessage]:
    value = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if value is not None and not os.path.isdir(value):
        return [
            Error(
                f"PROMETHEUS_MULTIPROC_DIR must be an existing directory, not {value!r}.",
                hint="Create it, empty, before the site starts, or unset the variable.",
                id="souvenirs_metrics.E004",
            )
        ]
    return []
