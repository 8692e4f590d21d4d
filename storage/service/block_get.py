"""One STORAGE_CACHE_GET: where each block is, from the index; its bytes, from the page cache in the event loop, and in
threads where the disk must be waited for; nothing is verified here that the client verifies anyway.

With VERIFY, or while a target's index is not complete, the engine finds, compares and verifies each block instead.
Most requests are of few small blocks: what is done for each row is what the processor's time goes into.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate, chain

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import CACHE_KEY_BYTES_MAX, CACHE_KEY_BYTES_MIN
from fireflyfs.common.net.api import ServerRequest
from fireflyfs.proto.storage_wire import CacheFlag
from fireflyfs.storage.core.block_table import Wanted
from fireflyfs.storage.engine.interface import ChunkKey, ReadResult
from fireflyfs.storage.engine.reader import cut_to
from fireflyfs.storage.service.local_target import LocalTarget

Row = tuple[int, int, int, int]  # CACHE_RESULT
MISS: Row = (int(Code.CHUNK_NOT_FOUND), 0, 0, 0)
TOO_LARGE: Row = (int(Code.TOO_LARGE), 0, 0, 0)
Placed = tuple[tuple[int, int], list[memoryview]]  # a block's place, and where its bytes go
ChainAt = tuple[int, int]  # a chain, and the version of it that the client knows
_BLOCK = struct.Struct("<QIIII64s")  # CACHE_BLOCK, whose rows numpy takes longer to take apart
_VERIFY, _PACKED = int(CacheFlag.VERIFY), int(CacheFlag.PACKED)


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

    def __init__(self, request: ServerRequest, inode: int, table: memoryview, flags: int, now_s: int) -> None:
        """`table`: CACHE_BLOCK of each. Raises PROTOCOL for a request that makes no sense."""
        self._request = request
        self._inode = inode
        self._now_unix_s = now_s
        self._verify = bool(flags & _VERIFY)
        self._packed = bool(flags & _PACKED)
        self._views = request.push_views()
        self.by_chain: dict[ChainAt, list[Wanted]] = {}
        pieces: list[int] = []
        for number, (index, chain_id, version, count, length, key) in enumerate(_BLOCK.iter_unpack(table)):
            if not CACHE_KEY_BYTES_MIN <= length <= CACHE_KEY_BYTES_MAX:
                raise error(Code.PROTOCOL, "a key of a length that no key has")
            members = self.by_chain.get((chain_id, version))
            if members is None:
                members = self.by_chain[chain_id, version] = []
            members.append((number, index, key[:length]))
            pieces.append(count)
        self._pieces = pieces
        self._rows: list[Row] = [MISS] * len(pieces)
        self._counts: list[tuple[LocalTarget, list[Wanted]]] = []
        self._slow: list[tuple[LocalTarget, Wanted, list[memoryview], int]] = []  # where to, where that is
        self._unindexed: list[tuple[LocalTarget, list[Wanted]]] = []
        self._at = 0  # in the one piece of a packed request
        total = sum(pieces)
        if self._packed:
            if len(self._views) != 1 or total > len(self._views[0]):
                raise error(Code.PROTOCOL, f"blocks of {total} bytes in all do not fit the memory that was offered")
            self._begins: list[int] = []
        else:
            if total != len(self._views):
                raise error(Code.PROTOCOL, f"{total} pieces are named, {len(self._views)} are offered")
            self._begins = [0, *accumulate(pieces)]

    def refuse(self, wanted: list[Wanted], code: Code) -> None:
        """These are of a chain that is not served here."""
        for row, _, _ in wanted:
            self._rows[row] = (int(code), 0, 0, 0)

    def read(self, local: LocalTarget, wanted: list[Wanted]) -> None:
        """The blocks of one chain: what is in memory, at once."""
        self._counts.append((local, wanted))
        if self._verify or not local.cache.ready:
            self._unindexed.append((local, wanted))
            return
        located = local.cache.locate(self._inode, wanted, self._now_unix_s)
        rows, pieces = self._rows, self._pieces
        numbers: list[int] = []
        places: list[Placed] = []
        if self._packed:
            memory, at = self._views[0], self._at
            for row, size, crc, place in located:
                if size > pieces[row]:
                    rows[row] = TOO_LARGE
                    continue
                places.append((place, [memory[at : at + size]]))
                numbers.append(row)
                rows[row] = (0, size, crc, at)
                at += size
            self._at = at
        else:
            for row, size, crc, place in located:
                begin = self._begins[row]
                cut = cut_to(self._views[begin : begin + pieces[row]], size)
                if cut is None:
                    rows[row] = TOO_LARGE
                    continue
                places.append((place, cut))
                numbers.append(row)
                rows[row] = (0, size, crc, 0)
        at = local.engine.read_places(places, 0)
        if at < len(places):
            self._read_rest(local, dict(zip([each[0] for each in wanted], wanted, strict=True)), numbers, places, at)

    def _read_rest(
        self, local: LocalTarget, wanted: dict[int, Wanted], numbers: list[int], places: Sequence[Placed], at: int
    ) -> None:
        """What comes after the first block that must be waited for: some of it may be in memory."""
        while at < len(places):
            row, into = numbers[at], places[at][1]
            if self._packed:
                # Packed memory goes to the client up to its last block, and was another request's before: a block that
                # does not come, or comes shorter, leaves nothing of that.
                into[0][:] = bytes(len(into[0]))
            self._slow.append((local, wanted[row], into, self._rows[row][3]))
            at = local.engine.read_places(places, at + 1)

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
        for local, wanted in self._unindexed:
            for each in wanted:
                await self._read_verified(local, each)
        check_fence()
        self._answer()

    async def _read_slowly(self, local: LocalTarget, wanted: Wanted, into: list[memoryview], at: int) -> int:
        """A block that must be waited for, verified on the way: it costs a thread anyway. Its bytes."""
        row, index, name = wanted
        key = ChunkKey(self._inode, index)
        try:
            found = await local.call(local.engine.read_block, key, name, into, self._now_unix_s)
        except FfsError as exc:
            self._rows[row] = refused(local, key, exc)
            return 0
        self._rows[row] = row_of(found, at)
        return found.length

    async def _read_verified(self, local: LocalTarget, wanted: Wanted) -> None:
        row = wanted[0]
        if self._packed:
            into = [self._views[0][self._at : self._at + self._pieces[row]]]
            self._at += await self._read_slowly(local, wanted, into, self._at)
        else:
            await self._read_slowly(local, wanted, self._views[self._begins[row] : self._begins[row + 1]], 0)

    def _answer(self) -> None:
        rows = self._rows
        for local, wanted in self._counts:
            lengths = [rows[each[0]][1] for each in wanted if not rows[each[0]][0]]
            local.cache.count_reads(self._inode, len(lengths), len(wanted) - len(lengths), sum(lengths))
        body = struct.pack(f"<{4 * len(rows)}I", *chain.from_iterable(rows))  # CACHE_RESULT of each
        self._request.reply(body, [self._at] if self._packed else self._pushed())

    def _pushed(self) -> list[int]:
        pushed: list[int] = []
        for row, (begin, end) in zip(self._rows, zip(self._begins, self._begins[1:], strict=False), strict=True):
            left = 0 if row[0] else row[1]
            for view in self._views[begin:end]:
                pushed.append(min(left, len(view)))
                left -= pushed[-1]
        return pushed
