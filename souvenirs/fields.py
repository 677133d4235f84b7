"""Relations to the user model, whose table may be in another database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import models, router
from django.db.models.deletion import (
    CASCADE,
    DO_NOTHING,
    Collector,
    get_candidate_relations_to_delete,
)

from souvenirs.signals import deleting_users


def cascade(collector: Collector, field: Any, sub_objs: Any, using: str) -> None:
    """on_delete of a relation to the user: CASCADE, if the users' database has our tables.

    If it does not, CASCADE would look for our tables there; `history.deletion` deletes the rows
    instead.

    Send the signal deleting_users once for all users of a deletion, before any rows are deleted.

    The admin's confirmation page does not list these rows: nobody reads thousands of them.
    """
    deletes: list[Any] = collector.fast_deletes
    if not any(isinstance(each, Announcement) for each in deletes):
        deletes.insert(0, Announcement(collector))
    if not router.allow_migrate_model(using, field.model):
        return
    if is_preview(collector) and not has_dependents(field.model):
        deletes.append(sub_objs)
    else:
        CASCADE(collector, field, sub_objs, using)


class Announcement:
    """Send deleting_users at the right moment of a deletion.

    It stands first among the querysets that a Collector deletes: after pre_delete has been sent for
    all objects, and before any row is deleted.
    """

    model = None  # Collectors read this attribute

    def __init__(self, collector: Collector) -> None:
        self.collector = collector

    def _raw_delete(self, using: str) -> int:
        user_model = get_user_model()._meta.concrete_model
        user_pks = [
            instance.pk
            for model, instance in self.collector.instances_with_model()
            if model._meta.concrete_model is user_model  # historical models are other classes
        ]
        if user_pks:
            deleting_users.send(sender=user_model, user_pks=user_pks, using=using)
        return 0


def is_preview(collector: Collector) -> bool:
    """Return True if the collector is the admin's, which lists what would be deleted.

    It is recognised by name, so that sites without the admin do not have to import it.
    """
    return any(each.__name__ == "NestedObjects" for each in type(collector).__mro__)


def has_dependents(model: type[models.Model]) -> bool:
    """Return True if the site has relations to the model, whose rows would be deleted too, or would
    prevent the deletion."""
    relations: Iterable[Any] = get_candidate_relations_to_delete(model._meta)
    return any(relation.field.remote_field.on_delete is not DO_NOTHING for relation in relations)


cascade.lazy_sub_objs = True  # type: ignore[attr-defined]  # pass a queryset, not evaluated


class ToUser:
    """Mixin for relations to the user model: with a database constraint where that is possible.

    It is not possible if a router keeps the users' table in another database. That depends on the
    site, so it is determined when a table is created, and is not part of the migrations' state.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"to": settings.AUTH_USER_MODEL, "on_delete": cascade, **kwargs})

    @property
    def db_constraint(self) -> bool:
        if not hasattr(self, "model"):  # migrations also inspect fields without a model
            return True
        label, name = settings.AUTH_USER_MODEL.split(".")
        using = router.db_for_write(self.model)
        return router.allow_migrate(using, label, model_name=name.lower())

    @db_constraint.setter
    def db_constraint(self, value: bool) -> None:
        pass

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()  # type: ignore[misc]
        kwargs.pop("db_constraint", None)
        return name, path, args, kwargs


class UserForeignKey(ToUser, models.ForeignKey):  # type: ignore[type-arg]
    pass


class UserOneToOneField(ToUser, models.OneToOneField):  # type: ignore[type-arg]
    pass
