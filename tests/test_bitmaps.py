from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyroaring import BitMap

from souvenirs import bitmaps

PORTABLE = (0x3A, 0x3B)
ids = st.integers(0, 2**31 - 1) | st.integers(0, 70_000)


@given(
    st.sets(ids, max_size=600)
    | st.builds(lambda a, n: set(range(a, a + n)), ids, st.integers(0, 9_000))
)
@example(set())
@example({0})
@example({2**31 - 1})
@example({0, 65_535, 65_536, 131_071})
def test_bytes__contain_the_same_set(members: set[int]) -> None:
    data = bitmaps.to_bytes(BitMap(members))
    assert set(bitmaps.from_bytes(data)) == members
    assert data[0] in (*PORTABLE, bitmaps.ZLIB)


@given(st.binary(max_size=2_100))
def test_unpack__gives_what_was_packed(plain: bytes) -> None:
    packed = bitmaps.pack(plain)
    assert packed[0] == bitmaps.ZLIB
    assert bitmaps.unpack(packed) == plain + b"\0" * (len(plain) % 2)


def spread(count: int, among: int) -> BitMap:
    return BitMap(random.Random(1).sample(range(1, among + 1), count))


def test_to_bytes__small_bitmaps_take_less_than_two_bytes_a_user() -> None:
    data = bitmaps.to_bytes(spread(350, 50_000))
    assert data[0] == bitmaps.ZLIB
    assert len(data) < 350 * 1.6


@pytest.mark.parametrize(("count", "among"), [(3_500, 500_000), (30_000, 50_000)])
def test_to_bytes__large_ones_are_in_the_portable_format(count: int, among: int) -> None:
    data = bitmaps.to_bytes(spread(count, among))
    assert data[0] in PORTABLE
    assert BitMap.deserialize(data) == spread(count, among)
