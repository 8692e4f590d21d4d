"""One STORAGE_CACHE_GET: where each block is, from the index; its bytes, from the page cache in the event loop, and in
threads where the disk must be waited for; nothing is verified here that the client verifies anyway.

With VERIFY, or while a target's index is not complete, the engine finds, compares and verifies each block instead.
Most requests are of few small blocks, which travel packed: those are answered run by run, not block by block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import accumulate

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.api import ServerRequest
from fireflyfs.proto.storage_wire import CacheFlag
from fireflyfs.storage.core.block_rows import MISS, SLOW, TOO_LARGE, BlockRows, ChainAt, Result, Wanted
from fireflyfs.storage.engine.interface import ChunkKey, ReadResult
from fireflyfs.storage.engine.reader import cut_to
from fireflyfs.storage.service.local_target import LocalTarget

Placed = tuple[tuple[int, int], list[memoryview]]  # a block's place, and where its bytes go
Run = tuple[LocalTarget, int, int]  # rows that a target answers for: from, to
_VERIFY, _PACKED = int(CacheFlag.VERIFY), int(CacheFlag.PACKED)


def refused(local: LocalTarget, key: ChunkKey, exc: FfsError) -> Result:
    """The row of a block that cannot be read; what follows from that for the target."""
    if exc.code is Code.CHECKSUM:
        local.suspect(key)
    elif exc.code is Code.DISK_FAILED:
        local.fail(exc.message)
    return (int(exc.code), 0, 0, 0)


def row_of(found: ReadResult, at: int) -> Result:
    return (0, found.length, found.crc32c, at) if found.length else TOO_LARGE


class BlockGet:
    """The blocks of one request."""

    def __init__(self, request: ServerRequest, inode: int, table: memoryview, flags: int, now_s: int) -> None:
        """`table`: CACHE_BLOCK of each. Raises PROTOCOL for a request that makes no sense."""
        self._request = request
        self._inode = inode
        self._now_unix_s = now_s
        self._verify = bool(flags & _VERIFY)
        self._packed = bool(flags & _PACKED)
        self._views = request.push_views()
        self._rows = rows = BlockRows(bytes(table))
        self._slow: list[tuple[LocalTarget, Wanted, list[memoryview], int]] = []  # where to, where that is
        self._unindexed: list[Run] = []
        self._uncounted: list[Run] = []
        self._at = 0  # in the one piece of a packed request
        self._begins: list[int] = []  # of the others: where the pieces of each row begin
        if self._packed:
            if len(self._views) != 1 or rows.room > len(self._views[0]):
                raise error(Code.PROTOCOL, f"blocks of {rows.room} bytes in all do not fit the memory that was offered")
        else:
            if rows.room != len(self._views):
                raise error(Code.PROTOCOL, f"{rows.room} pieces are named, {len(self._views)} are offered")
            self._begins = [0, *accumulate(rows.rooms(0, rows.count))]

    def runs(self) -> Iterator[tuple[ChainAt, int, int]]:
        """See `BlockRows.runs`."""
        return self._rows.runs()

    def refuse(self, begin: int, end: int, code: Code) -> None:
        """These are of a chain that is not served here."""
        for row in range(begin, end):
            self._rows.set(row, (int(code), 0, 0, 0))

    def read(self, local: LocalTarget, begin: int, end: int) -> None:
        """The blocks of rows of one chain: what is in memory, at once."""
        if self._verify or not local.cache.ready:
            self._unindexed.append((local, begin, end))
            return
        local.cache.locate_rows(self._inode, self._rows, begin, end, self._now_unix_s)
        if self._packed:
            self._read_packed(local, begin, end)
        else:
            self._read_pieces(local, begin, end)

    def _read_packed(self, local: LocalTarget, begin: int, end: int) -> None:
        rows = self._rows
        tally = local.engine.read_rows(rows, begin, end, self._views[0], self._at)
        self._at = tally.end
        if not tally.slow:
            local.cache.count_reads(self._inode, tally.hits, end - begin - tally.hits, tally.hit_bytes)
            return
        self._uncounted.append((local, begin, end))
        for wanted, (status, size, _, at) in zip(rows.wanted(begin, end), rows.results(begin, end), strict=True):
            if status == SLOW:
                self._slow.append((local, wanted, [self._views[0][at : at + size]], at))

    def _read_pieces(self, local: LocalTarget, begin: int, end: int) -> None:
        rows = self._rows
        self._uncounted.append((local, begin, end))
        numbers: list[int] = []
        places: list[Placed] = []
        located = rows.located(begin, end)
        for row in range(begin, end):
            rows.set(row, MISS)
        for row, size, crc, place in located:
            cut = cut_to(self._pieces_of(row), size)
            if cut is None:
                rows.set(row, TOO_LARGE)
                continue
            places.append((place, cut))
            numbers.append(row)
            rows.set(row, (0, size, crc, 0))
        at = local.engine.read_places(places, 0)
        while at < len(places):  # it must be waited for; some of what follows may be in memory
            row = numbers[at]
            self._slow.append((local, rows.wanted(row, row + 1)[0], places[at][1], 0))
            at = local.engine.read_places(places, at + 1)

    def _pieces_of(self, row: int) -> Sequence[memoryview]:
        return self._views[self._begins[row] : self._begins[row + 1]]

    def finish(self, check_fence: Callable[[], None]) -> Awaitable[None] | None:
        """Answer now, or as a task when there is something to wait for; `check_fence` once more after that."""
        if self._slow or self._unindexed:
            return self._finish(check_fence)
        self._answer()
        return None

    async def _finish(self, check_fence: Callable[[], None]) -> None:
        # Each to its end, whatever becomes of the others: their threads fill memory that goes back with the answer.
        ends = await asyncio.gather(*(self._read_slowly(*each) for each in self._slow), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        for local, begin, stop in self._unindexed:
            for wanted, room in zip(self._rows.wanted(begin, stop), self._rows.rooms(begin, stop), strict=True):
                await self._read_verified(local, wanted, room)
        check_fence()
        self._answer()

    async def _read_slowly(self, local: LocalTarget, wanted: Wanted, into: Sequence[memoryview], at: int) -> int:
        """A block that must be waited for, verified on the way: it costs a thread anyway. Its bytes."""
        row, index, name = wanted
        key = ChunkKey(self._inode, index)
        try:
            found = await local.call(local.engine.read_block, key, name, into, self._now_unix_s)
        except FfsError as exc:
            self._rows.set(row, refused(local, key, exc))
            return 0
        self._rows.set(row, row_of(found, at))
        return found.length

    async def _read_verified(self, local: LocalTarget, wanted: Wanted, room: int) -> None:
        if self._packed:
            into = [self._views[0][self._at : self._at + room]]
            self._at += await self._read_slowly(local, wanted, into, self._at)
        else:
            await self._read_slowly(local, wanted, self._pieces_of(wanted[0]), 0)

    def _answer(self) -> None:
        rows = self._rows
        for local, begin, end in self._uncounted + self._unindexed:
            lengths = [length for status, length, _, _ in rows.results(begin, end) if not status]
            local.cache.count_reads(self._inode, len(lengths), end - begin - len(lengths), sum(lengths))
        self._request.reply(rows.answer(), [self._at] if self._packed else self._pushed())

    def _pushed(self) -> list[int]:
        pushed: list[int] = []
        for row, (status, length, _, _) in enumerate(self._rows.results(0, self._rows.count)):
            left = 0 if status else length
            for view in self._pieces_of(row):
                pushed.append(min(left, len(view)))
                left -= pushed[-1]
        return pushed
