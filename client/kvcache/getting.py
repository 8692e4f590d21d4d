"""Looking blocks up: one `get_batch`, from callers' buffers to requests and from answers to verified blocks.

Small blocks of one request travel packed, in one piece of memory, and are copied to where they are wanted: a piece of
its own for each costs more than that copy. A block counts when its checksum is right where it landed; where it is not,
it is asked for again with VERIFY, so that the server looks at what it has.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any, Self

import numpy as np
from crc32c import crc32c

from fireflyfs.client.kvcache.api import MISS, CacheStats, Out
from fireflyfs.client.kvcache.memory import pieces_of
from fireflyfs.client.kvcache.nodes import MOVED
from fireflyfs.client.kvcache.placement import Placed, Placement, Rows
from fireflyfs.client.scratch import Scratch
from fireflyfs.client.storage_codec import length_of, part_of, view_of
from fireflyfs.common.cache_hash import Keys
from fireflyfs.common.errors import Code
from fireflyfs.common.limits import FRAME_SEGMENTS_MAX, KiB, MiB
from fireflyfs.common.net.api import Call, Piece, Reply, Slice, tainted
from fireflyfs.common.net.methods import Method
from fireflyfs.proto.storage_wire import CacheFlag

WAVE_BYTES_MAX = 16 * MiB  # of a batch, under way at once: they may stand once more in memory shared with servers
REQUEST_ROWS_MAX = 1024
REQUEST_BYTES_MAX = 8 * MiB  # of one request, except for a single larger block
PACKED_REQUEST_BYTES_MAX = 4 * MiB
PACKED_BLOCK_BYTES_MAX = 96 * KiB
DIRECT_BLOCK_BYTES_MIN = 32 * KiB
_RESULT = struct.Struct("<IIII")  # CACHE_RESULT, whose rows numpy takes longer to take apart
_VERIFY, _PACKED = int(CacheFlag.VERIFY), int(CacheFlag.PACKED)
_MISSING = int(Code.CHUNK_NOT_FOUND)
_TOO_LARGE = int(Code.TOO_LARGE)


class GetBatch:
    """What is asked for, and what has landed. Used as a context: it holds memory until its answers are read."""

    def __init__(self, keys: Sequence[bytes], out: Sequence[Out], placement: Placement, scratch: Scratch) -> None:
        """Raises INVALID for memory that cannot be written to, or keys out of bounds."""
        self._keys = Keys(keys)
        self._placement = placement
        self._scratch = scratch
        self._stack = ExitStack()
        self.positions = placement.positions_of(self._keys)
        self.lengths = [MISS] * len(keys)
        self.damaged: set[int] = set()
        self._doubtful: set[int] = set()  # did not match on the way: to be asked for with VERIFY
        self._pieces: list[Sequence[Piece]] = []
        self._room: list[int] = []
        for each in out:
            pieces, nbytes = pieces_of(each, writable=True)
            self._pieces.append(pieces)
            self._room.append(nbytes)
        largest = max(self._room, default=0)
        slices = Slice in set(map(type, chain.from_iterable(self._pieces)))
        # Servers reach slices of shared memory directly, which only pays for blocks that are long enough.
        self._packed = largest <= PACKED_BLOCK_BYTES_MAX and not (slices and largest >= DIRECT_BLOCK_BYTES_MIN)
        if self._packed and slices:
            self._pieces = [[view_of(piece) for piece in pieces] for pieces in self._pieces]
        named = self._room if self._packed else [len(pieces) for pieces in self._pieces]
        self._table = placement.get_table(self._keys, self.positions, named)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def waves(self) -> Iterator[Rows]:
        """The batch in parts that may be under way at once."""
        start = nbytes = 0
        for end, size in enumerate(self._room) if sum(self._room) > WAVE_BYTES_MAX else ():
            if end > start and nbytes + size > WAVE_BYTES_MAX:
                yield np.arange(start, end)
                self._stack.close()
                start, nbytes = end, 0
            nbytes += size
        if self._room:
            yield np.arange(start, len(self._room))

    def pack(self, placed: Placed, mine: Rows) -> Iterator[tuple[Rows, Call, Any]]:
        """Requests to one worker: their rows, and the memory that they land in when they are packed."""
        for rows in self._requests(mine):
            numbers: list[int] = rows.tolist()
            flags = _VERIFY if self._doubtful and not self._doubtful.isdisjoint(numbers) else 0
            into: Sequence[Piece]
            if self._packed:
                flags |= _PACKED
                total = sum([self._room[row] for row in numbers])
                memory = part_of(self._stack.enter_context(self._scratch.take(total)), 0, total)
                into = (memory,)
            else:
                memory = None
                into = [piece for row in numbers for piece in self._pieces[row]]
            body = self._placement.body(self._table, placed, rows, flags)
            yield rows, Call(Method.STORAGE_CACHE_GET, body, (), into), memory

    def _requests(self, rows: Rows) -> Iterator[Rows]:
        bytes_max = PACKED_REQUEST_BYTES_MAX if self._packed else REQUEST_BYTES_MAX
        start = nbytes = pieces = 0
        numbers: list[int] = rows.tolist()
        if self._packed and len(numbers) <= REQUEST_ROWS_MAX and sum([self._room[row] for row in numbers]) <= bytes_max:
            yield rows
            return
        for end, row in enumerate(numbers):
            size, count = self._room[row], 0 if self._packed else len(self._pieces[row])
            full = nbytes + size > bytes_max or pieces + count > FRAME_SEGMENTS_MAX or end - start >= REQUEST_ROWS_MAX
            if end > start and full:
                yield rows[start:end]
                start, nbytes, pieces = end, 0, 0
            nbytes += size
            pieces += count
        if numbers:
            yield rows[start:]

    def land(self, rows: Rows, reply: Reply, memory: Any, stats: CacheStats) -> list[int]:
        """Verify what came; rows to ask another replica for."""
        if len(reply.body) != len(rows) * _RESULT.size:
            return list(rows.tolist())
        whole = view_of(memory) if memory is not None else None
        again: list[int] = []
        lengths, all_room, all_pieces = self.lengths, self._room, self._pieces
        for row, (status, length, expected, offset) in zip(rows.tolist(), _RESULT.iter_unpack(reply.body), strict=True):
            if status == 0 and 0 < length <= all_room[row]:
                pieces = all_pieces[row]
                if whole is None:
                    right = _crc(pieces, length) == expected
                elif offset + length > len(whole):
                    right = False
                elif len(pieces) == 1:
                    target = pieces[0] if length == all_room[row] else pieces[0][:length]
                    target[:] = whole[offset : offset + length]
                    right = crc32c(target) == expected
                else:
                    right = _scatter(whole[offset : offset + length], pieces) == expected
                if right:
                    lengths[row] = length
                else:
                    if row in self._doubtful:
                        self.damaged.add(row)
                    self._doubtful.add(row)
                    again.append(row)
            elif status == _MISSING:
                continue
            elif status == _TOO_LARGE:
                stats.too_large += 1
            elif status == Code.CHECKSUM:
                self.damaged.add(row)
                again.append(row)
            elif status in MOVED or status == 0:
                again.append(row)
        return again

    def give_up_tainted(self) -> list[int]:
        """Blocks in shared memory that a server may still write to, because it did not answer in time, are misses:
        what was right when it was looked at need not stay so. Their rows."""
        if self._packed:
            return []
        rows = [
            row for row, length in enumerate(self.lengths) if length != MISS and any(map(tainted, self._pieces[row]))
        ]
        for row in rows:
            self.lengths[row] = MISS
        return rows


def _crc(pieces: Sequence[Piece], length: int) -> int:
    whole = 0
    for piece in pieces:
        take = min(length, length_of(piece))
        whole = crc32c(view_of(part_of(piece, 0, take)), whole)
        length -= take
    return whole


def _scatter(block: memoryview, pieces: Sequence[Any]) -> int:
    """Copy the block into the pieces, one after the other; the checksum of what is there now."""
    whole = at = 0
    for piece in pieces:
        take = min(len(block) - at, len(piece))
        target = piece[:take]
        target[:] = block[at : at + take]
        whole = crc32c(target, whole)
        at += take
    return whole
