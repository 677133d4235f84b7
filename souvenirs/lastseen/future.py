"""Correct last-seen times in the future: a clock was ahead, and has been set right."""

from __future__ import annotations

import logging
import math
import time

from django.db import router
from django.db.models import Max, OuterRef, Subquery

from souvenirs.conf import conf
from souvenirs.databases import shown_until, to_column
from souvenirs.logs import LogLimit
from souvenirs.models import LastSeen, Souvenir

logger = logging.getLogger("souvenirs")

CLOCK_SECONDS = 120  # how much the clocks of a site's machines may differ
BATCH_SIZE = 1_000  # users in a statement

_log_limit = LogLimit()


def latest() -> int:
    """Return the latest last-seen time, in Unix seconds, that does not need a wrong clock."""
    return math.ceil(time.time()) + max(conf.last_seen_seconds, CLOCK_SECONDS)


def set_back(users: int | None = None) -> None:
    """Reset last-seen times in the future, in the table, to the user's newest souvenir that is not
    in the future, or to NULL if there is none; and log a warning.

    users: correct at most this many. Without the correction, users with such a time would count in
    no window until then, and afterwards in wrong ones.
    """
    using = router.db_for_write(LastSeen)
    ahead = LastSeen.objects.using(using).filter(
        seen__gt=to_column(shown_until(latest(), using), using)
    )
    newest = (  # grouped, so that PostgreSQL uses the index on users, not the one on times
        Souvenir.objects.using(using)
        .filter(user_id=OuterRef("user_id"), when__lte=to_column(time.time(), using))
        .order_by()
        .values("user_id")
        .annotate(newest=Max("when"))
        .values("newest")
    )
    keys = list(ahead.values_list("pk", flat=True)[:users])
    warn(len(keys))
    for at in range(0, len(keys), BATCH_SIZE):
        ahead.filter(pk__in=keys[at : at + BATCH_SIZE]).update(seen=Subquery(newest))


def warn(users: int) -> None:
    """Log that the last-seen times of so many users are in the future."""
    if users and _log_limit.allows(""):
        logger.warning(
            "Last-seen times in the future: %d. The clock of a machine is ahead, or was. Resetting"
            " them to the users' newest souvenirs that are not in the future; make sure that the"
            " clocks of all machines are synchronised (NTP)",
            users,
        )
