from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a store knows of one instant.

    since: for each cut point that was asked for, how many users have been seen at or after it.
    newest: the newest last-seen time, None if there is none. All times in unix seconds.
    """

    since: Mapping[float, int]
    newest: int | None


class LastSeenStore(ABC):
    """Base of the stores that SOUVENIRS_LAST_SEEN_STORE can name.

    It is made with the setting's dictionary, less BACKEND. `name` is its label in metrics.
    Methods raise what their server's client raises.
    """

    name: str

    def __init__(self, params: Mapping[str, Any]) -> None:
        if params:
            raise ValueError(f"{type(self).__name__} has no options, got {', '.join(params)}")

    @abstractmethod
    def touch(
        self,
        user_pk: Any,
        seen: int | None,
        *,
        slot_start: int,
        latest: int | None,
        has_row: bool = False,
    ) -> None:
        """Moves a user's last-seen time forward: see LastSeenQuerySet.touch."""

    @abstractmethod
    def get(self, user_pk: Any) -> int | None:
        """When the user was last seen (unix seconds), None for never."""

    @abstractmethod
    def activity(self, cuts: Sequence[float], until: float, using: str) -> Activity:
        """The users seen from each of `cuts` to `until`, both inclusive, from one snapshot.

        `using` is the database alias to read from, for stores that are in a database.
        """
