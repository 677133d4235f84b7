"""The relation to a user who may be in another database."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models, router
from django.db.models.deletion import CASCADE, Collector

NOTED = "_souvenirs_of_deleted_users"  # attribute of an instance, or a QuerySet


def cascade(collector: Collector, field: Any, sub_objs: Any, using: str) -> None:
    """on_delete of a relation to the user: CASCADE, where the user's database has our tables.

    Where it has not, Django would look for our tables in the users' database; there
    `deletion.forget_deleted_user` does it. Nor does the admin's page "Are you sure?" list thousands
    of souvenirs, which nobody reads.

    The rows to be deleted are noted on what `delete` was called on, for
    `deletion.keep_deleted_users`.
    """
    from django.contrib.admin.utils import NestedObjects  # not before the apps are loaded

    if isinstance(collector, NestedObjects) or not router.allow_migrate_model(using, field.model):
        return
    CASCADE(collector, field, sub_objs, using)
    if collector.origin is not None:
        vars(collector.origin).setdefault(NOTED, []).append(sub_objs)


cascade.lazy_sub_objs = True  # type: ignore[attr-defined]  # do not query before asking


class ToUser:
    """Mixin of relations to the user model: a constraint in the database where it can be one.

    It cannot be where a router keeps the users' table in another database; that depends on the
    site, so it is asked when a table is made, and is no part of the migrations' state.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"to": settings.AUTH_USER_MODEL, "on_delete": cascade, **kwargs})

    @property
    def db_constraint(self) -> bool:
        if not hasattr(self, "model"):  # a field that migrations look at outside of any table
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
