"""Postponed writes to Redis have the same effect as immediate ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from souvenirs.lastseen import pending as pending_module
from souvenirs.lastseen.pending import Move, PendingWrites

pytestmark = pytest.mark.own_site

Times = dict[bytes, int]


def make(times: Times, member: bytes, move: Move) -> None:
    """Apply the writes immediately."""
    if move.seen is None or move.key_reused:
        times.pop(member, None)
    if move.seen is None:
        return
    known = times.get(member)
    if known is None:
        if move.confirmed:
            times[member] = move.seen
    elif move.seen > known or (move.latest is not None and known > move.latest):
        times[member] = move.seen


def write(times: Times, moves: dict[bytes, Move], existing: Times) -> None:
    """Apply the writes as Redis does, once the table says who exists."""
    for member, move in moves.items():
        if member in existing and move.seen is not None:
            make(times, member, move._replace(confirmed=True))
        elif move.confirmed or member not in existing:
            times.pop(member, None)


LATEST = 60  # for live visits; other times may come from a wrong clock
MOVES = st.one_of(
    st.builds(Move, st.integers(10, 90), st.just(True), st.none(), st.just(False)),
    st.builds(Move, st.integers(10, LATEST), st.booleans(), st.just(LATEST), st.just(False)),
    st.just(Move(None)),
)
STEPS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from([b"1", b"2"]), MOVES),
    st.tuples(st.just("write"), st.integers(1, 3)),
    st.tuples(st.just("fail"), st.integers(1, 3), st.lists(
        st.tuples(st.sampled_from([b"1", b"2"]), MOVES), max_size=3
    )),
)  # fmt: skip


NEW_PERSON = [(b"1", Move(None)), (b"1", Move(20))]


@example(steps=[("add", b"1", Move(50)), ("fail", 1, NEW_PERSON)], known=set())
@given(steps=st.lists(STEPS, max_size=20), known=st.sets(st.sampled_from([b"1", b"2"])))
def test_pending_writes__change_nothing_but_the_time(steps: list[Any], known: set[bytes]) -> None:
    pending = PendingWrites()
    expected: Times = dict.fromkeys(known, 5)
    times: Times = expected.copy()
    seen: dict[bytes, set[int]] = {member: {5} for member in known}

    def add(member: bytes, move: Move) -> None:
        make(expected, member, move)
        seen[member] = set() if move.seen is None else {*seen.get(member, ()), move.seen}
        pending.add({member: move})

    for what, *values in steps:
        if what == "add":
            add(*values)
            continue
        moves = pending.pop(values[0])
        if what == "fail":
            for member, move in values[1]:  # meanwhile
                add(member, move)
            pending.restore(moves)
            continue
        write(times, moves, expected)
    write(times, pending.pop(10), expected)
    assert times.keys() == expected.keys()
    for member, time in times.items():
        # A time that was dropped, or replaced by an earlier one, may be kept if both wait together
        assert expected[member] <= time
        assert time in seen[member]
        assert time <= LATEST or expected[member] > LATEST
    assert not pending


def test_pop__oldest_first() -> None:
    pending = PendingWrites()
    for number in range(4):
        pending.add({b"%d" % number: Move(number)})
    moves = pending.pop(2)
    assert list(moves) == [b"0", b"1"]
    pending.restore(moves)
    assert list(pending.pop(3)) == [b"0", b"1", b"2"]


def test_pending_writes__are_bounded_and_report_overflow(monkeypatch: Any) -> None:
    monkeypatch.setattr(pending_module, "MAX_PENDING", 3)
    pending = PendingWrites()
    for number in range(3):
        pending.add({b"%d" % number: Move(number)})
    assert not pending.pop_overflow()
    pending.add({b"3": Move(3)})
    assert len(pending) == 0
    assert pending
    assert pending.pop_overflow()
    assert not pending.pop_overflow()
    pending.restore_overflow()
    assert pending.pop_overflow()
    pending.restore({b"%d" % number: Move(number) for number in range(4)})
    assert len(pending) == 0
    assert pending.pop_overflow()
