"""Users <-> members of the sorted sets in Redis."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db import router

from souvenirs.models import LastSeen


def member_of(user_pk: Any) -> bytes:
    """The user with this key, in a shard."""
    return str(_user_key().to_python(user_pk)).encode()


def existing_of(members: Collection[bytes]) -> dict[bytes, datetime | None]:
    """Those of the members who are users with a souvenir, with the table's time."""
    field = _user_key()
    keys = []
    for member in members:
        with suppress(ValueError, ValidationError):  # of users whose keys once were of another type
            keys.append(field.to_python(member.decode()))
    table = LastSeen.objects.using(router.db_for_write(LastSeen))
    found: dict[bytes, datetime | None] = {}
    for at in range(0, len(keys), 500):
        rows = table.filter(user_id__in=keys[at : at + 500])
        found.update((member_of(pk), seen) for pk, seen in rows.values_list("user_id", "seen"))
    return found


def _user_key() -> Any:
    user: Any = LastSeen._meta.get_field("user")
    return user.target_field
