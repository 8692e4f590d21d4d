"""Turning an update into a pending record: append in place, delta, or a new block. See docs/format/chunk_store.md.

Which of them is chosen follows from what a crash may find: bytes under a committed record are never written to here.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import CHUNK_BYTES_MAX, CHUNK_EXTENTS_MAX, KiB
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine.blocks import UNCACHED_BYTES_MIN, BlockStore
from fireflyfs.storage.engine.crc import combine, combine_units, crc32c, patch, unit_crcs
from fireflyfs.storage.engine.interface import ChunkKey, Extent, Update, WouldBlock
from fireflyfs.storage.engine.reader import Mismatch, VerifiedReader
from fireflyfs.storage.engine.record import (
    BLOCK_SHIFT_MIN,
    FLAG_DAMAGED,
    FLAG_REMOVED,
    DeltaRef,
    Record,
    block_shift_of,
    delta_key,
    patch_id,
    unit_shift_of,
)

LOGGED_PART_BYTES_MAX = 16 * KiB  # overwritten in one piece; a larger one becomes a patch: a block of its own
# As BlockStore's, for patches: each lies in a block that was used by another a while ago, and the first touch of a page
# costs more than its copy.
PATCH_UNCACHED_BYTES_MIN = 64 * KiB
DELTA_CHUNK_REFS_MAX = 64  # logged and patched pieces waiting over one chunk, together no longer than twice its length;
# beyond, and for an overwrite of more than half of it, the chunk is copied
NOWAIT_COPY_BYTES_MAX = 128 * KiB  # a larger chunk is copied only where the caller has time,
# except for one that small overwrites have piled up over: it is in the page cache, and stays there.
NOWAIT_REWRITE_BYTES_MAX = 1024 * KiB

Part = tuple[int, memoryview]  # (offset in the chunk, bytes)


class Staged(NamedTuple):
    """A pending record, the delta values to store with it, and the blocks that were taken for it."""

    record: Record
    deltas: list[tuple[bytes, bytes]]
    allocated: Sequence[tuple[int, int]]


class DeltaRoom(NamedTuple):
    """Whether the store takes more deltas of each kind."""

    logged: bool
    patched: bool


def check_update(update: Update) -> None:
    """Raises INVALID for arguments out of bounds."""
    size = update.chunk_size
    if size < 1 << BLOCK_SHIFT_MIN or size > CHUNK_BYTES_MAX or size & (size - 1):
        raise error(Code.INVALID, f"chunk size {size} is not a power of two from 4 KiB to 64 MiB")
    if update.version < 1 or not 0 <= update.length <= size or len(update.writer.client_id) != 16:
        raise error(Code.INVALID, f"update of chunk {update.key} has version {update.version}, length {update.length}")
    if len(update.extents) > CHUNK_EXTENTS_MAX:
        raise error(Code.INVALID, f"{len(update.extents)} extents in one update, at most {CHUNK_EXTENTS_MAX}")
    for extent in update.extents:
        if extent.offset < 0 or extent.offset + len(extent.data) > size:
            raise error(Code.INVALID, f"extent at {extent.offset} of {len(extent.data)} bytes leaves the chunk")
    if update.kind == UpdateKind.REPLACE:
        covered = sum(len(extent.data) for extent in update.extents)
        if covered != update.length or (update.extents and (len(update.extents) > 1 or update.extents[0].offset)):
            raise error(Code.INVALID, "a replacement carries one extent with the whole chunk")
    if update.kind == UpdateKind.PUT:
        end = 0
        for extent in update.extents:
            if extent.offset != end:
                raise error(Code.INVALID, f"an extent of a block begins at {extent.offset}, not at {end}")
            end += len(extent.data)
        if update.name is None or not end:
            raise error(Code.INVALID, "a block has a name, and bytes")
    if update.kind == UpdateKind.DAMAGED and update.extents:
        raise error(Code.INVALID, "lost bytes cannot be carried")


class Stager:
    """Stages updates. The caller holds the chunk; what is staged becomes real when its record is written."""

    def __init__(self, blocks: BlockStore, reader: VerifiedReader, next_delta_id: Callable[[], int]) -> None:
        self._blocks = blocks
        self._reader = reader
        self._next_delta_id = next_delta_id
        self.counters = dict.fromkeys(("append", "delta", "patch", "copy", "block_bytes", "delta_bytes"), 0)

    def stage(
        self,
        update: Update,
        committed: Record | None,
        pending: Record | None,
        room: DeltaRoom,
        *,
        nowait: bool = False,
    ) -> Staged:
        """The record that update makes of the committed one. Raises INVALID, NO_SPACE, DISK_FAILED, Mismatch.

        With `nowait`, raises WouldBlock instead of reading the disk or copying more than NOWAIT_COPY_BYTES_MAX.
        """
        kind = update.kind
        if committed is not None and committed.chunk_size != update.chunk_size and kind == UpdateKind.WRITE:
            raise error(
                Code.INVALID, f"chunk {update.key} has chunk size {committed.chunk_size}, not {update.chunk_size}"
            )
        if kind == UpdateKind.REMOVE or (kind == UpdateKind.TRUNCATE and committed is None):
            return self._metadata_only(update, None, 0, FLAG_REMOVED)
        if kind == UpdateKind.DAMAGED:
            lost = self._record(update, None, update.length, [], update.crc32c)
            return Staged(lost._replace(flags=FLAG_DAMAGED), [], ())
        if committed is not None and committed.damaged:
            if kind not in (UpdateKind.REPLACE, UpdateKind.PUT) and not _covers(update, committed.length):
                raise Mismatch
            if kind == UpdateKind.TRUNCATE:
                return self._copy(update._replace(chunk_size=committed.chunk_size), None, 0, nowait)
            if kind == UpdateKind.WRITE:
                end = max(extent.offset + len(extent.data) for extent in update.extents)
                return self._copy(update, None, end, nowait)
        if kind == UpdateKind.TRUNCATE:
            assert committed is not None
            if nowait:
                raise WouldBlock
            return self._truncate(update, committed)
        if kind == UpdateKind.REPLACE:
            return self._copy(update, None, update.length, nowait)
        if kind == UpdateKind.PUT:
            return self._copy(update, None, sum(len(extent.data) for extent in update.extents), nowait)
        ends = [extent.offset + len(extent.data) for extent in update.extents if len(extent.data)]
        if committed is None:
            return self._copy(update, None, max(ends, default=0), nowait)
        length = max([committed.length, *ends])
        if length == committed.length and not ends:
            return self._metadata_only(update, committed, length, 0)
        if nowait and length - committed.length > NOWAIT_COPY_BYTES_MAX:
            raise WouldBlock  # a few bytes far beyond the end bring many zeros
        in_place = self._in_place(update, committed, pending, length, room, nowait)
        return in_place or self._copy(update, committed, length, nowait)

    def _record(self, update: Update, base: Record | None, length: int, crcs: Sequence[int], crc: int) -> Record:
        """A pending record over base's block."""
        return Record(
            0,
            base.block_shift if base else 0,
            base.unit_shift if base else unit_shift_of(update.chunk_size),
            base.chunk_size if base else update.chunk_size,
            length,
            crc,
            base.written if base else 0,
            base.block if base else 0,
            update.version,
            0,
            update.writer.sequence,
            update.chain_version,
            update.writer.channel,
            update.writer.client_id,
            array("I", crcs),
            base.deltas if base else (),
            update.name,
        )

    def _metadata_only(self, update: Update, base: Record | None, length: int, flags: int) -> Staged:
        crcs = list(base.crcs) if base else []
        record = self._record(update, base, length, crcs, base.crc if base else 0)
        return Staged(record._replace(flags=flags), [], ())

    def _truncate(self, update: Update, base: Record) -> Staged:
        length = min(update.length, base.length)
        if length == base.length:
            return self._metadata_only(update, base, length, 0)
        if length == 0:
            return Staged(self._record(update._replace(chunk_size=base.chunk_size), None, 0, [], 0), [], ())
        if base.deltas or block_shift_of(length) < base.block_shift - 1:
            return self._copy(update, base, length)
        low = (length - 1) >> base.unit_shift << base.unit_shift
        unit = self._reader.units(update.key, base, low, min(low + (1 << base.unit_shift), base.length))
        crcs = list(base.crcs[: (low >> base.unit_shift) + 1])
        crcs[-1] = crc32c(memoryview(unit)[: length - low])
        # `written` stays: the bytes cut off belong to a version that a power cut may bring back.
        return Staged(self._record(update, base, length, crcs, self._whole(base, crcs, length)), [], ())

    @staticmethod
    def _whole(base: Record, crcs: Sequence[int], length: int) -> int:
        return combine_units(crcs, 1 << base.unit_shift, length)

    def _in_place(
        self, update: Update, base: Record, pending: Record | None, length: int, room: DeltaRoom, nowait: bool
    ) -> Staged | None:
        """Appended bytes go beyond the committed length, overwritten ones beside the block; None where neither may."""
        if not base.block_shift or length > 1 << base.block_shift:
            return None
        low, high = _split(update.extents, base.length)
        if high:
            if base.written != base.length:
                return None  # bytes of a version that a power cut may bring back stand there
            if pending is not None and pending.block_place == base.block_place and pending.written != base.written:
                return None  # those of the pending version stand there, which must survive until it is replaced
        kept = _uncovered(base.deltas, low)
        if low and not _may_wait(low, base, kept, room):
            return None
        crcs, whole = list(base.crcs), base.crc
        values: list[tuple[bytes, bytes]] = []
        refs: list[DeltaRef] = []
        taken: list[tuple[int, int]] = []
        try:
            if low:
                whole = self._overwrite_crcs(update, base, low, crcs, nowait)
                for offset, data in low:
                    refs.append(self._delta(update.key, offset, data, room, values, taken, nowait))
            if high:
                added, added_crc = _compose(high, base.length, length)
                self._blocks.write(base.block_shift, base.block, base.length, [added])
                whole = combine(whole, added_crc, len(added))
                _extend_crcs(crcs, base, added)
                self.counters["append"] += 1
                self.counters["block_bytes"] += len(added)
        except BaseException:
            for place in taken:
                self._blocks.free(*place)
            raise
        record = self._record(update, base, length, crcs, whole)
        return Staged(
            record._replace(written=length if high else base.written, deltas=kept + tuple(refs)), values, taken
        )

    def _delta(
        self,
        key: ChunkKey,
        offset: int,
        data: memoryview,
        room: DeltaRoom,
        values: list[tuple[bytes, bytes]],
        taken: list[tuple[int, int]],
        nowait: bool,
    ) -> DeltaRef:
        """Put overwriting bytes beside the block: a short piece into `values` for the log, a long one into a block."""
        if room.logged and len(data) <= LOGGED_PART_BYTES_MAX:
            ref = DeltaRef(offset, len(data), self._next_delta_id())
            values.append((delta_key(key, ref.id), bytes(data)))
            self.counters["delta"] += 1
            self.counters["delta_bytes"] += len(data)
            return ref
        if nowait and len(data) > NOWAIT_COPY_BYTES_MAX:
            raise WouldBlock
        shift = block_shift_of(len(data))
        place = (shift, self._blocks.allocate(shift))
        taken.append(place)
        self._blocks.write(*place, 0, [data], uncached_from=PATCH_UNCACHED_BYTES_MIN)
        self.counters["patch"] += 1
        self.counters["block_bytes"] += len(data)
        return DeltaRef(offset, len(data), patch_id(*place))

    def _overwrite_crcs(self, update: Update, base: Record, low: list[Part], crcs: list[int], nowait: bool) -> int:
        """Put the new checksums of the units under the low parts into crcs; the new one of the base's bytes."""
        shift = base.unit_shift
        fresh = _covered_units(low, shift, base.length)
        for first, last in _runs_beside(fresh, low, shift):
            begin, end = first << shift, min((last + 1) << shift, base.length)
            buffer = memoryview(self._reader.units(update.key, base, begin, end, nowait=nowait))
            for at, data in low:
                start, stop = max(at, begin), min(at + len(data), end)
                if start < stop:
                    buffer[start - begin : stop - begin] = data[start - at : stop - at]
            fresh.update(zip(range(first, last + 1), unit_crcs(buffer, 1 << shift), strict=True))
        whole = base.crc
        for unit, crc in fresh.items():
            after = base.length - min((unit + 1) << shift, base.length)
            whole = patch(whole, crcs[unit], crc, after)
            crcs[unit] = crc
        return whole

    def _copy(self, update: Update, base: Record | None, length: int, nowait: bool = False) -> Staged:
        """The whole new content in a new block; the old one stays what it is."""
        if length == 0:
            return Staged(self._record(update, None, 0, [], 0), [], ())
        chunk_size = base.chunk_size if base else update.chunk_size
        unit_shift = unit_shift_of(chunk_size)
        extents = () if update.kind == UpdateKind.TRUNCATE else update.extents
        # Most of it was there before: more small overwrites will come, and each of them reads what it lies over.
        rewrite = base is not None and 0 < sum([len(extent.data) for extent in extents]) <= base.length // 2
        if nowait and length > (NOWAIT_REWRITE_BYTES_MAX if rewrite else NOWAIT_COPY_BYTES_MAX):
            raise WouldBlock
        if len(extents) == 1 and len(extents[0].data) == length:
            content = extents[0].data
        else:
            kept = bytearray()
            if base is not None and length >= base.length:
                kept = self._reader.units(update.key, base, 0, base.length, nowait=nowait)
            elif base is not None:
                kept = bytearray(length)
                self._reader.place(update.key, base, 0, memoryview(kept), nowait=nowait)
            kept.extend(bytes(length - len(kept)))
            content = memoryview(kept)
            for extent in extents:
                content[extent.offset : extent.offset + len(extent.data)] = extent.data
        crcs = unit_crcs(content, 1 << unit_shift)
        whole = combine_units(crcs, 1 << unit_shift, length)
        if content is (extents[0].data if extents else None) and whole != extents[0].crc32c:
            raise error(Code.CHECKSUM, f"the bytes for chunk {update.key} do not match their checksum")
        shift = block_shift_of(length)
        block = self._blocks.allocate(shift)
        try:
            # A block of the KV cache is put to be read soon.
            cached = rewrite or update.name is not None
            self._blocks.write(shift, block, 0, [content], uncached_from=length + 1 if cached else UNCACHED_BYTES_MIN)
        except BaseException:
            self._blocks.free(shift, block)
            raise
        self.counters["copy"] += 1
        self.counters["block_bytes"] += length
        record = self._record(update._replace(chunk_size=chunk_size), None, length, crcs, whole)
        return Staged(record._replace(block_shift=shift, block=block, written=length), [], [(shift, block)])


