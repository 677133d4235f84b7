from __future__ import annotations

import time

from django.contrib.auth import get_user_model
from django.db.models import Count

from souvenirs.history.accounts import is_activated
from souvenirs_metrics.conf import conf
from souvenirs_metrics.families import ACTIVATED_USERS, REGISTERED_USERS
from souvenirs_metrics.readers.base import Families, ReadContext, Reader

KEPT_SECONDS = 60


class Accounts(Reader):
    """Totals of accounts. Counting reads every user's row, so the result is kept for a minute."""

    name = "accounts"
    order = 50
    families = (REGISTERED_USERS, ACTIVATED_USERS)

    def __init__(self) -> None:
        self._kept: tuple[float, Families] | None = None

    def read(self, now: float, context: ReadContext) -> Families:
        started = time.monotonic()
        if self._kept is None or started - self._kept[0] >= KEPT_SECONDS:
            self._kept = started, self._count(context)
        return self._kept[1]

    def _count(self, context: ReadContext) -> Families:
        model = get_user_model()
        using = conf.database(model)
        with context(using):
            totals = model._base_manager.using(using).aggregate(
                registered=Count("pk"), activated=Count("pk", filter=is_activated())
            )
        return [
            REGISTERED_USERS.family(totals["registered"]),
            ACTIVATED_USERS.family(totals["activated"]),
        ]
