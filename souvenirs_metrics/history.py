"""Active users at past instants -> OpenMetrics with timestamps.

The last-seen times of the past, replayed: a rolling window that ended at T had as many users as, of
what they did before T, were last seen in it. So one sweep over the history, which keeps each user's
latest activity, has all windows of all instants.

It goes by blocks of time that the rate limit's slots fill. A row says that its user was active in
the slot, so windows are exact at the bounds of slots; until the next bound the value is held, and a
window that begins between two begins at the earlier one. Who is deleted since counts, as in every
closed period. They, and pruned souvenirs, are known to the quarter of an hour.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from souvenirs.conf import conf as souvenirs_conf
from souvenirs.history.counting import History, Users, first_recorded
from souvenirs.isolation import snapshot
from souvenirs.models import Souvenir
from souvenirs.periods import BUCKET, Interval, bucket_containing
from souvenirs_metrics.conf import conf
from souvenirs_metrics.families import ACTIVE_USERS

DAY = 86_400

Track = Callable[[Sequence[range]], Iterable[range]]


class Block(NamedTuple):
    """Who was active in a stretch of time.

    `late` has the users of each quarter of an hour that ends in it, where blocks cut quarters, and
    the number of the block that the quarter begins in. Those of them who were not seen since then
    are known to the quarter only.
    """

    users: list[Any]
    late: list[tuple[int, list[Any]]]


def openmetrics(instants: range, labels: Mapping[str, str], track: Track = iter) -> Iterator[str]:
    """The lines of souvenirs_active_users at these instants (unix seconds), series by series.

    There are none of windows that begin before the first record: these counts would be too low.
    `labels` are added to each series. `track` is given the days of the history, to read each as it
    is iterated over; all reading is done before the first line. Memory is bounded by a day's
    souvenirs, the number of users, and that of the blocks.
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
    for numbers in sweep(read(blocks, size, using, track), list(lengths.values())):
        for series, number in zip(counts, numbers):
            series.append(number)
    yield f"# HELP {ACTIVE_USERS.name} {ACTIVE_USERS.documentation}\n"
    yield f"# TYPE {ACTIVE_USERS.name} gauge\n"
    for (name, length), series in zip(lengths.items(), counts):
        pairs = {**labels, ACTIVE_USERS.label: name}.items()
        metric = f"{ACTIVE_USERS.name}{{{','.join(f'{k}={quoted(v)}' for k, v in pairs)}}}"
        for instant in instants:
            end = int(instant // size)
            if end - length >= first:
                yield f"{metric} {series[end - blocks.start - 1]} {instant}\n"
    yield "# EOF\n"


def block_size(step: int, windows: Iterable[int], limit: float) -> float:
    """Seconds of a block: the rate limit, or a multiple of it that still ends at each step's and
    each window's bounds."""
    common = math.gcd(step, *windows)
    return limit * max(1, common // limit) if limit else common


def sweep(blocks: Iterable[Block], lengths: Sequence[int]) -> Iterator[list[int]]:
    """After each block, how many users the last so many blocks have, for each of the lengths."""
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


def read(blocks: range, size: float, using: str, track: Track = iter) -> Iterator[Block]:
    """The users of the blocks [n * size, (n + 1) * size) of these n, a day of them at a time."""
    length = max(1, int(DAY // size))
    for day in track([blocks[at : at + length] for at in range(0, len(blocks), length)]):
        spans = [Interval(n * size, (n + 1) * size) for n in day]
        quarters: list[Interval] = []
        if size % BUCKET:  # else no quarter is cut
            starts = range(
                bucket_containing(spans[0].start), bucket_containing(spans[-1].end), BUCKET
            )
            quarters = [Interval(q, q + BUCKET) for q in starts if q >= blocks.start * size]
        with snapshot(using) as is_snapshot:
            history = History([*spans, *quarters], using, is_snapshot)
            numbers = range(len(history.ranges))
            found = {n: keys(users) for n, users in history.compose(numbers, with_members=True)}
        late: dict[int, list[tuple[int, list[Any]]]] = defaultdict(list)
        for number, (start, end) in enumerate(quarters, len(spans)):
            since = int(start // size) - blocks.start
            late[math.ceil(end / size) - 1].append((since, found[number]))
        for number, n in enumerate(day):
            yield Block(found[number], late[n])


def keys(users: Users) -> list[Any]:
    """Something that tells each user from all others."""
    return [*users.members, *((key,) for key in users.strays)]


def quoted(value: str) -> str:
    for character, replacement in {"\\": r"\\", "\n": r"\n", '"': r"\""}.items():
        value = value.replace(character, replacement)
    return f'"{value}"'
