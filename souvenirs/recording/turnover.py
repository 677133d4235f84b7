"""Forget users who are created or deleted: a new user may get the key of a deleted one.

This applies to the process's memory. Other processes find out from the database: see
`recorder.Recording.claim`.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import models, transaction

from souvenirs.recording import memory
from souvenirs.users import key_of


def forget_user(instance: models.Model, using: str, created: bool = True, **kwargs: Any) -> None:
    """post_save and post_delete of a user: forget the key now, and again after the commit, since
    other threads see the old state until then."""
    if not created:
        return
    user_pk = key_of(instance)  # read now: Django clears it after the deletion

    def forget() -> None:
        memory.forget_user(user_pk)

    forget()
    transaction.on_commit(forget, using=using, robust=True)


def connect() -> None:
    """Connect to the user model, its proxies, and models that inherit from it."""
    user_model = get_user_model()._meta.concrete_model
    assert user_model is not None
    for model in apps.get_models():
        if issubclass(model, user_model):
            for signal in (models.signals.post_save, models.signals.post_delete):
                signal.connect(forget_user, sender=model, dispatch_uid="souvenirs.turnover")
