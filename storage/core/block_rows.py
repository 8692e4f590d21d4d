"""The rows of a look-up: CACHE_BLOCK, as a request carries them, and what becomes of each, in their order.

A whole request is one piece of memory, gone through in a few calls: most are of few small blocks, and what is done for
each row in Python is what the processor's time goes into. Where the library in C is there, it does that.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import accumulate, chain, groupby
from typing import Final, NamedTuple

from fireflyfs.common import native
from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import CACHE_KEY_BYTES_MAX, CACHE_KEY_BYTES_MIN

ROW: Final = struct.Struct("<QIIII64s")  # CACHE_BLOCK, whose rows numpy takes longer to take apart
RESULT: Final = struct.Struct("<IIII")  # CACHE_RESULT; before that, what was found: bytes, CRC32C, place
SLOW: Final = 0xFFFFFFFF  # the status of a block that must be waited for
_CHAIN = struct.Struct("<8xII72x")

Wanted = tuple[int, int, bytes]  # the caller's number of it, the chunk's index, the key
ChainAt = tuple[int, int]  # a chain, and the version of it that the client knows
Located = tuple[int, int, int, tuple[int, int]]  # the caller's number, bytes, CRC32C, place
Result = tuple[int, int, int, int]  # CACHE_RESULT
MISS: Result = (int(Code.CHUNK_NOT_FOUND), 0, 0, 0)
TOO_LARGE: Result = (int(Code.TOO_LARGE), 0, 0, 0)


class Tally(NamedTuple):
    """What became of some rows of a packed request."""

    end: int  # in its memory
    hits: int
    hit_bytes: int
    slow: int  # rows with the status SLOW


class BlockRows:
    """The rows of one request. With the library, bytes that it works on; without, lists."""

    __slots__ = ("_listed", "_located", "_results", "address", "count", "ends", "room", "set", "table")

    def __init__(self, table: bytes) -> None:
        """`table`: CACHE_BLOCK of each. Raises PROTOCOL for a key of a length that no key has."""
        self.table = table
        self.count = len(table) // ROW.size
        self.room: int  # of all rows together
        self.ends: list[int]  # of runs of rows of one chain
        self.address = 0  # of what the library works on: 16 bytes a row, what it found of it, then its CACHE_RESULT
        self._located: list[Located] = []
        if native.blocks is not None:
            self._results: bytearray | list[Result] = bytearray(RESULT.size * self.count)
            self.set: Callable[[int, Result], None] = self._pack
            self.address = native.address_of(self._results)
            ends = bytearray(4 * (self.count + 1))
            self.room = native.blocks.split(table, self.count, native.address_of(ends))
            numbers = memoryview(ends).cast("I")
            self.ends = numbers[1 : numbers[0] + 1].tolist()
        else:
            self._results = [MISS] * self.count
            self.set = self._results.__setitem__
            self._listed: list[tuple[int, int, int, int, int, bytes]] = list(ROW.iter_unpack(table))
            self.room, self.ends = self._split()
        if self.room < 0:
            raise error(Code.PROTOCOL, "a key of a length that no key has")

    def _split(self) -> tuple[int, list[int]]:
        """See `ffs_split`: all rooms together, -1 for a key that is none; where runs end."""
        if not self._listed:
            return 0, []
        _, chains, versions, rooms, lengths, _ = zip(*self._listed, strict=True)
        if not CACHE_KEY_BYTES_MIN <= min(lengths) <= max(lengths) <= CACHE_KEY_BYTES_MAX:
            return -1, []
        runs = groupby(zip(chains, versions, strict=True))
        return sum(rooms), list(accumulate(len(list(run)) for _, run in runs))

    def runs(self) -> Iterator[tuple[ChainAt, int, int]]:
        """Rows that follow each other and are of one chain, as the client knows it: from, to."""
        begin = 0
        for end in self.ends:
            chain_id, version = _CHAIN.unpack_from(self.table, begin * ROW.size)
            yield (chain_id, version), begin, end
            begin = end

    def _rows(self, begin: int, end: int) -> list[tuple[int, int, int, int, int, bytes]]:
        if isinstance(self._results, list):
            return self._listed[begin:end]
        return list(ROW.iter_unpack(self.table[begin * ROW.size : end * ROW.size]))

    def wanted(self, begin: int, end: int) -> list[Wanted]:
        return [
            (number, index, key[:length])
            for number, (index, _, _, _, length, key) in enumerate(self._rows(begin, end), begin)
        ]

    def rooms(self, begin: int, end: int) -> list[int]:
        """Of each block: how many bytes it may have, or how many pieces there are for it."""
        return [row[3] for row in self._rows(begin, end)]

    # What was found

    def located(self, begin: int, end: int) -> list[Located]:
        """What `BlockTable.locate_rows` has just found of these rows."""
        if isinstance(self._results, list):
            return self._located
        found = RESULT.iter_unpack(self._results[begin * RESULT.size : end * RESULT.size])
        return [(row, size, crc, (shift, block)) for row, (size, crc, shift, block) in enumerate(found, begin) if size]

    def note_located(self, located: list[Located]) -> None:
        """Without the library."""
        self._located = located

    # What becomes of it

    def _pack(self, row: int, result: Result) -> None:
        assert isinstance(self._results, bytearray)
        RESULT.pack_into(self._results, row * RESULT.size, *result)

    def results(self, begin: int, end: int) -> list[Result]:
        if isinstance(self._results, list):
            return self._results[begin:end]
        return list(RESULT.iter_unpack(self._results[begin * RESULT.size : end * RESULT.size]))

    def answer(self) -> bytes | bytearray:
        """CACHE_RESULT of each."""
        if isinstance(self._results, list):
            return struct.pack(f"<{4 * self.count}I", *chain.from_iterable(self._results))
        return self._results