def _covers(update: Update, length: int) -> bool:
    """Whether nothing of the chunk's `length` bytes is left after the update."""
    if update.kind == UpdateKind.TRUNCATE:
        return update.length == 0
    end = 0
    for offset, data, _ in sorted(update.extents, key=lambda extent: extent.offset):
        if offset > end:
            return False
        end = max(end, offset + len(data))
    return end >= max(length, 1)


def _split(extents: Sequence[Extent], at: int) -> tuple[list[Part], list[Part]]:
    """The parts of extents below and from `at` on, in order."""
    low: list[Part] = []
    high: list[Part] = []
    for extent in extents:
        cut = max(0, min(at - extent.offset, len(extent.data)))
        if cut:
            low.append((extent.offset, extent.data[:cut]))
        if cut < len(extent.data):
            high.append((extent.offset + cut, extent.data[cut:]))
    return low, high


def _uncovered(deltas: tuple[DeltaRef, ...], low: list[Part]) -> tuple[DeltaRef, ...]:
    """Those of which something still shows when the parts lie over them."""
    for at, data in low if deltas else ():
        end = at + len(data)
        hidden = [ref for ref in deltas if ref[0] >= at and ref[0] + ref[1] <= end]
        if hidden:
            deltas = tuple([ref for ref in deltas if ref not in hidden])
    return deltas


