"""Deltas: bytes of a chunk that are not in its block yet, as a record names them."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

PATCH = 1 << 63  # set in the id of a delta whose bytes are in a block of their own

_DELTA = struct.Struct("<IIQ")
REF_BYTES = _DELTA.size
PART_SHIFT = 12


class DeltaRef(NamedTuple):
    """Bytes [offset, offset + length) of the chunk that are not yet in its block.

    They stand under key (d, chunk, id), or, for a patch, at the beginning of a block that the id names.
    """

    offset: int
    length: int
    id: int

    @property
    def place(self) -> tuple[int, int] | None:
        """(block shift, block) of a patch; None: the bytes are in the log."""
        return place_of(self.id) if self.id & PATCH else None


def patch_id(shift: int, block: int) -> int:
    """The id of a delta whose bytes are in that block."""
    return PATCH | shift << 32 | block


def place_of(patch: int) -> tuple[int, int]:
    """(block shift, block) of the delta with this id."""
    return patch >> 32 & 0xFF, patch & 0xFFFFFFFF


class Deltas:
    """The deltas over one block, oldest first; later ones lie over earlier ones. Never changed in place.

    Kept as they are stored: each overwrite of a chunk makes a new record with one more, and seldom looks at the others.
    """

    __slots__ = ("_parts", "logged_bytes", "packed", "patched_bytes")

    def __init__(self, packed: bytes, logged_bytes: int, patched_bytes: int, parts: int) -> None:
        self.packed = packed
        self.logged_bytes = logged_bytes
        self.patched_bytes = patched_bytes
        self._parts = parts  # a bit for each 4 KiB of the chunk that a delta may lie over

    @staticmethod
    def of(refs: Iterable[DeltaRef]) -> Deltas:
        return NO_DELTAS.changed((), list(refs))

    @staticmethod
    def unpack(packed: bytes) -> Deltas:
        if not packed:
            return NO_DELTAS
        logged = patched = parts = 0
        for offset, length, name in _DELTA.iter_unpack(packed):
            parts |= _parts(offset, offset + length)
            if name & PATCH:
                patched += length
            else:
                logged += length
        return Deltas(packed, logged, patched, parts)

    def __len__(self) -> int:
        return len(self.packed) // REF_BYTES

    def __iter__(self) -> Iterator[DeltaRef]:
        return map(DeltaRef._make, _DELTA.iter_unpack(self.packed))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Deltas) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash(self.packed)

    def ids(self) -> array[int]:
        ids = array("Q", self.packed)[1::2]  # offset and length make one word, the id the next
        if sys.byteorder == "big":
            ids.byteswap()
        return ids

    def gone_from(self, newer: Deltas) -> list[int]:
        """The ids of those that are not in `newer`, in no order."""
        if newer.packed.startswith(self.packed):
            return []
        return list(set(self.ids()).difference(newer.ids()))

    def within(self, begin: int, end: int) -> list[DeltaRef]:
        """Those of which nothing shows any more when [begin, end) lies over them."""
        if not self._parts & _parts(begin, end):
            return []
        refs = _DELTA.iter_unpack(self.packed)
        return [DeltaRef(*ref) for ref in refs if begin <= ref[0] and ref[0] + ref[1] <= end]

    def touching(self, begin: int, end: int) -> list[DeltaRef]:
        """Those with bytes in [begin, end)."""
        if not self._parts & _parts(begin, end):
            return []
        refs = _DELTA.iter_unpack(self.packed)
        return [DeltaRef(*ref) for ref in refs if ref[0] < end and ref[0] + ref[1] > begin]

    def changed(self, hidden: Sequence[DeltaRef], added: Sequence[DeltaRef]) -> Deltas:
        """Without `hidden`, which are some of these, and with `added` over the others."""
        packed, logged, patched, parts = self.packed, self.logged_bytes, self.patched_bytes, self._parts
        if hidden:
            ids = self.ids()
            for ref in hidden:
                at = ids.index(ref[2])
                ids.pop(at)
                packed = packed[: at * REF_BYTES] + packed[(at + 1) * REF_BYTES :]
                if ref[2] & PATCH:
                    patched -= ref[1]
                else:
                    logged -= ref[1]
        for ref in added:
            packed += _DELTA.pack(*ref)
            parts |= _parts(ref[0], ref[0] + ref[1])
            if ref[2] & PATCH:
                patched += ref[1]
            else:
                logged += ref[1]
        return Deltas(packed, logged, patched, parts)


def _parts(begin: int, end: int) -> int:
    first = begin >> PART_SHIFT
    return (1 << (((end - 1) >> PART_SHIFT) - first + 1)) - 1 << first


NO_DELTAS = Deltas(b"", 0, 0, 0)
