"""Active users at past instants -> OpenMetrics with timestamps.

This replays the last-seen times of the past: the users of a rolling window that ended at T are
those whose latest activity before T lies in it. So one pass over the history, which keeps each
user's latest activity, yields all windows of all instants.

Time is cut into blocks that the rate limit's slots fill. A row says that its user was active in the
slot, so windows are exact at the bounds of slots; until the next bound the value is held, and a
window that begins between two bounds begins at the earlier one. Users who have been deleted since
count, as in every closed period. They, and pruned souvenirs, are known to the quarter of an hour.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from souvenirs.conf import conf as souvenirs_conf
from souvenirs.history.counting import first_recorded
from souvenirs.history.plans import History, Users
from souvenirs.isolation import repeatable_read
from souvenirs.models import Souvenir
from souvenirs.periods import BUCKET, Interval, bucket_containing
from souvenirs_metrics.conf import conf
from souvenirs_metrics.families import ACTIVE_USERS

DAY = 86_400

Track = Callable[[Sequence[range]], Iterable[range]]


class Block(NamedTuple):
    """The users active in a stretch of time.

    late: if blocks cut quarters of an hour, the users of each quarter that ends in this block, with
        the number of the block that the quarter begins in. Users not seen since that block are
        known to the quarter only.
    """

    users: list[Any]
    late: list[tuple[int, list[Any]]]


def openmetrics(instants: range, labels: Mapping[str, str], track: Track = iter) -> Iterator[str]:
    """The lines of souvenirs_active_users at these instants (unix seconds), series by series.

    Windows that begin before the first record are left out, as their counts would be too low.

    labels: added to each series.
    track: called with the days of the history. Each is read when the result is iterated over, and
        all of them before the first line.

    Memory is bounded by the souvenirs of a day, the number of users, and that of the blocks.
    """
    using = conf.database(Souvenir)
    size = block_size(instants.step, conf.windows.values(), souvenirs_conf.ratelimit_seconds)
    lengths = {name: math.ceil(seconds / size) for name, seconds in conf.windows.items()}
    recorded = first_recorded(using)
    last = int(instants[-1] // size)
    first = last if recorded is None else math.ceil(recorded / size)
    earliest = max(first, int(instants[0] // size) - max(lengths.values()))
    blocks = range(earliest - math.ceil(BUCKET / size), last)  # with the whole quarter it begins in
    counts = [array("Q") for _ in lengths]
    for numbers in count_windows(read_blocks(blocks, size, using, track), list(lengths.values())):
        for series, number in zip(counts, numbers):
            series.append(number)
    yield f"# HELP {ACTIVE_USERS.name} {ACTIVE_USERS.documentation}\n"
    yield f"# TYPE {ACTIVE_USERS.name} gauge\n"
    for (name, length), series in zip(lengths.items(), counts):
        pairs = {**labels, ACTIVE_USERS.labels[0]: name}.items()
        metric = f"{ACTIVE_USERS.name}{{{','.join(f'{k}={quote(v)}' for k, v in pairs)}}}"
        for instant in instants:
            end = int(instant // size)
            if end - length >= first:
                yield f"{metric} {series[end - blocks.start - 1]} {instant}\n"
    yield "# EOF\n"


def block_size(step: int, windows: Iterable[int], limit: float) -> float:
    """Seconds of a block: the rate limit, or a multiple of it that still ends at the bounds of each
    step and window."""
    common = math.gcd(step, *windows)
    return limit * max(1, common // limit) if limit else common


def count_windows(blocks: Iterable[Block], lengths: Sequence[int]) -> Iterator[list[int]]:
    """After each block, the number of users of the last n blocks, for each n of `lengths`."""
    latest: dict[Any, int] = {}  # block that a user was last active in
    active: list[int] = []  # users who were last active in a block, by its number
    for number, (users, late) in enumerate(blocks):
        if late:
            unplaced = (u for since, many in late for u in many if latest.get(u, -1) < since)
            users = list({*users, *unplaced})
        for block, moved in Counter(map(latest.get, users)).items():
            if block is not None:
                active[block] -= moved
        active.append(len(users))
        latest.update(dict.fromkeys(users, number))
        yield [sum(active[-length:]) for length in lengths]


def read_blocks(blocks: range, size: float, using: str, track: Track = iter) -> Iterator[Block]:
    """The users of the blocks [n * size, (n + 1) * size) for these n, read by the day."""
    length = max(1, int(DAY // size))
    for day in track([blocks[at : at + length] for at in range(0, len(blocks), length)]):
        spans = [Interval(n * size, (n + 1) * size) for n in day]
        quarters: list[Interval] = []
        if size % BUCKET:  # else no quarter is cut
            starts = range(
                bucket_containing(spans[0].start), bucket_containing(spans[-1].end), BUCKET
            )
            quarters = [Interval(q, q + BUCKET) for q in starts if q >= blocks.start * size]
        with repeatable_read(using) as is_snapshot:
            history = History([*spans, *quarters], using, is_snapshot)
            numbers = range(len(history.ranges))
            found = {
                n: distinct_keys(users)
                for n, users in history.iter_users(numbers, with_members=True)
            }
        late: dict[int, list[tuple[int, list[Any]]]] = defaultdict(list)
        for number, (start, end) in enumerate(quarters, len(spans)):
            since = int(start // size) - blocks.start
            late[math.ceil(end / size) - 1].append((since, found[number]))
        for number, n in enumerate(day):
            yield Block(found[number], late[n])


def distinct_keys(users: Users) -> list[Any]:
    """A value for each user that no other user has."""
    return [*users.members, *((key,) for key in users.without_ordinal)]


def quote(value: str) -> str:
    """The value of a label."""
    for character, replacement in {"\\": r"\\", "\n": r"\n", '"': r"\""}.items():
        value = value.replace(character, replacement)
    return f'"{value}"'
