from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from souvenirs.models import Sighting

# The context in which a database, by its alias, may be read
Reading = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a store knows of one instant.

    since: for each cut point that was asked for, how many users have been seen at or after it.
    newest: the newest last-seen time, None if there is none. Times are in unix seconds.
    exact_from: times are known to SOUVENIRS_LAST_SEEN_SECONDS from here on. Those of before are
        known to the rate limit's slot, so from a cut point before it users are counted from the
        beginning of its slot on: never fewer.
    cause: why that is so.
    """

    since: Mapping[float, int]
    newest: int | None
    exact_from: float = -math.inf
    cause: str = ""


class Warned(NamedTuple):
    """What is wrong with a server's configuration, and what to do."""

    problem: str
    remedy: str


class LastSeenStore(ABC):
    """Base of the stores that SOUVENIRS_LAST_SEEN_STORE can name.

    It is made with the setting's dictionary, less BACKEND. `name` is its label in metrics.
    Methods may raise what their server's client raises.

    Whatever the store, the table of LastSeen is written in the transaction that writes a user's
    souvenir: once in a rate-limit slot. What is between those is the store's.
    """

    name: str

    def __init__(self, params: Mapping[str, Any]) -> None:
        if params:
            raise ValueError(f"{type(self).__name__} has no options, got {', '.join(params)}")

    @abstractmethod
    def touch(self, sighting: Sighting) -> None:
        """Moves the last-seen time of a user forward who has a souvenir, or is about to."""

    def follow(self, newest: Mapping[Any, int], latest: int | None = None) -> None:  # noqa: B027
        """The table's last-seen times of these users have been moved forward, and committed.
        `latest` is as a Sighting's."""

    def remove(self, user_pk: Any) -> None:  # noqa: B027
        """A user has been deleted, and so the table's row."""

    @abstractmethod
    def get(self, user_pk: Any) -> int | None:
        """When the user was last seen (unix seconds), None for never."""

    @abstractmethod
    def activity(
        self, cuts: Sequence[float], until: float, using: str, reading: Reading = nullcontext
    ) -> Activity:
        """The users seen from each of `cuts` to `until`, both inclusive.

        `using` is the alias of the database to read from, within `reading`, for what is there.
        """

    def keep_up(self) -> None:  # noqa: B027
        """Begins what is to be done from time to time, and waits for nothing."""

    def fill(self) -> None:  # noqa: B027
        """Takes from the table what the store has lost."""

    def sweep(self, users: int | None = None) -> None:  # noqa: B027
        """Removes who is no user any more, whatever has happened.

        users: looks at the next so many only; raises django.db.DatabaseError then.
        """

    def warning(self) -> Warned | None:
        """Asks the server whether it is fit for this. None: it is."""
        return None
