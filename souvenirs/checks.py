"""System checks of the settings."""

from __future__ import annotations

from typing import Any

from asgiref.sync import iscoroutinefunction
from django.apps import AppConfig, apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.core.cache.backends.db import BaseDatabaseCache
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import router
from django.utils.module_loading import import_string

from souvenirs import scopes
from souvenirs.conf import DEFAULT_STORE
from souvenirs.lastseen import get_store, make_store
from souvenirs.lastseen.base import LastSeenStore
from souvenirs.logs import words_of
from souvenirs.middleware import SouvenirsMiddleware
from souvenirs.models import Souvenir

TAG = "souvenirs"  # our commands, which may run from cron, run these checks but not the site's
NUMBER = (int, float)
PUBLIC = ("BACKEND", "CLUSTER", "SENTINEL", "KEY_PREFIX", "WITH_TABLE")


def is_number(value: Any) -> bool:
    return isinstance(value, NUMBER) and not isinstance(value, bool)


@register(TAG)
def check_enabled(**kwargs: Any) -> list[CheckMessage]:
    hint = "Set it to False where no users should be recorded, as in tests, or remove it."
    return check_boolean("SOUVENIRS_ENABLED", hint, "souvenirs.E008")


@register(deploy=True)
def check_is_enabled(**kwargs: Any) -> list[CheckMessage]:
    if getattr(settings, "SOUVENIRS_ENABLED", True) is not False:
        return []
    return [
        Warning(
            "SOUVENIRS_ENABLED is False: no users are recorded.",
            hint="Set it to False only in the settings of your tests.",
            id="souvenirs.W006",
        )
    ]


