"""Last-seen times: stores of the last time that each user was seen."""

from __future__ import annotations

import atexit
import os
import threading
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from souvenirs import scopes
from souvenirs.conf import conf
from souvenirs.lastseen.base import LastSeenStore

_store: LastSeenStore | None = None
_lock = threading.Lock()


def get_store() -> LastSeenStore:
    """Return the process's store, which SOUVENIRS_LAST_SEEN_STORE defines. It is created on first
    use.

    Raises ImproperlyConfigured if BACKEND is not a LastSeenStore, or not one for scoped sites when
    the site is scoped; also raises the errors of importing and creating it.
    """
    if _store is None:
        with _lock:
            if _store is None:
                use_store(make_store(conf.last_seen_store))
    assert _store is not None
    return _store


def make_store(setting: dict[str, Any]) -> LastSeenStore:
    params = dict(setting)
    backend = import_string(params.pop("BACKEND"))
    if not (isinstance(backend, type) and issubclass(backend, LastSeenStore)):
        raise ImproperlyConfigured(f"{backend!r} is not a LastSeenStore")
    if scopes.is_scoped() and not backend.keeps_scopes_apart:
        raise ImproperlyConfigured(f"{backend.__name__} would mix up the users of tenants")
    return backend(params)


def use_store(store: LastSeenStore | None) -> None:
    """Make `store` the process's store. None: create a new one on next use."""
    global _store
    _store = store


def _on_setting_changed(**kwargs: Any) -> None:
    use_store(None)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    if _store is not None:
        _store.after_fork()


def _at_exit() -> None:
    if _store is not None:
        _store.close()


setting_changed.connect(_on_setting_changed)
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
