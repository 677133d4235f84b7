"""Counts the users of rolling windows and periods to date, at past instants.

The users of a window or period to date that ends at T are those whose latest activity before T lies
in it. So a single pass over the history that keeps each user's latest activity yields all windows
and periods at all instants.

Time is divided into blocks of one or more slots of the rate limit: at multiples of the limit, and
at the site's midnights. A row means that its user was active in the slot. So counts are exact at
the bounds of blocks, and stay the same until the next bound. A window that begins inside a block
includes the whole block.

Users who have been deleted since are counted, as in every closed period. Their activity, and pruned
souvenirs, are known to the quarter of an hour.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import tee
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

from souvenirs import periods
from souvenirs.conf import conf as souvenirs_conf
from souvenirs.history.plans import History, Users
from souvenirs.isolation import repeatable_read
from souvenirs.periods import BUCKET, Interval, bucket_containing
from souvenirs_metrics.conf import conf
from souvenirs_metrics.cuts import period_starts
from souvenirs_metrics.families import (
    ACTIVE_USERS,
    CALENDAR_ACTIVE_USERS,
    CALENDAR_PERIOD_START,
    CALENDAR_SEGMENT_ACTIVE_USERS,
    LAST_SEEN,
    SEGMENT_ACTIVE_USERS,
)
from souvenirs_metrics.readers.base import Families

if TYPE_CHECKING:
    from pyroaring import BitMap

DAY = 86_400

Track = Callable[[Sequence[range]], Iterable[range]]


class Block(NamedTuple):
    """The users active in one block of time.

    late: if the bounds of blocks divide quarters of an hour, the users of each quarter that ends in
        this block, with the number of the block in which the quarter begins. Of users not seen
        since that block, only the quarter is known.
    """

    users: list[Any]
    late: list[tuple[int, list[Any]]]


class Counts(NamedTuple):
    """Counts of users.

    since: for a block's number, how many users were last active in that block or a later one.
    newest: the last block in which anybody was active; None if nobody ever was.
    """

    since: dict[int, int]
    newest: int | None


def replay(
    instants: range,
    recorded: float,
    using: str,
    track: Track = iter,
    members: Mapping[tuple[str, str], BitMap] | None = None,
) -> Iterator[tuple[float, Families]]:
    """What the ActiveUsers reader would have returned at each bound of a block up to the last
    instant: pairs of unix seconds and families, in order.

    Windows and periods that begin before `recorded`, the time of the first record, are left out:
    their counts would be too low.

    track: wraps the sequence of days (each a range of block numbers) in an iterable that reports
        progress.
    members: the LastSeen ids of the users to count separately, by segment and value.

    Memory is bounded by the souvenirs of a day, the number of users and the number of blocks.
    """
    zone = souvenirs_conf.zone
    windows = conf.windows
    size = block_size(instants.step, windows.values(), souvenirs_conf.ratelimit_seconds)
    lengths = {name: math.ceil(seconds / size) for name, seconds in windows.items()}
    first = min(
        instants[0] - (max(lengths.values(), default=0) + 1) * size,
        *period_starts(instants[0]).values(),
    )
    bounds = block_bounds(bucket_containing(max(first, recorded)), instants[-1], size, zone)
    numbers = {bound: number for number, bound in enumerate(bounds)}
    # Index of the first bound whose counts are needed: windows are counted at multiples of `size`
    shown = max(bisect_right(bounds, instants[0] // size * size) - 1, 0)
    starts: list[dict[str, float]] = [{}] * shown  # of the periods, at each bound
    wanted: list[dict[tuple[str, str], int]] = [{}] * shown  # block by (label, its value)
    of_day: dict[str, float] = {}
    for bound in bounds[shown:]:
        if not of_day or bound == periods.calendar_period("day", bound, zone).start:
            of_day = period_starts(bound)
        starts.append(of_day)
        begins = {("period", name): start for name, start in of_day.items()}
        number = int(bound // size)
        if number * size == bound:
            begins |= {("window", n): (number - length) * size for n, length in lengths.items()}
        wanted.append({key: numbers[t] for key, t in begins.items() if t >= recorded})
    members = members or {}
    since = [list(each.values()) for each in wanted]
    blocks, *copies = tee(read_blocks(bounds, size, using, track), 1 + len(members))
    counted = zip(  # in step, so that `tee` buffers one block at most
        count_since(blocks, since),
        *(
            count_since(restrict_to(each, copy), since)
            for copy, each in zip(copies, members.values())
        ),
    )
    # Counts come first in zip, so that all days are read to the end and `track` sees that
    for (counts, *of_members), bound, of_bound, blocks_of in zip(counted, bounds, starts, wanted):
        if not of_bound:
            continue
        values: dict[str, dict[str, int]] = {"window": {}, "period": {}}
        by_segment: dict[str, dict[tuple[str, ...], int]] = {"window": {}, "period": {}}
        for (label, value), number in blocks_of.items():
            values[label][value] = counts.since[number]
            for segment, each in zip(members, of_members):
                labels = (*segment, value)
                by_segment[label][labels] = each.since[number]
        yield (
            bound,
            [
                ACTIVE_USERS.family(values["window"]),
                CALENDAR_ACTIVE_USERS.family(values["period"]),
                SEGMENT_ACTIVE_USERS.family(by_segment["window"]),
                CALENDAR_SEGMENT_ACTIVE_USERS.family(by_segment["period"]),
                CALENDAR_PERIOD_START.family(of_bound),
                LAST_SEEN.family(None if counts.newest is None else bounds[counts.newest + 1]),
            ],
        )


def restrict_to(members: BitMap, blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks, with only these users."""

    def among(users: list[Any]) -> list[Any]:
        return [user for user in users if isinstance(user, int) and user in members]

    for users, late in blocks:
        yield Block(among(users), [(since, among(many)) for since, many in late])


