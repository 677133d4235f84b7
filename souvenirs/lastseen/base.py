"""The interface of stores of last-seen times."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from django.core.checks import CheckMessage

from souvenirs.conf import conf

# A function from the alias of a database to the context in which to read from it
ReadContext = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class LastSeenUpdate:
    """A user was seen: move their last-seen time forward to `seen`. All times are in Unix seconds.

    seen: None if the time is in the future; then only the table's row is created.
    slot_start: do not move the time if the user was already seen at or after this time.
    latest: replace a stored time after this one, which must come from a wrong clock. None: do not
        replace any.
    has_row: True if LastSeen is known to have a row for the user (which may have been deleted since
        then); this saves a query.
    """

    user_pk: Any
    seen: int | None
    slot_start: int = 0
    latest: int | None = None
    has_row: bool = False


@dataclass(frozen=True, kw_only=True)
class LastSeenCounts:
    """The counts of a store at one instant. Times are in Unix seconds.

    since: for each cut point, how many users have been seen at or after it.
    newest: the newest last-seen time, None if there is none.
    exact_from: times from here on have the resolution of SOUVENIRS_LAST_SEEN_SECONDS. Earlier ones
        have that of the rate-limit slot: from an earlier cut point, users are counted from the
        start of its slot on, so never too few.
    cause: why earlier times have only the resolution of the slot.
    """

    since: Mapping[float, int]
    newest: int | None
    exact_from: float = -math.inf
    cause: str = ""

    def knows(self, start: float, seconds: float) -> bool:
        """Return True if the count since `start` is good enough for a window of `seconds`. If times
        have only the resolution of the rate-limit slot, the window must not be shorter than two
        slots."""
        return start >= self.exact_from or seconds >= 2 * conf.ratelimit_seconds


class LastSeenStore(ABC):
    """Base class of the stores that SOUVENIRS_LAST_SEEN_STORE can name.

    A store is created with the setting's dictionary, without BACKEND. `name` is its label in
    metrics. Methods may raise the errors of their server's client.

    Whatever the store, the LastSeen table is updated in the transaction that writes a user's
    souvenir: once in a rate-limit slot. The store receives the updates in between.

    keeps_scopes_apart: whether users with the same key in two scopes (see `scopes`) are two users.
        If not, scoped sites cannot use the store.
    in_table: whether the table has all of the store's times, including those between souvenirs.
    """

    name: str
    keeps_scopes_apart = False
    in_table = False

    def __init__(self, params: Mapping[str, Any]) -> None:
        if params:
            raise ValueError(f"{type(self).__name__} has no options, got {', '.join(params)}")

    @abstractmethod
    def touch(self, update: LastSeenUpdate) -> None:
        """Move the last-seen time of a user forward. The user has a souvenir, or will have one."""

    def touch_all(self, updates: Sequence[LastSeenUpdate]) -> None:
        """Apply several updates of queued visits. Called in the writer's thread, which may wait,
        after the table was written. `has_row` is True if it had a row of the user just now."""
        for update in updates:
            self.touch(update)

    def on_table_updated(self, newest: Mapping[Any, int], latest: int | None = None) -> None:  # noqa: B027
        """Called after the table's times of these users have moved forward to `newest`, and are
        committed. `latest` is as in LastSeenUpdate."""

    def remove(self, user_pks: Collection[Any]) -> None:  # noqa: B027
        """Called after users have been deleted, and the table's rows with them."""

    @abstractmethod
    def get(self, user_pk: Any) -> int | None:
        """Return when the user was last seen, in Unix seconds; None for never."""

    def get_many(self, user_pks: Collection[Any]) -> dict[Any, int]:
        """Return when each of these users was last seen, in Unix seconds, by key. Users who have
        never been seen are left out."""
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

        using: the alias of the database to read from, within `read_context`, if necessary.
        """

    def run_maintenance(self) -> None:  # noqa: B027
        """Start periodic work, without waiting for it."""

    def resync(self) -> None:  # noqa: B027
        """Restore from the table what the store has lost."""

    def reconcile(self, users: int | None = None) -> None:  # noqa: B027
        """Remove users who no longer exist, and add times that are only in the table.

        users: check about this many users, and continue from there at the next call; then it may
        raise django.db.DatabaseError. None: check all users.
        """

    def set_back(self, users: int | None = None) -> None:  # noqa: B027
        """Reset times in the future, from a clock that was ahead, to those in the table, which
        future.set_back has corrected before. users: correct about this many; None: all. Raises
        django.db.DatabaseError."""

    def flush(self) -> bool:
        """Write pending updates. Return False if that has to wait."""
        return True

    def close(self) -> None:  # noqa: B027
        """Called when the process ends."""

    def after_fork(self) -> None:  # noqa: B027
        """Called in the child of a fork: pending updates belong to the parent."""

    def check(self) -> list[CheckMessage]:
        """Check that the server is suitable, for `check --deploy`."""
        return []
