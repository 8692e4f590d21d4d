"""Turning an update into a pending record: append in place, delta, or a new block. See docs/format/chunk_store.md.

Which of them is chosen follows from what a crash may find: bytes under a committed record are never written to here.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import KiB
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine.blocks import UNCACHED_BYTES_MIN, BlockStore
from fireflyfs.storage.engine.crc import combine, combine_units, crc32c, patch_units, unit_crcs
from fireflyfs.storage.engine.deltas import NO_DELTAS, PART_SHIFT, DeltaRef, Deltas, patch_id
from fireflyfs.storage.engine.extents import (
    Part,
    compose,
    covered_units,
    covers,
    disjoint,
    extend_crcs,
    hidden_by,
    runs,
    runs_beside,
    split,
    whole_units,
)
from fireflyfs.storage.engine.interface import ChunkKey, Update, WouldBlock
from fireflyfs.storage.engine.part_sums import PartSums, forget, learn, overwrite, parts_of
from fireflyfs.storage.engine.reader import Mismatch, VerifiedReader
from fireflyfs.storage.engine.record import (
    FLAG_DAMAGED,
    FLAG_REMOVED,
    Record,
    block_shift_of,
    delta_key,
    unit_shift_of,
)

LOGGED_PART_BYTES_MAX = 16 * KiB  # overwritten in one piece; a larger one becomes a patch: a block of its own
DELTA_CHUNK_REFS_MAX = 64  # logged and patched pieces waiting over one chunk, together no longer than twice its length;
# beyond, and for an overwrite of more than half of it, the chunk is copied
NOWAIT_COPY_BYTES_MAX = 128 * KiB  # a larger chunk is copied only where the caller has time,
# except for one that small overwrites have piled up over: it is in the page cache, and stays there.
NOWAIT_REWRITE_BYTES_MAX = 1024 * KiB


class Staged(NamedTuple):
    """A pending record, the delta values to store with it, and the blocks that were taken for it."""

    record: Record
    deltas: list[tuple[bytes, bytes]]
    allocated: Sequence[tuple[int, int]]


class DeltaRoom(NamedTuple):
    """Whether the store takes more deltas of each kind."""

    logged: bool
    patched: bool


class Stager:
    """Stages updates. The caller holds the chunk; what is staged becomes real when its record is written."""

    def __init__(self, blocks: BlockStore, reader: VerifiedReader, next_delta_id: Callable[[], int]) -> None:
        self._blocks = blocks
        self._reader = reader
        self._next_delta_id = next_delta_id
        self._sums = PartSums()
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
            return Staged(self._record(update, None, update.length, (), update.crc32c, FLAG_DAMAGED), [], ())
        if committed is not None and committed.damaged:
            if kind not in (UpdateKind.REPLACE, UpdateKind.PUT) and not covers(update, committed.length):
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

    def _record(
        self,
        update: Update,
        base: Record | None,
        length: int,
        crcs: Iterable[int],
        crc: int,
        flags: int = 0,
        *,
        written: int | None = None,
        deltas: Deltas | None = None,
        place: tuple[int, int] = (0, 0),
        chunk_size: int = 0,
    ) -> Record:
        """A pending record over base's block, with base's bytes written and deltas where none are given.

        Without a base, in the block at `place`, with the update's chunk size or the one given.
        """
        unit_shift = 0
        if base is not None:
            place = base.block_place
            unit_shift, chunk_size = base.unit_shift, base.chunk_size
            written = base.written if written is None else written
            deltas = base.deltas if deltas is None else deltas
        else:
            chunk_size = chunk_size or update.chunk_size
        return Record(
            flags,
            place[0],
            unit_shift or unit_shift_of(chunk_size),
            chunk_size,
            length,
            crc,
            written or 0,
            place[1],
            update.version,
            0,
            update.writer.sequence,
            update.chain_version,
            update.writer.channel,
            update.writer.client_id,
            array("I", crcs),
            NO_DELTAS if deltas is None else deltas,
            update.name,
        )

    def _metadata_only(self, update: Update, base: Record | None, length: int, flags: int) -> Staged:
        record = self._record(update, base, length, base.crcs if base else (), base.crc if base else 0, flags)
        return Staged(record, [], ())

    def _truncate(self, update: Update, base: Record) -> Staged:
        length = min(update.length, base.length)
        if length == base.length:
            return self._metadata_only(update, base, length, 0)
        if length == 0:
            return Staged(self._record(update._replace(chunk_size=base.chunk_size), None, 0, (), 0), [], ())
        if base.deltas or block_shift_of(length) < base.block_shift - 1:
            return self._copy(update, base, length)
        low = (length - 1) >> base.unit_shift << base.unit_shift
        unit = self._reader.units(update.key, base, low, min(low + (1 << base.unit_shift), base.length))
        crcs = base.crcs[: (low >> base.unit_shift) + 1]
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
        low, high = split(update.extents, base.length)
        if high:
            if base.written != base.length:
                return None  # bytes of a version that a power cut may bring back stand there
            if pending is not None and pending.block_place == base.block_place and pending.written != base.written:
                return None  # those of the pending version stand there, which must survive until it is replaced
        hidden = hidden_by(base.deltas, low)
        if low and not _may_wait(low, base, hidden, room):
            return None
        crcs, whole = base.crcs[:], base.crc
        sums: array[int] | None = None
        values: list[tuple[bytes, bytes]] = []
        refs: list[DeltaRef] = []
        taken: list[tuple[int, int]] = []
        try:
            if low:
                if base.unit_shift > PART_SHIFT and (
                    self._sums.knows(update.key) or not whole_units(low, base.unit_shift, base.length)
                ):
                    sums = self._sums.of(update.key, base)
                whole = self._overwrite_crcs(update, base, low, crcs, sums, nowait)
                for offset, data in low:
                    refs.append(self._delta(update.key, offset, data, room, values, taken, nowait))
            if high:
                added, added_crc = compose(high, base.length, length)
                self._blocks.write(base.block_shift, base.block, base.length, [added])
                whole = combine(whole, added_crc, len(added))
                extend_crcs(crcs, base, added)
                self.counters["append"] += 1
                self.counters["block_bytes"] += len(added)
        except BaseException:
            for place in taken:
                self._blocks.free(*place)
            raise
        written = length if high else base.written
        record = self._record(
            update, base, length, crcs, whole, written=written, deltas=base.deltas.changed(hidden, refs)
        )
        if sums is not None:
            self._remember(update.key, base, record, sums)
        return Staged(record, values, taken)

    def _remember(self, key: ChunkKey, base: Record, record: Record, sums: array[int]) -> None:
        """`sums` are those of `record` as far as it is as long as base."""
        if record.length != base.length:
            forget(sums, base.length - 1, base.length)
            sums.extend(bytes(parts_of(record.length) - len(sums)))
        self._sums.put(key, record, sums)

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
        self._blocks.write(*place, 0, [data])
        self.counters["patch"] += 1
        self.counters["block_bytes"] += len(data)
        return DeltaRef(offset, len(data), patch_id(*place))

    def _overwrite_crcs(
        self, update: Update, base: Record, low: list[Part], crcs: array[int], sums: array[int] | None, nowait: bool
    ) -> int:
        """Put the new checksums of the units under the low parts into crcs; the new one of the base's bytes.

        `sums` are those of base's parts, where a unit has several; they become those of the new content.
        """
        apart = len(low) == 1 or disjoint(low)
        if sums is not None and apart:
            known = overwrite(sums, crcs, base, low)
            if known is not None:
                return known
        shift = base.unit_shift
        fresh = covered_units(low, shift, base.length) if apart else {}
        if sums is not None:
            for at, data in low:
                forget(sums, at, at + len(data))
        for first, last in runs_beside(fresh, low, shift):
            begin, end = first << shift, min((last + 1) << shift, base.length)
            buffer = memoryview(self._reader.units(update.key, base, begin, end, nowait=nowait))
            for at, data in low:
                start, stop = max(at, begin), min(at + len(data), end)
                if start < stop:
                    buffer[start - begin : stop - begin] = data[start - at : stop - at]
            fresh.update(zip(range(first, last + 1), unit_crcs(buffer, 1 << shift), strict=True))
            if sums is not None:
                learn(sums, begin, buffer)
        whole = base.crc
        for first, last in runs(sorted(fresh)):
            new = array("I", [fresh[unit] for unit in range(first, last + 1)])
            end = min((last + 1) << shift, base.length)
            last_bytes = end - (last << shift)
            whole = patch_units(whole, crcs[first : last + 1], new, 1 << shift, last_bytes, base.length - end)
            crcs[first : last + 1] = new
        return whole

    def _copy(self, update: Update, base: Record | None, length: int, nowait: bool = False) -> Staged:
        """The whole new content in a new block; the old one stays what it is."""
        if length == 0:
            return Staged(self._record(update, None, 0, (), 0), [], ())
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
        record = self._record(
            update, None, length, crcs, whole, written=length, place=(shift, block), chunk_size=chunk_size
        )
        if base is not None and rewrite and unit_shift > PART_SHIFT:
            sums = self._sums.of(update.key, base)
            for extent in extents:
                forget(sums, extent.offset, extent.offset + len(extent.data))
            self._remember(update.key, base, record, sums)
        return Staged(record, [], [(shift, block)])


def _may_wait(low: list[Part], base: Record, hidden: Sequence[DeltaRef], room: DeltaRoom) -> bool:
    """Whether the overwritten parts may lie beside the block: with what else lies there they stay a bounded part."""
    if len(low) + len(base.deltas) - len(hidden) > DELTA_CHUNK_REFS_MAX:
        return False
    if not room.patched and not (room.logged and all(len(data) <= LOGGED_PART_BYTES_MAX for _, data in low)):
        return False
    added = sum([len(data) for _, data in low])
    there = base.deltas.logged_bytes + base.deltas.patched_bytes - sum([ref[1] for ref in hidden])
    return added <= base.length // 2 and added + there <= 2 * base.length
