"""Looking blocks up: one `get_batch`, from callers' buffers to requests and from answers to verified blocks.

Small blocks of one request travel packed, as one piece: a piece of its own for each costs more (packed.py). A block
counts when its checksum is right where it landed; where it is not, it is asked for again with VERIFY, so that the
server looks at what it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from crc32c import crc32c

from fireflyfs.client.kvcache.api import MISS, CacheStats, Out
from fireflyfs.client.kvcache.memory import pieces_of, plain_views
from fireflyfs.client.kvcache.nodes import MOVED
from fireflyfs.client.kvcache.packed import RESULT, PackedAnswer, Target
from fireflyfs.client.kvcache.placement import Placed, Placement, Plan, Rows, Table, arrange, place
from fireflyfs.client.storage_codec import length_of, part_of, view_of
from fireflyfs.common import native
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
_VERIFY, _PACKED = int(CacheFlag.VERIFY), int(CacheFlag.PACKED)
_MISSING = int(Code.CHUNK_NOT_FOUND)
_TOO_LARGE = int(Code.TOO_LARGE)


class GetBatch:
    """What is asked for, and what has landed."""

    def __init__(self, keys: Sequence[bytes], out: Sequence[Out], placement: Placement) -> None:
        """Raises INVALID for memory that cannot be written to, or keys out of bounds."""
        self._keys = Keys(keys)
        self._placement = placement
        self.lengths = [MISS] * len(keys)
        self.damaged: set[int] = set()
        self._doubtful: set[int] = set()  # did not match on the way: to be asked for with VERIFY
        self._targets: list[Target] = []  # of packed blocks
        self._pieces: list[list[Piece]] = []  # of others
        views = plain_views(out)
        self._room: list[int] = [view.nbytes for view in views or ()]
        self._packed = max(self._room, default=0) <= PACKED_BLOCK_BYTES_MAX
        if views is not None and self._packed:
            self._targets += views
        else:
            self._room.clear()
            for each in out:
                pieces, nbytes = pieces_of(each, writable=True)
                self._pieces.append(pieces)
                self._room.append(nbytes)
            largest = max(self._room, default=0)
            slices = Slice in set(map(type, chain.from_iterable(self._pieces)))
            # Servers reach slices of shared memory directly, which only pays for blocks that are long enough.
            self._packed = largest <= PACKED_BLOCK_BYTES_MAX and not (slices and largest >= DIRECT_BLOCK_BYTES_MIN)
            if self._packed:
                for pieces in self._pieces:
                    parts = [view_of(piece) for piece in pieces]
                    self._targets.append(parts[0] if len(parts) == 1 else parts)
        self._positions: Rows | None = None
        self._table: Table | None = None
        # A request to each worker, whatever the division: those are made in one go.
        self._small = self._packed and len(keys) <= REQUEST_ROWS_MAX and sum(self._room) <= PACKED_REQUEST_BYTES_MAX

    def place(self, plan: Plan, rows: Rows) -> Placed:
        """These rows by worker."""
        library = native.blocks
        if library is not None and self._small and len(rows) == len(self._room):
            return arrange(library, plan, self._keys, self._room)
        return place(plan, self._positions_of(), rows)

    def _positions_of(self) -> Rows:
        if self._positions is None:
            self._positions = self._placement.positions_of(self._keys)
        return self._positions

    def _body(self, placed: Placed, rows: Rows, flags: int) -> bytes:
        if self._table is None:
            named = self._room if self._packed else [len(pieces) for pieces in self._pieces]
            self._table = self._placement.get_table(self._keys, self._positions_of(), named)
        return self._placement.body(self._table, placed, rows, flags)

    def waves(self) -> Iterator[Rows]:
        """The batch in parts that may be under way at once."""
        start = nbytes = 0
        for end, size in enumerate(self._room) if sum(self._room) > WAVE_BYTES_MAX else ():
            if end > start and nbytes + size > WAVE_BYTES_MAX:
                yield np.arange(start, end)
                start, nbytes = end, 0
            nbytes += size
        if self._room:
            yield np.arange(start, len(self._room))

    def pack(self, placed: Placed, mine: Rows, table: bytes | None) -> Iterator[tuple[Rows, Call, PackedAnswer | None]]:
        """Requests to one worker: their rows, and what takes a packed answer."""
        for rows in self._requests(mine):
            numbers: list[int] = rows.tolist()
            flags = _VERIFY if self._doubtful and not self._doubtful.isdisjoint(numbers) else 0
            into: Sequence[Piece] = ()
            answer: PackedAnswer | None = None
            if self._packed:
                flags |= _PACKED
                answer = PackedAnswer(numbers, self._room, self._targets)
            else:
                into = [piece for row in numbers for piece in self._pieces[row]]
            if table is not None:
                body = self._placement.body_of(table, len(rows), flags)
            else:
                body = self._body(placed, rows, flags)
            yield rows, Call(Method.STORAGE_CACHE_GET, body, (), into, spread=answer), answer

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

    def land(self, rows: Rows, reply: Reply, answer: PackedAnswer | None, stats: CacheStats) -> list[int]:
        """Verify what came; rows to ask another replica for."""
        again: list[int] = []
        if answer is not None:
            if not answer.read:  # nothing came with it
                answer.places(bytes(reply.body), 0)
                answer.landed()
            for row, length in answer.right:
                self.lengths[row] = length
            for row in answer.wrong:
                self._doubt(row, again)
            for row, status in answer.others:
                self._note(row, status, again, stats)
            return again
        if len(reply.body) != len(rows) * RESULT.size:
            return list(rows.tolist())
        for row, (status, length, expected, _) in zip(rows.tolist(), RESULT.iter_unpack(reply.body), strict=True):
            if status or not 0 < length <= self._room[row]:
                self._note(row, status, again, stats)
            elif _crc(self._pieces[row], length) == expected:
                self.lengths[row] = length
            else:
                self._doubt(row, again)
        return again

    def _doubt(self, row: int, again: list[int]) -> None:
        """The block does not match its checksum."""
        if row in self._doubtful:
            self.damaged.add(row)
        self._doubtful.add(row)
        again.append(row)

    def _note(self, row: int, status: int, again: list[int], stats: CacheStats) -> None:
        """Why there is no block."""
        if status == _MISSING:
            return
        if status == _TOO_LARGE:
            stats.too_large += 1
        elif status == Code.CHECKSUM:
            self.damaged.add(row)
            again.append(row)
        elif status in MOVED or status == 0:
            again.append(row)

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