def _may_wait(low: list[Part], base: Record, kept: Sequence[DeltaRef], room: DeltaRoom) -> bool:
    """Whether the overwritten parts may lie beside the block: with what else lies there they stay a bounded part."""
    if len(low) + len(kept) > DELTA_CHUNK_REFS_MAX:
        return False
    if not room.patched and not (room.logged and all(len(data) <= LOGGED_PART_BYTES_MAX for _, data in low)):
        return False
    added = sum([len(data) for _, data in low])
    return added <= base.length // 2 and added + sum([ref.length for ref in kept]) <= 2 * base.length


def _covered_units(low: list[Part], shift: int, length: int) -> dict[int, int]:
    """Checksums of the units that one part covers alone: nothing need be read for them."""
    fresh: dict[int, int] = {}
    ordered = sorted(low, key=lambda part: part[0])
    if any(at + len(data) > later for (at, data), (later, _) in itertools.pairwise(ordered)):
        return fresh
    for at, data in ordered:
        first, end = -(-at >> shift), at + len(data)
        last = (length - 1) >> shift if end == length else (end >> shift) - 1
        if first <= last:
            inner = data[(first << shift) - at : min((last + 1) << shift, length) - at]
            fresh.update(zip(range(first, last + 1), unit_crcs(inner, 1 << shift), strict=True))
    return fresh


