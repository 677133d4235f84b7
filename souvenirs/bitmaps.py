"""Convert sets of LastSeen ids to compact bytes and back.

The format is the portable format of roaring bitmaps or, for small bitmaps, a packed form of it if
that is smaller. The first byte distinguishes them. In a small bitmap the format's 16-bit words are
mostly a sorted array: neighbouring words differ little, so the differences deflate well.

pyroaring is imported on first use: only one interpreter in a process can load it, and under
mod_wsgi, where each site has an interpreter, all of them have to record.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyroaring import BitMap

SMALL = 4_096  # bytes; unpacking larger ones would take more time than the space is worth
WORD = 16  # bits
ZLIB = 0x78  # the first byte of packed ones; those of the portable format are 0x3A and 0x3B


def bitmap(members: Iterable[int] = ()) -> BitMap:
    from pyroaring import BitMap

    return BitMap(members)


def union(parts: Iterable[BitMap]) -> BitMap:
    """Return the union of one or more bitmaps."""
    from pyroaring import BitMap

    return BitMap.union(*parts)


def to_bytes(members: BitMap) -> bytes:
    """Serialise the bitmap. This changes its internal layout, but not its members."""
    members.run_optimize()
    plain = members.serialize()
    small = pack(plain) if len(plain) <= SMALL else plain
    return small if len(small) < 0.85 * len(plain) else plain


def from_bytes(data: bytes) -> BitMap:
    from pyroaring import BitMap

    return BitMap.deserialize(unpack(data) if data[0] == ZLIB else data)


def pack(plain: bytes) -> bytes:
    # Treat the data as one number, to subtract each of its words from the next all at once
    size = len(plain) + len(plain) % 2
    number = int.from_bytes(plain, "little")
    differences = (number - (number << WORD)) & mask(8 * size)
    deflate = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
    return deflate.compress(differences.to_bytes(size, "little")) + deflate.flush()


def unpack(packed: bytes) -> bytes:
    """Return the argument of `pack`, possibly with a zero byte appended."""
    differences = zlib.decompress(packed)
    bits = 8 * len(differences)
    number, shift, every = int.from_bytes(differences, "little"), WORD, mask(bits)
    while shift < bits:  # each word becomes the sum of twice as many as before
        number = (number + (number << shift)) & every
        shift *= 2
    return number.to_bytes(len(differences), "little")


def mask(bits: int) -> int:
    """Return a mask to cut numbers to so many bits; `%` would take ten times as long."""
    return (1 << bits) - 1
