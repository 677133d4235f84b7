"""Who joined before the record began: their first activity is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.auth import get_user_model
from django.db import router

from souvenirs import timestamps
from souvenirs.bitmaps import bitmap
from souvenirs.history.accounts import has_date_joined
from souvenirs.lastseen.base import ReadContext
from souvenirs.models import LastSeen
from souvenirs.users import has_constraint

if TYPE_CHECKING:
    from pyroaring import BitMap


def joined_before(t: float, using: str, read_context: ReadContext) -> BitMap | None:
    """LastSeen ids of the users who exist and joined before `t` (unix seconds). None, with nothing
    queried, where the user model has no datetime column `date_joined`."""
    if not has_date_joined():
        return None
    when = timestamps.to_datetime(t)
    rows = LastSeen.objects.using(using)
    if has_constraint():
        return bitmap(rows.filter(user__date_joined__lt=when).values_list("pk", flat=True))
    model: Any = get_user_model()
    users = router.db_for_read(model)
    with read_context(users):
        joined = model._base_manager.using(users).filter(date_joined__lt=when)
        keys = set(joined.values_list("pk", flat=True))
    pairs = rows.values_list("pk", "user_id").iterator()
    return bitmap(pk for pk, user_pk in pairs if user_pk in keys)
