"""Verified reads: bytes leave only after they matched the checksums of the units that they lie in."""

from __future__ import annotations

from collections.abc import Sequence

from fireflyfs.storage.engine.blocks import BlockStore
from fireflyfs.storage.engine.crc import combine, combine_units, crc32c
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.engine.metadata import MetaStore
from fireflyfs.storage.engine.record import Record, delta_key


class Mismatch(Exception):
    """Bytes and record do not belong together: rot, or the record was replaced since it was read."""


class VerifiedReader:
    """Reads what a record describes. It takes no lock: who gets Mismatch looks whether the record is still the same."""

    def __init__(self, blocks: BlockStore, meta: MetaStore) -> None:
        self._blocks = blocks
        self._meta = meta

    def place(self, key: ChunkKey, record: Record, offset: int, into: memoryview, *, nowait: bool = False) -> int:
        """Fill `into` with [offset, offset + len(into)), which is not empty and inside the chunk; its CRC32C.

        One preadv: what is asked for goes straight into `into`, the rest of the edge units beside it.
        Raises Mismatch (into may hold anything then), WouldBlock, DISK_FAILED.
        """
        count = len(into)
        end = offset + count
        shift = record.unit_shift
        first, last = offset >> shift, (end - 1) >> shift
        low, high = first << shift, min((last + 1) << shift, record.length)
        if record.deltas.touching(low, high):
            return self.place_private(key, record, offset, into, nowait=nowait)
        parts = [into]
        if offset > low:
            parts.insert(0, memoryview(bytearray(offset - low)))
        if end < high:
            parts.append(memoryview(bytearray(high - end)))
        if not self._blocks.read(record.block_shift, record.block, low, parts, nowait=nowait):
            raise Mismatch
        placed = whole = crc32c(into)
        if offset > low:
            whole = combine(crc32c(parts[0]), placed, count)
        if end < high:
            whole = crc32c(parts[-1], whole)
        if whole != self._expected(record, first, last, low, high):
            raise Mismatch
        return placed

    def place_private(
        self, key: ChunkKey, record: Record, offset: int, into: memoryview, *, nowait: bool = False
    ) -> int:
        """As `place`, through memory of our own: for deltas, and where another process could write to `into`."""
        end = offset + len(into)
        shift = record.unit_shift
        low, high = offset >> shift << shift, min(((end - 1 >> shift) + 1) << shift, record.length)
        units = memoryview(self.units(key, record, low, high, nowait=nowait))
        wanted = units[offset - low : end - low]
        into[:] = wanted
        return crc32c(wanted)

    def place_whole(self, key: ChunkKey, record: Record, parts: list[memoryview], *, nowait: bool = False) -> None:
        """Fill `parts`, which have room for just that, with all of a chunk without deltas. Raises as `place`."""
        if not self._blocks.read(record.block_shift, record.block, 0, parts, nowait=nowait):
            raise Mismatch
        whole = 0
        for part in parts:
            whole = crc32c(part, whole)
        if whole != record.crc:
            raise Mismatch

    def place_whole_private(
        self, key: ChunkKey, record: Record, parts: list[memoryview], *, nowait: bool = False
    ) -> None:
        """As `place_whole`, through memory of our own."""
        spread(memoryview(self.units(key, record, 0, record.length, nowait=nowait)), parts)

    def units(self, key: ChunkKey, record: Record, low: int, high: int, *, nowait: bool = False) -> bytearray:
        """Verified bytes [low, high), which are unit bounds or the end of the chunk, deltas applied."""
        buffer = bytearray(high - low)
        if low == high:
            return buffer
        if not self._blocks.read(record.block_shift, record.block, low, [memoryview(buffer)], nowait=nowait):
            raise Mismatch
        for ref in record.deltas.touching(low, high):
            offset, length, _ = ref
            start, stop = max(offset, low), min(offset + length, high)
            target = memoryview(buffer)[start - low : stop - low]
            if ref.place is not None:
                if not self._blocks.read(*ref.place, start - offset, [target], nowait=nowait):
                    raise Mismatch
                continue
            data = self._meta.get(delta_key(key, ref.id))
            if data is None or len(data) != length:
                raise Mismatch
            target[:] = memoryview(data)[start - offset : stop - offset]
        shift = record.unit_shift
        if crc32c(buffer) != self._expected(record, low >> shift, (high - 1) >> shift, low, high):
            raise Mismatch
        return buffer

    def verify(self, key: ChunkKey, record: Record) -> None:
        """Read all that the record describes from the disk, not from the page cache. Raises as `units`."""
        if not record.length:
            return
        content = self._blocks.read_from_disk(record.block_shift, record.block, record.length)
        if content is None:
            raise Mismatch
        for ref in record.deltas:
            if ref.place is not None:
                data = self._blocks.read_from_disk(*ref.place, ref.length)
            else:
                stored = self._meta.get(delta_key(key, ref.id))
                data = memoryview(stored) if stored is not None else None
            if data is None or len(data) != ref.length or ref.offset + ref.length > record.length:
                raise Mismatch
            content[ref.offset : ref.offset + ref.length] = data
        if crc32c(content) != record.crc:
            raise Mismatch

    @staticmethod
    def _expected(record: Record, first: int, last: int, low: int, high: int) -> int:
        if low == 0 and high == record.length:
            return record.crc
        if first == last:
            return record.crcs[first]
        return combine_units(record.crcs[first : last + 1], 1 << record.unit_shift, high - low)


def spread(whole: memoryview, parts: Sequence[memoryview]) -> None:
    """Copy `whole` into the parts, one after the other."""
    at = 0
    for part in parts:
        part[:] = whole[at : at + len(part)]
        at += len(part)


def cut_to(into: Sequence[memoryview], length: int) -> list[memoryview] | None:
    """The beginning of the pieces that `length` bytes fill; None: they do not fit."""
    if len(into) == 1:
        view = into[0]
        return None if length > len(view) else [view if len(view) == length else view[:length]]
    parts: list[memoryview] = []
    for view in into:
        if length <= 0:
            break
        parts.append(view if len(view) <= length else view[:length])
        length -= len(view)
    return parts if length <= 0 else None
