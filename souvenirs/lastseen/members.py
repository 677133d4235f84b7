"""Users <-> members of the sorted sets in Redis."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

from django.core.exceptions import ValidationError
from django.db import router

from souvenirs.models import LastSeen


def member_of(user_pk: Any) -> bytes:
    """The user with this key, in a shard."""
    return str(_user_key().to_python(user_pk)).encode()


def existing_of(members: Collection[bytes]) -> set[bytes]:
    """Those of the members who are users with a souvenir."""
    field = _user_key()
    keys = []
    for member in members:
        with suppress(ValueError, ValidationError):  # of users whose keys once were of another type
            keys.append(field.to_python(member.decode()))
    table = LastSeen.objects.using(router.db_for_write(LastSeen))
    found: set[bytes] = set()
    for at in range(0, len(keys), 500):
        rows = table.filter(user_id__in=keys[at : at + 500])
        found.update(map(member_of, rows.values_list("user_id", flat=True)))
    return found


def _user_key() -> Any:
    user: Any = LastSeen._meta.get_field("user")
    return user.target_field
