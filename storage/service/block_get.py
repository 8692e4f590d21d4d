"""One STORAGE_CACHE_GET: where each block is, from the index; its bytes, from the page cache in the event loop, and in
threads where the disk must be waited for; nothing is verified here that the client verifies anyway.

With VERIFY, or while a target's index is not complete, the engine finds, compares and verifies each block instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import CACHE_KEY_BYTES_MAX, CACHE_KEY_BYTES_MIN
from fireflyfs.common.net.api import ServerRequest
from fireflyfs.proto.storage_wire import CACHE_RESULT, CacheFlag
from fireflyfs.storage.engine.interface import ChunkKey, ReadResult, WouldBlock
from fireflyfs.storage.engine.reader import cut_to
from fireflyfs.storage.service.local_target import LocalTarget

Row = tuple[int, int, int, int]  # CACHE_RESULT
MISS: Row = (int(Code.CHUNK_NOT_FOUND), 0, 0, 0)
TOO_LARGE: Row = (int(Code.TOO_LARGE), 0, 0, 0)
Members = list[int]


def refused(local: LocalTarget, key: ChunkKey, exc: FfsError) -> Row:
    """The row of a block that cannot be read; what follows from that for the target."""
    if exc.code is Code.CHECKSUM:
        local.suspect(key)
    elif exc.code is Code.DISK_FAILED:
        local.fail(exc.message)
    return (int(exc.code), 0, 0, 0)


def row_of(found: ReadResult, at: int) -> Row:
    return (0, found.length, found.crc32c, at) if found.length else TOO_LARGE


class BlockGet:
    """The blocks of one request."""

    def __init__(self, request: ServerRequest, inode: int, table: npt.NDArray[np.void], flags: int, now_s: int) -> None:
        """Raises PROTOCOL for a request that makes no sense."""
        self._request = request
        self._inode = inode
        self._now_unix_s = now_s
        self._verify = bool(flags & CacheFlag.VERIFY)
        self._packed = bool(flags & CacheFlag.PACKED)
        self._views = request.push_views()
        self._pieces: list[int] = table["pieces"].tolist()
        self._indexes: list[int] = table["index"].tolist()
        lengths: list[int] = table["key_length"].tolist()
        if lengths and not CACHE_KEY_BYTES_MIN <= min(lengths) <= max(lengths) <= CACHE_KEY_BYTES_MAX:
            raise error(Code.PROTOCOL, "a key of a length that no key has")
        self._keys = [key[:length] for key, length in zip(table["key"].tolist(), lengths, strict=True)]
        self._rows: list[Row] = [MISS] * len(table)
        self._counts: list[tuple[LocalTarget, Members]] = []
        self._slow: list[tuple[LocalTarget, int, list[memoryview], int]] = []  # row, where to, where that is
        self._unindexed: list[tuple[LocalTarget, Members]] = []
        self._at = 0  # in the one piece of a packed request
        total = sum(self._pieces)
        if self._packed:
            if len(self._views) != 1 or total > len(self._views[0]):
                raise error(Code.PROTOCOL, f"blocks of {total} bytes in all do not fit the memory that was offered")
            self._begins: list[int] = []
        else:
            if total != len(self._views):
                raise error(Code.PROTOCOL, f"{total} pieces are named, {len(self._views)} are offered")
            self._begins = [0, *accumulate(self._pieces)]

    def refuse(self, members: Members, code: Code) -> None:
        """These rows are of a chain that is not served here."""
        for row in members:
            self._rows[row] = (int(code), 0, 0, 0)

    def read(self, local: LocalTarget, members: Members) -> None:
        """The rows of one chain: what is in memory, at once."""
        self._counts.append((local, members))
        if self._verify or not local.cache.ready:
            self._unindexed.append((local, members))
            return
        indexes, keys = self._indexes, self._keys
        wanted = [(row, indexes[row], keys[row]) for row in members]
        rows, pieces, read_place = self._rows, self._pieces, local.engine.read_place
        for row, size, crc, place in local.cache.locate(self._inode, wanted, self._now_unix_s):
            if self._packed:
                if size > pieces[row]:
                    rows[row] = TOO_LARGE
                    continue
                at = self._at
                into = [self._views[0][at : at + size]]
                self._at += size
            else:
                begin = self._begins[row]
                cut = cut_to(self._views[begin : begin + pieces[row]], size)
                if cut is None:
                    rows[row] = TOO_LARGE
                    continue
                at, into = 0, cut
            try:
                if read_place(place, into):
                    rows[row] = (0, size, crc, at)
                    continue
            except WouldBlock:
                pass
            except FfsError as exc:
                rows[row] = refused(local, self._key(row), exc)
                continue
            self._slow.append((local, row, into, at))

    def finish(self, check_fence: Callable[[], None]) -> Awaitable[None] | None:
        """Answer now, or as a task when there is something to wait for; `check_fence` once more after that."""
        if self._slow or self._unindexed:
            return self._finish(check_fence)
        self._answer()
        return None

    def _key(self, row: int) -> ChunkKey:
        return ChunkKey(self._inode, self._indexes[row])

    async def _finish(self, check_fence: Callable[[], None]) -> None:
        await asyncio.gather(*(self._read_slowly(*each) for each in self._slow))
        for local, members in self._unindexed:
            for row in members:
                await self._read_verified(local, row)
        check_fence()
        self._answer()

    async def _read_slowly(self, local: LocalTarget, row: int, into: list[memoryview], at: int) -> int:
        """A block that must be waited for, verified on the way: it costs a thread anyway. Its bytes."""
        read = local.engine.read_block
        try:
            found = await local.call(read, self._key(row), self._keys[row], into, self._now_unix_s)
        except FfsError as exc:
            self._rows[row] = refused(local, self._key(row), exc)
            return 0
        self._rows[row] = row_of(found, at)
        return found.length

    async def _read_verified(self, local: LocalTarget, row: int) -> None:
        if self._packed:
            into = [self._views[0][self._at : self._at + self._pieces[row]]]
            self._at += await self._read_slowly(local, row, into, self._at)
        else:
            await self._read_slowly(local, row, self._views[self._begins[row] : self._begins[row + 1]], 0)

    def _answer(self) -> None:
        for local, members in self._counts:
            mine = [self._rows[row] for row in members]
            hits = sum([not row[0] for row in mine])
            local.cache.count_reads(self._inode, hits, len(mine) - hits, sum([row[1] for row in mine if not row[0]]))
        self._request.reply(
            np.array(self._rows, CACHE_RESULT).tobytes(), [self._at] if self._packed else self._pushed()
        )

    def _pushed(self) -> list[int]:
        pushed: list[int] = []
        for row, (begin, end) in zip(self._rows, zip(self._begins, self._begins[1:], strict=False), strict=True):
            left = 0 if row[0] else row[1]
            for view in self._views[begin:end]:
                pushed.append(min(left, len(view)))
                left -= pushed[-1]
        return pushed
