"""The pieces of an update: what they must be, and which units and deltas of a chunk they touch."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Container, Sequence

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import CHUNK_BYTES_MAX, CHUNK_EXTENTS_MAX
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.engine.crc import crc32c, unit_crcs
from fireflyfs.storage.engine.deltas import DeltaRef, Deltas
from fireflyfs.storage.engine.interface import Extent, Update
from fireflyfs.storage.engine.record import BLOCK_SHIFT_MIN, Record

Part = tuple[int, memoryview]  # (offset in the chunk, bytes)


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


def covers(update: Update, length: int) -> bool:
    """Whether nothing of the chunk's `length` bytes is left after the update."""
    if update.kind == UpdateKind.TRUNCATE:
        return update.length == 0
    end = 0
    for offset, data, _ in sorted(update.extents, key=lambda extent: extent.offset):
        if offset > end:
            return False
        end = max(end, offset + len(data))
    return end >= max(length, 1)


def split(extents: Sequence[Extent], at: int) -> tuple[list[Part], list[Part]]:
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


def hidden_by(deltas: Deltas, low: list[Part]) -> list[DeltaRef]:
    """Those of which nothing shows any more when the parts lie over them."""
    if not deltas or len(low) == 1:
        return deltas.within(low[0][0], low[0][0] + len(low[0][1])) if deltas else []
    hidden: list[DeltaRef] = []
    for at, data in low:
        hidden += [ref for ref in deltas.within(at, at + len(data)) if ref not in hidden]
    return hidden


def disjoint(low: list[Part]) -> bool:
    ordered = sorted(low, key=lambda part: part[0])
    return all(at + len(data) <= later for (at, data), (later, _) in itertools.pairwise(ordered))


def covered_units(low: list[Part], shift: int, length: int) -> dict[int, int]:
    """Checksums of the units that a part covers alone: nothing need be read for them. The parts do not overlap."""
    fresh: dict[int, int] = {}
    for at, data in low:
        first, end = -(-at >> shift), at + len(data)
        last = (length - 1) >> shift if end == length else (end >> shift) - 1
        if first <= last:
            inner = data[(first << shift) - at : min((last + 1) << shift, length) - at]
            fresh.update(zip(range(first, last + 1), unit_crcs(inner, 1 << shift), strict=True))
    return fresh


def whole_units(low: list[Part], shift: int, length: int) -> bool:
    """Whether the parts cover whole units only, of a chunk of `length` bytes."""
    unit = 1 << shift
    return all(at % unit == 0 and (len(data) % unit == 0 or at + len(data) == length) for at, data in low)


def runs_beside(fresh: Container[int], low: list[Part], shift: int) -> list[tuple[int, int]]:
    """(first, last) of each run of units that parts touch and that are not in `fresh`."""
    touched = {unit for at, data in low for unit in range(at >> shift, ((at + len(data) - 1) >> shift) + 1)}
    return runs([unit for unit in sorted(touched) if unit not in fresh])


def runs(units: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) of each run of consecutive ones among `units`, which are sorted."""
    if units and units[-1] - units[0] == len(units) - 1:
        return [(units[0], units[-1])]
    found: list[tuple[int, int]] = []
    for unit in units:
        if found and unit == found[-1][1] + 1:
            found[-1] = (found[-1][0], unit)
        else:
            found.append((unit, unit))
    return found


def compose(high: list[Part], begin: int, end: int) -> tuple[memoryview, int]:
    """Bytes [begin, end) and their CRC32C: the parts in order over zeros."""
    if len(high) == 1 and high[0][0] == begin:
        return high[0][1], crc32c(high[0][1])
    content = memoryview(bytearray(end - begin))
    for at, data in high:
        content[at - begin : at - begin + len(data)] = data
    return content, crc32c(content)


def extend_crcs(crcs: array[int], base: Record, added: memoryview) -> None:
    """The checksums of a chunk after `added` was put at its end; no old byte is read."""
    unit = 1 << base.unit_shift
    room = -base.length % unit
    if room:
        crcs[-1] = crc32c(added[:room], crcs[-1])
    crcs.extend(unit_crcs(added[room:], unit))
