"""Deltas: bytes of a chunk that are not in its block yet, as a record names them."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

PATCH = 1 << 63  # set in the id of a delta whose bytes are in a block of their own

_DELTA = struct.Struct("<IIQ")
REF_BYTES = _DELTA.size


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
        return (self.id >> 32 & 0xFF, self.id & 0xFFFFFFFF) if self.id & PATCH else None


def patch_id(shift: int, block: int) -> int:
    """The id of a delta whose bytes are in that block."""
    return PATCH | shift << 32 | block


class Deltas(tuple[DeltaRef, ...]):
    """The deltas over one block, oldest first; later ones lie over earlier ones.

    With them, because each overwrite of a chunk makes a new one: how they are stored, and how many bytes they have.
    """

    packed: bytes
    logged_bytes: int
    patched_bytes: int

    @staticmethod
    def of(refs: Iterable[DeltaRef]) -> Deltas:
        deltas = Deltas(refs)
        deltas.packed = _struct(len(deltas)).pack(*itertools.chain.from_iterable(deltas))
        deltas.patched_bytes = sum([ref[1] for ref in deltas if ref[2] & PATCH])
        deltas.logged_bytes = sum([ref[1] for ref in deltas]) - deltas.patched_bytes
        return deltas

    @staticmethod
    def unpack(packed: bytes) -> Deltas:
        if not packed:
            return NO_DELTAS
        deltas = Deltas(map(DeltaRef._make, _DELTA.iter_unpack(packed)))
        deltas.packed = packed
        deltas.patched_bytes = sum([ref[1] for ref in deltas if ref[2] & PATCH])
        deltas.logged_bytes = sum([ref[1] for ref in deltas]) - deltas.patched_bytes
        return deltas

    def within(self, begin: int, end: int) -> list[DeltaRef]:
        """Those of which nothing shows any more when [begin, end) lies over them."""
        return [ref for ref in self if begin <= ref[0] < end and ref[0] + ref[1] <= end]

    def touching(self, begin: int, end: int) -> list[DeltaRef]:
        """Those with bytes in [begin, end)."""
        return [ref for ref in self if ref[0] < end and ref[0] + ref[1] > begin]

    def changed(self, hidden: Sequence[DeltaRef], added: Sequence[DeltaRef]) -> Deltas:
        """Without `hidden`, which are some of these, and with `added` over the others."""
        refs: tuple[DeltaRef, ...] = self
        packed, logged, patched = self.packed, self.logged_bytes, self.patched_bytes
        for ref in hidden:
            at = refs.index(ref)
            refs = refs[:at] + refs[at + 1 :]
            packed = packed[: at * REF_BYTES] + packed[(at + 1) * REF_BYTES :]
            if ref[2] & PATCH:
                patched -= ref[1]
            else:
                logged -= ref[1]
        for ref in added:
            packed += _DELTA.pack(*ref)
            if ref[2] & PATCH:
                patched += ref[1]
            else:
                logged += ref[1]
        deltas = Deltas(refs + tuple(added))
        deltas.packed, deltas.logged_bytes, deltas.patched_bytes = packed, logged, patched
        return deltas


@lru_cache(maxsize=256)
def _struct(count: int) -> struct.Struct:
    return struct.Struct("<" + "IIQ" * count)


NO_DELTAS = Deltas.of(())
