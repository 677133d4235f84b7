"""Generate the past of a site: users, and when they were active. The same seed gives the same past.

Users joined one after the other, more of them as the site grew, over three years (or over twice the
number of days with souvenirs, if that is longer). Their activity differs by orders of magnitude: it
is log-normal, so that a tenth of them have half of the souvenirs. Nobody is active before joining.
Users come in sessions of one to several hours, more often at the busy hours of the day and on
working days, and leave one souvenir in each hour of the clock in which they were there. Users who
stay are seen early in the next hour, so souvenirs are denser there.

    fill(connection, rows=1_000_000, users=50_000, days=60, until=midnight)
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from itertools import accumulate
from typing import Any, NamedTuple

from tqdm import tqdm

SITE_DAYS = 3 * 365
GROWTH = 1.5  # the number of accounts grows with the site's age to this power
SIGMA = 1.5  # standard deviation of the logarithm of users' activity
IS_ACTIVE = 0.97  # share of all users
# Relative probability that a session begins, by hour of the day and by weekday from Monday
HOURS = (4, 2, 1, 1, 1, 2, 6, 14, 26, 30, 28, 24, 20, 26, 28, 26, 24, 24, 20, 18, 20, 18, 12, 7)
WEEKDAYS = (10, 11, 11, 10, 9, 5, 5)
LENGTHS = {1: 50, 2: 22, 3: 12, 4: 7, 6: 5, 8: 4}  # hours in a session: relative probability
MOST_A_DAY = 6  # mean souvenirs per user: with more, there are not enough hours to choose from

MICROSECONDS = 3_600_000_000  # in an hour
USER_BITS = 32
# In the format of `pbkdf2_sha256`, so that user rows are as long as on a real site
PASSWORD = "pbkdf2_sha256$1000000$" + "0" * 22 + "$" + "0" * 44


class Hour(NamedTuple):
    start: datetime
    visits: list[tuple[int, int]]  # (microseconds after the start, user), in chronological order


class Site:
    """A site whose users have the keys 1 to `users`, in the order of joining."""

    def __init__(self, users: int, days: int, until: datetime, seed: int) -> None:
        if until.timestamp() % 3600:
            raise ValueError(f"{until} is not at an hour of the unix clock")
        self.users = users
        self.days = days
        self.until = until.astimezone(timezone.utc)
        self.age = timedelta(days=max(SITE_DAYS, 2 * days))
        self.seed = seed

    def joined(self, user: int) -> datetime:
        age: float = ((user - 1) / self.users) ** (1 / GROWTH)
        return self.until - self.age * (1 - age)

    def joined_before(self, when: datetime) -> int:
        """How many users had joined by then; their keys run from 1 to this number."""
        age = max(0.0, 1 - (self.until - when) / self.age)
        count: int = min(self.users, math.ceil(self.users * age**GROWTH))
        while count and self.joined(count) >= when:  # remove what rounding may have added
            count -= 1
        return count

    def accounts(self) -> Iterator[tuple[Any, ...]]:
        """(id, username, ..., date_joined): see `fill`."""
        chance = random.Random(self.seed + 1)
        for user in range(1, self.users + 1):
            name = f"user{user}"
            joined = f"{self.joined(user):%Y-%m-%d %H:%M:%S.%f}"
            is_active = chance.random() < IS_ACTIVE
            yield (
                user, name, PASSWORD, "First", "Lastname", f"{name}@example.org",
                False, False, is_active, joined,
            )  # fmt: skip

    def hours(self, rows: int) -> Iterator[Hour]:
        """Generate this many visits in chronological order, at most one per user and hour."""
        chance = random.Random(self.seed)
        levels = [chance.lognormvariate(0, SIGMA) for _ in range(self.users)]
        until_user = list(accumulate(levels))
        lengths, length_weights = list(LENGTHS), list(LENGTHS.values())
        mean_length = sum(n * weight for n, weight in LENGTHS.items()) / sum(length_weights)
        for day, size in self._sizes(rows):
            present = self.joined_before(day)
            if size > MOST_A_DAY * present:
                raise ValueError(
                    f"{size} souvenirs on {day:%Y-%m-%d} are too many of {present} users:"
                    f" up to {MOST_A_DAY} of each fit"
                )
            slots: list[set[int]] = [set() for _ in HOURS]
            left = size
            while left:
                sessions = math.ceil(left / mean_length)
                for user, first, length in zip(
                    chance.choices(
                        range(1, present + 1), cum_weights=until_user[:present], k=sessions
                    ),
                    chance.choices(range(24), HOURS, k=sessions),
                    chance.choices(lengths, length_weights, k=sessions),
                ):
                    for slot in slots[first : first + length]:
                        if left and user not in slot:
                            slot.add(user)
                            left -= 1
            for n, slot in enumerate(slots):
                packed = [
                    int(MICROSECONDS * chance.random() ** 1.5) << USER_BITS | user for user in slot
                ]
                packed.sort()
                mask = (1 << USER_BITS) - 1
                visits = [(number >> USER_BITS, number & mask) for number in packed]
                yield Hour(day + timedelta(hours=n), visits)

    def _sizes(self, rows: int) -> Iterator[tuple[datetime, int]]:
        """Yield the beginning of each day, and how many of the rows fall on it."""
        days = [self.until - timedelta(days=n) for n in range(self.days, 0, -1)]
        noon = timedelta(hours=12)
        weights = [WEEKDAYS[(day + noon).weekday()] * self.joined_before(day) for day in days]
        given = 0
        for day, weight in zip(days, accumulate(weights)):
            upto = round(rows * weight / sum(weights))
            yield day, upto - given
            given = upto


def fill(connection: Any, rows: int, users: int, days: int, until: datetime, seed: int = 1) -> None:
    """Fill the migrated and empty tables of a site: auth_user, souvenirs_souvenir,
    souvenirs_lastseen.

    `connection` is Django's, to PostgreSQL (as a superuser, because foreign keys are not checked)
    or SQLite. The souvenirs fall into the `days` days of 24 hours before `until`, an aware datetime
    at an hour of the unix clock. PostgreSQL's indexes are built after the rows, and are therefore
    as small as they can be; SQLite's will be after VACUUM.
    """
    from django.contrib.auth.models import User
    from django.core.management.color import no_style
    from django.db import transaction

    from souvenirs.models import LastSeen

    site = Site(users, days, until, seed)
    seen: dict[int, int] = {}
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        names = (
            "id", "username", "password", "first_name", "last_name", "email",
            "is_superuser", "is_staff", "is_active", "date_joined",
        )  # fmt: skip
        _insert(connection, "auth_user", names, site.accounts())
        with without_indexes(connection, "souvenirs_souvenir"):
            progress = tqdm(desc="souvenirs", total=rows, unit=" rows", unit_scale=True)
            souvenirs = _souvenirs(site.hours(rows), seen, progress)
            _insert(connection, "souvenirs_souvenir", ("when", "user_id"), souvenirs)
            progress.close()
        # In the order in which the migration creates them on a site that comes from 1.0.2
        rows_of_users = ((user, _text(seen[user])) for user in sorted(seen))
        _insert(connection, "souvenirs_lastseen", ("user_id", "seen"), rows_of_users)
        for statement in connection.ops.sequence_reset_sql(no_style(), [User, LastSeen]):
            cursor.execute(statement)


def _souvenirs(
    hours: Iterable[Hour], seen: dict[int, int], progress: Any
) -> Iterator[tuple[str, int]]:
    """Yield (when, user). Sets `seen` to the second in which each user was last there."""
    clock = [f"{second // 60:02}:{second % 60:02}" for second in range(3600)]
    for start, visits in hours:
        seconds, prefix = int(start.timestamp()), f"{start:%Y-%m-%d %H:}"
        for offset, user in visits:
            second, fraction = divmod(offset, 1_000_000)
            seen[user] = seconds + second
            yield f"{prefix}{clock[second]}.{fraction:06}", user
        progress.update(len(visits))


def _text(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S}"


def _insert(
    connection: Any, table: str, columns: Iterable[str], rows: Iterable[tuple[Any, ...]]
) -> None:
    columns = ", ".join(f'"{column}"' for column in columns)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            with cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        else:
            marks = ", ".join(["%s"] * (columns.count(",") + 1))
            cursor.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)


@contextmanager
def without_indexes(connection: Any, table: str) -> Iterator[None]:
    """On PostgreSQL, drop all indexes except the primary key's and recreate them after the block,
    and do not check foreign keys in the rest of the transaction. Updating them for each row would
    take far longer."""
    if connection.vendor != "postgresql":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s"
            " AND indexname NOT IN (SELECT conname FROM pg_constraint)",
            [table],
        )
        indexes = cursor.fetchall()
        for name, _ in indexes:
            cursor.execute(f"DROP INDEX {name}")
        yield
        for _, definition in indexes:
            cursor.execute(definition)
