"""Convert users to members of the sorted sets in Redis, and back."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db import router

from souvenirs.models import LastSeen


def member_of(user_pk: Any) -> bytes:
    """Return the member of a shard for the user with this key."""
    return str(_user_key().to_python(user_pk)).encode()


def existing_of(members: Collection[bytes]) -> dict[bytes, datetime | None]:
    """Return those members that are users with a souvenir, with their times in the table."""
    field = _user_key()
    keys = []
    for member in members:
        with suppress(ValueError, ValidationError):  # users' keys may have had another type before
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
