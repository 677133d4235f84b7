from __future__ import annotations

import time

from django.contrib.auth import get_user_model
from django.db.models import Count

from souvenirs.history.accounts import is_activated
from souvenirs_metrics.conf import conf
from souvenirs_metrics.families import ACTIVATED_USERS, REGISTERED_USERS
from souvenirs_metrics.readers.base import Families, ReadContext, Reader

CACHE_SECONDS = 60


class Accounts(Reader):
    """Totals of accounts. Counting reads every user's row, so the result is cached for a minute."""

    name = "accounts"
    order = 50
    families = (REGISTERED_USERS, ACTIVATED_USERS)

    def __init__(self) -> None:
        self._cached: tuple[float, Families] | None = None

    def read(self, now: float, context: ReadContext) -> Families:
        started = time.monotonic()
        if self._cached is None or started - self._cached[0] >= CACHE_SECONDS:
            self._cached = started, self._count(context)
        return self._cached[1]

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