def block_size(step: int, windows: Iterable[int], limit: float) -> float:
    """Length of a block in seconds: the rate limit or, if the greatest common divisor of the step
    and the windows is longer, the largest multiple of the limit up to that divisor."""
    common = math.gcd(step, *windows)
    return limit * max(1, common // limit) if limit else common


def block_bounds(start: float, end: float, size: float, zone: ZoneInfo) -> list[float]:
    """The multiples of `size` and the zone's midnights, in order, from the multiple at or before
    `start` to `end`."""
    multiples = [number * size for number in range(int(start // size), int(end // size) + 1)]
    bounds = set(multiples)
    midnight = periods.calendar_period("day", multiples[0], zone).end
    while midnight <= end:
        bounds.add(midnight)
        midnight = periods.calendar_period("day", midnight, zone).end
    return sorted(bounds)


def count_since(blocks: Iterable[Block], wanted: Sequence[Sequence[int]]) -> Iterator[Counts]:
    """The counts before the first block and after each block, since the `wanted` block numbers."""
    latest: dict[Any, int] = {}  # the block in which each user was last active
    active: list[int] = []  # the number of users last active in each block
    newest = None
    yield Counts(_sums_from(active, wanted[0]), newest)
    for number, (users, late) in enumerate(blocks):
        if late:
            unplaced = (u for since, many in late for u in many if latest.get(u, -1) < since)
            users = list({*users, *unplaced})
        for block, moved in Counter(map(latest.get, users)).items():
            if block is not None:
                active[block] -= moved
        active.append(len(users))
        latest.update(dict.fromkeys(users, number))
        newest = number if users else newest
        yield Counts(_sums_from(active, wanted[number + 1]), newest)


def _sums_from(active: Sequence[int], numbers: Iterable[int]) -> dict[int, int]:
    """For each of `numbers`, the sum of `active` from that index on."""
    found, total, end = {}, 0, len(active)
    for number in sorted(set(numbers), reverse=True):
        total += sum(active[number:end])
        found[number] = total
        end = number
    return found


def read_blocks(
    bounds: Sequence[float], size: float, using: str, track: Track = iter
) -> Iterator[Block]:
    """The users of the blocks between these bounds. About a day of blocks is read at a time."""
    length = max(1, int(DAY // size))
    numbers = range(len(bounds) - 1)
    for day in track([numbers[at : at + length] for at in range(0, len(numbers), length)]):
        spans = [Interval(bounds[number], bounds[number + 1]) for number in day]
        quarters: list[Interval] = []
        if any(end % BUCKET for _, end in spans):  # or else no quarter is divided
            starts = range(
                bucket_containing(spans[0].start), bucket_containing(spans[-1].end), BUCKET
            )
            quarters = [Interval(q, q + BUCKET) for q in starts if q >= bounds[0]]
        with repeatable_read(using) as is_snapshot:
            history = History([*spans, *quarters], using, is_snapshot)
            found = {
                number: distinct_keys(users)
                for number, users in history.iter_users(
                    range(len(history.ranges)), with_members=True
                )
            }
        late: dict[int, list[tuple[int, list[Any]]]] = defaultdict(list)
        for at, (start, end) in enumerate(quarters, len(spans)):
            since = bisect_right(bounds, start) - 1
            late[bisect_left(bounds, end) - 1].append((since, found[at]))
        for at, number in enumerate(day):
            yield Block(found[at], late[number])


def distinct_keys(users: Users) -> list[Any]:
    """A distinct value for each user."""
    return [*users.members, *((key,) for key in users.without_ordinal)]
