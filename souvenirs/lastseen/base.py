"""What every store of last-seen times offers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from django.core.checks import CheckMessage

from souvenirs.conf import conf

# Given the alias of a database, the context in which to read from it
ReadContext = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class LastSeenUpdate:
    """A user was seen: move their last-seen time forward to `seen`. All times in unix seconds.

    seen: None if the time is still to come; then only the table's row is made.
    slot_start: nothing is moved if the user was already seen at or after this time.
    latest: a stored time after it is replaced: a wrong clock made it. None: no such time is.
    has_row: True if LastSeen is known to have a row of the user (it may since be deleted), which
        saves a query.
    """

    user_pk: Any
    seen: int | None
    slot_start: int = 0
    latest: int | None = None
    has_row: bool = False


@dataclass(frozen=True, kw_only=True)
class LastSeenCounts:
    """What a store knows at one instant. Times are in unix seconds.

    since: for each cut point, how many users have been seen at or after it.
    newest: the newest last-seen time, None if there is none.
    exact_from: from here on times are known to SOUVENIRS_LAST_SEEN_SECONDS. Earlier ones are known
        to the rate limit's slot: from an earlier cut point, users are counted from the beginning of
        its slot, so never too few.
    cause: why earlier times are known to the slot only.
    """

    since: Mapping[float, int]
    newest: int | None
    exact_from: float = -math.inf
    cause: str = ""

    def knows(self, start: float, seconds: float) -> bool:
        """Whether the count since `start` will do for a window of so many seconds. Where times are
        known to the rate limit's slot only, it does not if the window is shorter than two."""
        return start >= self.exact_from or seconds >= 2 * conf.ratelimit_seconds


class LastSeenStore(ABC):
    """Base of the stores that SOUVENIRS_LAST_SEEN_STORE can name.

    A store is made with the setting's dictionary, less BACKEND. `name` is its label in metrics.
    Methods may raise what their server's client raises.

    Whatever the store, the LastSeen table is updated in the transaction that writes a user's
    souvenir: once in a rate-limit slot. The updates in between are the store's.

    keeps_scopes_apart: whether users with the same key in two scopes (see scopes) are two users. If
        not, scoped sites cannot use the store.
    in_table: whether the table has all of the store's times, those between souvenirs too.
    """

    name: str
    keeps_scopes_apart = False
    in_table = False

    def __init__(self, params: Mapping[str, Any]) -> None:
        if params:
            raise ValueError(f"{type(self).__name__} has no options, got {', '.join(params)}")

    @abstractmethod
    def touch(self, update: LastSeenUpdate) -> None:
        """Move the last-seen time of a user forward. They have a souvenir, or are about to."""

    def touch_all(self, updates: Sequence[LastSeenUpdate]) -> None:
        """`touch` for visits that were queued, in the writer's thread, which may wait. The table is
        written already. `has_row` is True if it had a row of the user just now."""
        for update in updates:
            self.touch(update)

    def on_table_updated(self, newest: Mapping[Any, int], latest: int | None = None) -> None:  # noqa: B027
        """The table's times of these users have moved forward to `newest`, and are committed.
        `latest` is as in LastSeenUpdate."""

    def remove(self, user_pks: Collection[Any]) -> None:  # noqa: B027
        """Users have been deleted, and the table's rows with them."""

    @abstractmethod
    def get(self, user_pk: Any) -> int | None:
        """When the user was last seen, in unix seconds; None for never."""

    def get_many(self, user_pks: Collection[Any]) -> dict[Any, int]:
        """When each of these users was last seen, in unix seconds, by key. Users who never were are
        left out."""
        times = ((user_pk, self.get(user_pk)) for user_pk in user_pks)
        return {user_pk: seen for user_pk, seen in times if seen is not None}

    @abstractmethod
    def count(
        self,
        cuts: Sequence[float],
        until: float,
        using: str,
        read_context: ReadContext = nullcontext,
    ) -> LastSeenCounts:
        """Count the users seen from each of `cuts` to `until`, both inclusive.

        using: the alias of the database to read from, within `read_context`, if that is needed.
        """

    def run_maintenance(self) -> None:  # noqa: B027
        """Start what has to be done from time to time, without waiting for it."""

    def resync(self) -> None:  # noqa: B027
        """Copy from the table what the store has lost."""

    def reconcile(self, users: int | None = None) -> None:  # noqa: B027
        """Remove users who no longer exist, and add what is in the table only.

        users: look at about so many, and go on from there at the next call. Raises
        django.db.DatabaseError then. None: look at all.
        """

    def set_back(self, users: int | None = None) -> None:  # noqa: B027
        """Set times that are still to come, because a clock was ahead, back to the table's, where
        future.set_back has been before. users: of about so many; None: of all. Raises
        django.db.DatabaseError."""

    def flush(self) -> bool:
        """Write what is pending. Return False if that has to wait."""
        return True

    def close(self) -> None:  # noqa: B027
        """The process ends."""

    def after_fork(self) -> None:  # noqa: B027
        """This is the child of a fork: what is pending belongs to the parent."""

    def check(self) -> list[CheckMessage]:
        """Ask the server whether it is fit for this: for `check --deploy`."""
        return []
