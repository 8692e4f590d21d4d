"""Checksums of 4 KiB parts of chunks that are overwritten, in memory only.

A record has one checksum for each unit, and most units have several parts. To overwrite one part without its old
checksum, the unit has to be read and checked; with it, arithmetic gives the new checksum of the unit. An old checksum
is known of what was read and checked before, and of what was written since. So nothing is vouched for that was not
checked: what rots beside an overwritten part is found by whoever reads it, as if the part had not been overwritten.
"""

from __future__ import annotations

import threading
from array import array
from typing import NamedTuple

from fireflyfs.storage.engine.crc import crc32c, shift, unit_crcs
from fireflyfs.storage.engine.deltas import PART_SHIFT
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.engine.record import Record

PART_BYTES = 1 << PART_SHIFT
PARTS_MAX = 1 << 20  # remembered in a store: 4 MiB, for 4 GiB of chunks

UNKNOWN = 0  # also the checksum of one part in 4 billion, which is then read again


class _Known(NamedTuple):
    version: int
    crcs: array[int]  # of the record that has this content
    sums: array[int]


class PartSums:
    """Chunks to what is known of their parts. The caller holds the chunk; which record it was about is compared."""

    def __init__(self, parts_max: int = PARTS_MAX) -> None:
        self._parts_max = parts_max
        self._known: dict[ChunkKey, _Known] = {}  # in the order of their last overwrites
        self._parts = 0
        self._lock = threading.Lock()

    def knows(self, key: ChunkKey) -> bool:
        """Whether `of` may say more than that nothing is known."""
        return key in self._known

    def of(self, key: ChunkKey, record: Record) -> array[int]:
        """For the caller to change."""
        known = self._known.get(key)
        if known is not None and known.version == record.version and known.crcs == record.crcs:
            return known.sums[:]
        return array("I", bytes(4 * parts_of(record.length)))

    def put(self, key: ChunkKey, record: Record, sums: array[int]) -> None:
        """`sums` are those of what `record` describes. They belong to this object from now on."""
        with self._lock:
            old = self._known.pop(key, None)
            self._known[key] = _Known(record.version, record.crcs, sums)
            self._parts += len(sums) - (len(old.sums) if old is not None else 0)
            while self._parts > self._parts_max and len(self._known) > 1:
                oldest = next(iter(self._known))
                self._parts -= len(self._known.pop(oldest).sums)


def parts_of(length: int) -> int:
    return (length + PART_BYTES - 1) >> PART_SHIFT


def learn(sums: array[int], begin: int, content: memoryview) -> None:
    """`content`, which was checked or is written, stands from `begin` on, where a part begins, to the end of one."""
    found = array("I", unit_crcs(content, PART_BYTES))
    first = begin >> PART_SHIFT
    sums[first : first + len(found)] = found


def forget(sums: array[int], begin: int, end: int) -> None:
    """[begin, end) is about to be something else."""
    first, stop = begin >> PART_SHIFT, min(parts_of(end), len(sums))
    if first < stop:
        sums[first:stop] = array("I", bytes(4 * (stop - first)))


def overwrite(sums: array[int], crcs: array[int], base: Record, low: list[tuple[int, memoryview]]) -> int | None:
    """Lay pieces that do not overlap over base: their checksums into `sums` and `crcs`; that of the whole.

    None, with nothing changed, where the old checksums do not suffice: a piece is no whole parts, or one is unknown.
    """
    length = base.length
    for at, data in low:
        end = at + len(data)
        if at % PART_BYTES or (end % PART_BYTES and end != length):
            return None
        if UNKNOWN in sums[at >> PART_SHIFT : parts_of(end)]:
            return None
    unit_shift, whole = base.unit_shift, base.crc
    for at, data in low:
        for begin in range(at, at + len(data), PART_BYTES):
            part = data[begin - at : begin - at + PART_BYTES]
            number, unit = begin >> PART_SHIFT, begin >> unit_shift
            unit_end = min((unit + 1) << unit_shift, length)
            new = crc32c(part)
            change = shift(sums[number] ^ new, unit_end - begin - len(part))
            sums[number] = new
            crcs[unit] ^= change
            whole ^= shift(change, length - unit_end)
    return whole