def _runs_beside(fresh: Container[int], low: list[Part], shift: int) -> list[tuple[int, int]]:
    """(first, last) of each run of units that parts touch and that are not in `fresh`."""
    runs: list[tuple[int, int]] = []
    for at, data in sorted(low, key=lambda part: part[0]) if len(low) > 1 else low:
        for unit in range(at >> shift, ((at + len(data) - 1) >> shift) + 1):
            if unit in fresh or (runs and unit <= runs[-1][1]):
                continue
            if runs and unit == runs[-1][1] + 1:
                runs[-1] = (runs[-1][0], unit)
            else:
                runs.append((unit, unit))
    return runs


def _compose(high: list[Part], begin: int, end: int) -> tuple[memoryview, int]:
    """Bytes [begin, end) and their CRC32C: the parts in order over zeros."""
    if len(high) == 1 and high[0][0] == begin:
        return high[0][1], crc32c(high[0][1])
    content = memoryview(bytearray(end - begin))
    for at, data in high:
        content[at - begin : at - begin + len(data)] = data
    return content, crc32c(content)


def _extend_crcs(crcs: list[int], base: Record, added: memoryview) -> None:
    """The checksums of a chunk after `added` was put at its end; no old byte is read."""
    unit = 1 << base.unit_shift
    room = -base.length % unit
    if room:
        crcs[-1] = crc32c(added[:room], crcs[-1])
    crcs += unit_crcs(added[room:], unit)