@register(TAG)
def check_ratelimit_seconds(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_RATELIMIT_SECONDS", 3600)
    if not is_number(value) or not 0 <= value < float("inf"):
        return [
            Error(
                "SOUVENIRS_RATELIMIT_SECONDS must be a non-negative number of seconds,"
                f" not {value!r}.",
                hint="Set it to 0 (record every time) or more; 3600 is the default.",
                id="souvenirs.E001",
            )
        ]
    if value > 3600:
        return [
            Warning(
                f"SOUVENIRS_RATELIMIT_SECONDS is {value!r}: with more than an hour between records,"
                " past ranges that begin or end during a day are counted less precisely.",
                hint="Set it to 3600 or less.",
                id="souvenirs.W001",
            )
        ]
    return []


@register(TAG)
def check_cache_name(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_CACHE_NAME", "default")
    if not isinstance(value, str) or value not in settings.CACHES:
        reason = "which is not in CACHES"
        hint = f"Set it to one of {', '.join(map(repr, settings.CACHES))}, or add it to CACHES."
        return cache_error(value, reason, hint)
    try:
        cache = caches[value]  # this does not connect to a server
    except Exception as error:
        reason = f"a cache that cannot be created: {words_of(error)}"
        return cache_error(value, reason, f"Fix CACHES[{value!r}], or name another cache.")
    if not isinstance(cache, BaseDatabaseCache):
        return []
    return [
        Warning(
            f"SOUVENIRS_CACHE_NAME is {value!r}, a cache in a database, where requests would wait"
            " for each other's transactions. It is not used: each process applies the rate limit"
            " separately.",
            hint="Name a cache in Redis or Memcached; or, if one row per process is acceptable, add"
            " 'souvenirs.W005' to SILENCED_SYSTEM_CHECKS.",
            id="souvenirs.W005",
        )
    ]


def cache_error(value: Any, reason: str, hint: str) -> list[CheckMessage]:
    problem = f"SOUVENIRS_CACHE_NAME is {value!r}, {reason}."
    return [Error(problem, hint=hint, id="souvenirs.E002")]


@register(TAG)
def check_cache_prefix(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_CACHE_PREFIX", "souvenirs.")
    if not isinstance(value, str) or len(value) > 100 or not value.isascii() or " " in value:
        return [
            Error(
                f"SOUVENIRS_CACHE_PREFIX is {value!r}, which is not a valid prefix of cache keys.",
                hint="Set it to a string of at most 100 ASCII characters without spaces,"
                ' such as "souvenirs.".',
                id="souvenirs.E003",
            )
        ]
    return []


@register(TAG)
def check_last_seen_seconds(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_LAST_SEEN_SECONDS", 60)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 3600:
        return [
            Error(
                "SOUVENIRS_LAST_SEEN_SECONDS must be a whole number of seconds from 1 to 3600,"
                f" not {value!r}.",
                hint="Set it to a whole number from 1 to 3600; 60 is the default.",
                id="souvenirs.E004",
            )
        ]
    return []


@register(TAG)
def check_flush_seconds(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_FLUSH_SECONDS", 0.5)
    if not is_number(value) or not 0 <= value <= 60:
        return [
            Error(
                f"SOUVENIRS_FLUSH_SECONDS must be a number of seconds from 0 to 60, not {value!r}.",
                hint="Set it to a number from 0 (write visits in their requests) to 60;"
                " 0.5 is the default.",
                id="souvenirs.E012",
            )
        ]
    return []


@register(TAG)
def check_should_record(**kwargs: Any) -> list[CheckMessage]:
    signature = "(request, response) -> bool"
    return check_function("SOUVENIRS_SHOULD_RECORD", signature, "souvenirs.E006")


@register(TAG)
def check_get_user(**kwargs: Any) -> list[CheckMessage]:
    return check_function(
        "SOUVENIRS_GET_USER", "(request, response) -> user or None", "souvenirs.E009"
    )


@register(TAG)
def check_usage_reports_function(**kwargs: Any) -> list[CheckMessage]:
    signature = "(periods) -> usage dictionaries"
    return check_function("SOUVENIRS_USAGE_REPORTS_FUNCTION", signature, "souvenirs.E007")


@register(TAG)
def check_scope(**kwargs: Any) -> list[CheckMessage]:
    return check_function("SOUVENIRS_SCOPE", "() -> str", "souvenirs.E010")


@register(TAG)
def check_tenant_apps(**kwargs: Any) -> list[CheckMessage]:
    """With django-tenants, check that each tenant has separate tables of users and souvenirs."""
    schemas = scopes.schemas_database()
    if schemas is None:
        return []
    ours, users = (apps.get_app_config(m._meta.app_label) for m in (Souvenir, get_user_model()))
    with_ours = [each for each in tenant_app_lists() if is_in(each, ours)]
    if not with_ours:
        problem = f"Tenants have no tables of {ours.name}"
    elif not all(is_in(each, users) for each in with_ours):
        problem = f"Tenants have no tables of {users.name}"
    elif (using := router.db_for_write(Souvenir)) != schemas:
        problem = f"The router keeps souvenirs in {using!r}, which has no tenant schemas"
    else:
        return []
    return [
        Error(
            f"{problem}: the users of different tenants would be mixed up.",
            hint="Put both the user model's app and souvenirs into TENANT_APPS (or APPS of the same"
            " TENANT_TYPES), and keep them in the tenants' database. Users shared between tenants"
            " are not supported.",
            id="souvenirs.E011",
        )
    ]


def tenant_app_lists() -> list[Any]:
    """Return the apps that have tables in tenants' schemas: one list per type of tenant."""
    if not getattr(settings, "HAS_MULTI_TYPE_TENANTS", False):
        return [getattr(settings, "TENANT_APPS", [])]
    public = getattr(settings, "PUBLIC_SCHEMA_NAME", "public")
    types: dict[str, Any] = getattr(settings, "TENANT_TYPES", {})
    return [entry["APPS"] for name, entry in types.items() if name != public]


def is_in(app_list: Any, config: AppConfig) -> bool:
    """Return True if a list of apps, such as INSTALLED_APPS, contains this app."""
    path = f"{type(config).__module__}.{type(config).__qualname__}"
    return config.name in app_list or path in app_list


def check_boolean(name: str, hint: str, check_id: str) -> list[CheckMessage]:
    value = getattr(settings, name, False)
    if isinstance(value, bool):
        return []
    return [Error(f"{name} must be True or False, not {value!r}.", hint=hint, id=check_id)]


def check_function(name: str, signature: str, check_id: str) -> list[CheckMessage]:
    value = getattr(settings, name, None)
    if value is None:
        return []
    try:
        hook = import_path(value)
        # A callable object may have an `async def __call__`
        is_async = iscoroutinefunction(hook) or iscoroutinefunction(getattr(hook, "__call__", None))  # noqa: B004
        if callable(hook) and not is_async:
            return []
        reason = f"which is {'an async function' if is_async else 'not a function'}"
    except ImproperlyConfigured as error:
        reason = str(error)
    return [
        Error(
            f"{name} is {value!r}, {reason}.",
            hint=f"Set it to the dotted path of a function {signature}, or remove it.",
            id=check_id,
        )
    ]


def import_path(path: Any) -> Any:
    """Import what a setting's dotted path names. Raise ImproperlyConfigured with the reason as a
    relative clause ("which ...")."""
    if not isinstance(path, str) or "." not in path.strip("."):
        raise ImproperlyConfigured("which is not a dotted path")
    try:
        return import_string(path)
    except ImportError as error:
        raise ImproperlyConfigured(f"which cannot be imported: {words_of(error)}") from error
    except Exception as error:  # raised by the module itself
        reason = f"{type(error).__name__}: {words_of(error)}"
        raise ImproperlyConfigured(f"which cannot be imported: {reason}") from error


def check_params(value: Any) -> None:
    """Raise ImproperlyConfigured if the value cannot be the parameters of a store."""
    if not isinstance(value, dict):
        raise ImproperlyConfigured("it is not a dictionary")
    for name in value:
        if not isinstance(name, str):
            raise ImproperlyConfigured(f"{name!r} is an unknown parameter")
    if "BACKEND" not in value:
        raise ImproperlyConfigured("BACKEND is missing")
    try:
        backend = import_path(value["BACKEND"])
    except ImproperlyConfigured as error:
        raise ImproperlyConfigured(f"BACKEND is {value['BACKEND']!r}, {error}") from error.__cause__
    if not isinstance(backend, type) or not issubclass(backend, LastSeenStore):
        raise ImproperlyConfigured(f"BACKEND is {value['BACKEND']!r}, which is not a LastSeenStore")
    if not isinstance(value.get("OPTIONS") or {}, dict):
        raise ImproperlyConfigured("OPTIONS is not a dictionary")
    if not isinstance(value.get("LOCATION", ""), (str, list, tuple, type(None))):
        raise ImproperlyConfigured("LOCATION is not a URL or a list of URLs")


@register(TAG)
def check_last_seen_store(**kwargs: Any) -> list[CheckMessage]:
    value = getattr(settings, "SOUVENIRS_LAST_SEEN_STORE", DEFAULT_STORE)
    try:
        check_params(value)
        make_store(value)
    except Exception as error:
        hint = f"Set it to a dictionary like {DEFAULT_STORE!r}, or remove it."
        cause = error.__cause__ or error
        if isinstance(cause, ImportError) and cause.name == "redis":
            hint = "Set it to another store, or install redis-py: django-souvenirs[redis]."
        return [
            Error(
                f"SOUVENIRS_LAST_SEEN_STORE is {shown(value)}, which is not a usable"
                f" store: {words_of(error)}.",
                hint=hint,
                id="souvenirs.E005",
            )
        ]
    return []


def shown(value: Any) -> str:
    """Return the parameters of a store as text, without those that may contain a password."""
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    return repr({key: value[key] if key in PUBLIC else "..." for key in value})


@register()  # without TAG: our commands do not need the middleware
def check_middleware(**kwargs: Any) -> list[CheckMessage]:
    """Without the middleware, a site would show 0 active users and no other symptom."""
    if any(map(is_ours, settings.MIDDLEWARE)):
        return []
    return [
        Warning(
            "SouvenirsMiddleware is not in MIDDLEWARE: requests do not record their users.",
            hint="Add 'souvenirs.middleware.SouvenirsMiddleware' at its end; or, if your code calls"
            " souvenez itself, add 'souvenirs.W004' to SILENCED_SYSTEM_CHECKS.",
            id="souvenirs.W004",
        )
    ]


def is_ours(path: Any) -> bool:
    """Return True if an entry of MIDDLEWARE is our class or a subclass of it."""
    try:
        entry = import_path(path)
    except ImproperlyConfigured:  # Django itself reports it when the server starts
        return False
    return isinstance(entry, type) and issubclass(entry, SouvenirsMiddleware)


@register(TAG, deploy=True)
def check_last_seen_server(**kwargs: Any) -> list[CheckMessage]:
    """Runs with --deploy only: it connects to the server, and waits half a second for it."""
    return [] if check_last_seen_store() else get_store().check()
