"""The KV cache's look-ups: STORAGE_CACHE_GET, STORAGE_CACHE_EXISTS and the methods of single blocks.

A look-up takes what this replica has committed and never waits for an update under way: a put that was acknowledged is
committed on every replica that serves, and of one that was not yet, both answers are right. A block that expired, has
another key, or does not match its checksum is a miss; the last is mended, or removed, in the background.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import NamedTuple

import crc32c as crc32c_module
import numpy as np
import numpy.typing as npt

from fireflyfs.common.cache_hash import Keys, hash_key
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import (
    CACHE_BLOCK_BYTES_MAX,
    CACHE_KEY_BYTES_MAX,
    CACHE_KEY_BYTES_MIN,
    CACHE_LOOKUPS_MAX,
    GRPC_MESSAGE_BYTES_MAX,
    READ_ITEMS_MAX,
    UPDATE_ITEMS_MAX,
)
from fireflyfs.common.net.api import ServerRequest
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.storage_wire import CACHE_BLOCK, CACHE_HEADER, CACHE_LOOKUP, UpdateKind
from fireflyfs.storage.engine.interface import CacheName, ChunkEngine, ChunkKey, Extent, ReadResult, WouldBlock
from fireflyfs.storage.service.reading import Reader, Row
from fireflyfs.storage.service.replica import LocalTarget, Replicas
from fireflyfs.storage.service.wire import Item, encode_reads

ABSENT, THERE, UNKNOWN = 0, 1, 2  # in the answer to STORAGE_CACHE_EXISTS
_MISS: Row = (int(Code.CHUNK_NOT_FOUND), 0, 0, 0, 0)


class _Ask(NamedTuple):
    """One block that is asked for."""

    place: int
    local: LocalTarget
    key: ChunkKey
    name: bytes
    into: list[memoryview]


class BlockReader:
    """Answers look-ups."""

    def __init__(self, replicas: Replicas, reader: Reader) -> None:
        self._replicas = replicas
        self._reader = reader

    def _now_unix_s(self) -> int:
        return self._replicas.clock.unix_ns() // 1_000_000_000

    # STORAGE_CACHE_GET

    def get(self, request: ServerRequest) -> Awaitable[None] | None:
        """Answers at once when everything is in memory; otherwise what is left runs as a task."""
        inode, table = decode_table(request.body, CACHE_BLOCK, READ_ITEMS_MAX)
        self._replicas.check_fence()
        now_unix_s = self._now_unix_s()
        rows: list[Row] = [_MISS] * len(table)
        asks = self._asks(inode, table, request, rows, now_unix_s)
        slow: list[_Ask] = []
        for ask in asks:
            try:
                found = ask.local.engine.read_block(ask.key, ask.name, ask.into, now_unix_s, nowait=True)
                rows[ask.place] = _row(found)
            except WouldBlock:
                slow.append(ask)
            except FfsError as exc:
                rows[ask.place] = self._refused(ask, exc)
        if slow:
            return self._finish(request, table, rows, asks, slow, inode, now_unix_s)
        self._answer(request, table, rows, asks, inode)
        return None

    def _asks(
        self,
        inode: int,
        table: npt.NDArray[np.void],
        request: ServerRequest,
        rows: list[Row],
        now_unix_s: int,
    ) -> list[_Ask]:
        """What may be here. Rows that are refused, or known to be misses, are answered in `rows`."""
        views = request.push_views()
        if int(table["pieces"].sum(dtype=np.int64)) != len(views):
            raise error(Code.PROTOCOL, f"the blocks name other pieces of memory than the {len(views)} that there are")
        asks: list[_Ask] = []
        ends = np.cumsum(table["pieces"]).tolist()
        begins = [0, *ends[:-1]]
        indexes, keys = table["index"].tolist(), table["key"].tolist()
        lengths = table["key_length"].tolist()
        if lengths and not CACHE_KEY_BYTES_MIN <= min(lengths) <= max(lengths) <= CACHE_KEY_BYTES_MAX:
            raise error(Code.PROTOCOL, f"a key of {min(lengths)} or {max(lengths)} bytes")
        for local, members in self._by_chain(table, rows):
            if local.cache.ready:
                members = members[local.cache.present(inode, table["index"][members], None, now_unix_s)]
            for place in members.tolist():
                key, name = ChunkKey(inode, indexes[place]), keys[place][: lengths[place]]
                asks.append(_Ask(place, local, key, name, views[begins[place] : ends[place]]))
        return asks

    def _by_chain(
        self, table: npt.NDArray[np.void], rows: list[Row] | None
    ) -> list[tuple[LocalTarget, npt.NDArray[np.intp]]]:
        """The rows of each chain that is served here; of the others, why not, goes to `rows`."""
        chains = table["chain_id"]
        found: list[tuple[LocalTarget, npt.NDArray[np.intp]]] = []
        for chain_id in sorted(set(chains.tolist())):
            members = np.flatnonzero(chains == chain_id)
            try:
                local = self._reader.admit(chain_id, int(table["chain_version"][members].max()))
            except FfsError as exc:
                if rows is not None:
                    for place in members.tolist():
                        rows[place] = (int(exc.code), 0, 0, 0, 0)
                continue
            found.append((local, members))
        return found

    def _refused(self, ask: _Ask, exc: FfsError) -> Row:
        if exc.code is Code.CHECKSUM:
            ask.local.suspect(ask.key)
        elif exc.code is Code.DISK_FAILED:
            ask.local.fail(exc.message)
        return (int(exc.code), 0, 0, 0, 0)

    async def _finish(
        self,
        request: ServerRequest,
        table: npt.NDArray[np.void],
        rows: list[Row],
        asks: Sequence[_Ask],
        slow: Sequence[_Ask],
        inode: int,
        now_unix_s: int,
    ) -> None:
        async def one(ask: _Ask) -> None:
            try:
                read = ask.local.engine.read_block
                rows[ask.place] = _row(await ask.local.call(read, ask.key, ask.name, ask.into, now_unix_s))
            except FfsError as exc:
                rows[ask.place] = self._refused(ask, exc)

        self._replicas.count("block_reads_slow", len(slow))
        await asyncio.gather(*(one(ask) for ask in slow))
        self._replicas.check_fence()  # it may have waited for long
        self._answer(request, table, rows, asks, inode)

    def _answer(
        self,
        request: ServerRequest,
        table: npt.NDArray[np.void],
        rows: list[Row],
        asks: Sequence[_Ask],
        inode: int,
    ) -> None:
        pushed = [0] * int(table["pieces"].sum())
        begins = (np.cumsum(table["pieces"]) - table["pieces"]).tolist()
        counts: dict[int, list[int]] = {}
        for ask in asks:
            left = rows[ask.place][1]
            count = counts.setdefault(ask.local.target_id, [0, 0])
            count[0] += left > 0
            count[1] += left
            for number, view in enumerate(ask.into, begins[ask.place]):
                pushed[number] = min(left, len(view))
                left -= pushed[number]
        for local, members in self._by_chain(table, None):
            hits, nbytes = counts.get(local.target_id, (0, 0))
            local.cache.count_reads(inode, hits, len(members) - hits, nbytes)
        request.reply(encode_reads(rows), pushed)

    # STORAGE_CACHE_EXISTS

    def exists(self, request: ServerRequest) -> Awaitable[None] | None:
        inode, table = decode_table(request.body, CACHE_LOOKUP, CACHE_LOOKUPS_MAX)
        self._replicas.check_fence()
        now_unix_s = self._now_unix_s()
        answer = np.full(len(table), UNKNOWN, np.uint8)
        slow: list[tuple[LocalTarget, npt.NDArray[np.intp]]] = []
        for local, members in self._by_chain(table, None):
            if local.cache.ready:
                rows = table[members] if len(members) < len(table) else table
                answer[members] = local.cache.present(inode, rows["index"], rows["check"], now_unix_s)
            else:
                slow.append((local, members))
        if slow:
            return self._exists_slowly(request, inode, table, answer, slow, now_unix_s)
        request.reply(answer.tobytes())
        return None

    async def _exists_slowly(
        self,
        request: ServerRequest,
        inode: int,
        table: npt.NDArray[np.void],
        answer: npt.NDArray[np.uint8],
        slow: Sequence[tuple[LocalTarget, npt.NDArray[np.intp]]],
        now_unix_s: int,
    ) -> None:
        """Until a target's index is complete its engine is asked."""
        for local, members in slow:
            pairs = list(zip(table["index"][members].tolist(), table["check"][members].tolist(), strict=True))
            answer[members] = await local.call(_known, local.engine, inode, pairs, now_unix_s)
        self._replicas.check_fence()
        request.reply(answer.tobytes())

    # For any language

    async def read(self, request: storage_pb2.ReadBlockRequest) -> storage_pb2.ReadBlockReply:
        """Raises CHUNK_NOT_FOUND for a miss."""
        local = await self._local(request.chain_id, request.chain_version)
        key = ChunkKey(request.inode, hash_key(request.key)[0])
        room = min(CACHE_BLOCK_BYTES_MAX, GRPC_MESSAGE_BYTES_MAX - 1024)
        data = memoryview(bytearray(room))
        ask = _Ask(0, local, key, request.key, [data])
        try:
            found = await local.call(local.engine.read_block, key, request.key, [data], self._now_unix_s())
        except FfsError as exc:
            self._refused(ask, exc)
            raise
        if not found.length:
            raise error(Code.TOO_LARGE, f"a block of {found.chunk_length} bytes; gRPC carries {room}")
        return storage_pb2.ReadBlockReply(data=bytes(data[: found.length]), version=found.version, crc32c=found.crc32c)

    async def find(self, request: storage_pb2.FindBlocksRequest) -> storage_pb2.FindBlocksReply:
        if len(request.keys) > CACHE_LOOKUPS_MAX:
            raise error(Code.TOO_LARGE, f"{len(request.keys)} keys, at most {CACHE_LOOKUPS_MAX}")
        local = await self._local(request.chain_id, request.chain_version)
        keys = Keys(request.keys)
        if local.cache.ready:
            found = local.cache.present(request.inode, keys.index, keys.check, self._now_unix_s()).tolist()
        else:
            pairs = list(zip(keys.index.tolist(), keys.check.tolist(), strict=True))
            found = await local.call(_known, local.engine, request.inode, pairs, self._now_unix_s())
        return storage_pb2.FindBlocksReply(found=found)

    async def _local(self, chain_id: int, chain_version: int) -> LocalTarget:
        await self._replicas.catch_up(chain_id, chain_version)
        self._replicas.check_fence()
        return self._reader.admit(chain_id, chain_version)

    def stats(self, request: storage_pb2.BlockStatsRequest) -> storage_pb2.BlockStatsReply:
        reply = storage_pb2.BlockStatsReply()
        for local in self._replicas.targets.values():
            for inode in request.inodes:
                reply.stats.add(
                    inode=inode,
                    target_id=local.target_id,
                    chain_id=local.chain.chain_id if local.chain is not None else 0,
                    leads=self._replicas.leads(local),
                    ready=local.cache.ready,
                    **local.cache.stats(inode)._asdict(),
                )
        return reply


def put_item(request: storage_pb2.WriteBlockRequest) -> Item:
    """The update that stores a block. Raises INVALID and CHECKSUM."""
    size = request.chunk_size
    if not 0 < len(request.data) <= min(size, CACHE_BLOCK_BYTES_MAX):
        raise error(Code.INVALID, f"a block of {len(request.data)} bytes in chunks of {size}")
    if not CACHE_KEY_BYTES_MIN <= len(request.key) <= CACHE_KEY_BYTES_MAX:
        raise error(Code.INVALID, f"a key of {len(request.key)} bytes")
    data = memoryview(request.data)
    if crc32c_module.crc32c(data) != request.crc32c:
        raise error(Code.CHECKSUM, "the data does not match its checksum")
    item = Item(ChunkKey(request.inode, hash_key(request.key)[0]), UpdateKind.PUT, 0, size, 0)
    item.extents.append(Extent(0, data, request.crc32c))
    item.name = CacheName(request.key, request.expires_unix_s)
    return item


def drop_items(engine: ChunkEngine, inode: int, keys: Sequence[bytes]) -> list[Item]:
    """The updates that remove these blocks, each while it is what is there now; none for what is not."""
    if len(keys) > UPDATE_ITEMS_MAX:
        raise error(Code.TOO_LARGE, f"{len(keys)} blocks to remove, at most {UPDATE_ITEMS_MAX}")
    items: dict[ChunkKey, Item] = {}
    for name, index in zip(keys, Keys(keys).index.tolist(), strict=True):
        key = ChunkKey(inode, index)
        state = engine.stat(key)
        committed = state.committed if state is not None else None
        if state is None or committed is None or committed.name is None or committed.name.key != name:
            continue
        seen = (committed.version, committed.writer)
        items[key] = Item(key, UpdateKind.REMOVE, 0, state.chunk_size, 0, seen=seen)
    return list(items.values())


def decode_table(body: memoryview, kind: np.dtype[np.void], rows_max: int) -> tuple[int, npt.NDArray[np.void]]:
    """(inode, rows) of a look-up. Raises PROTOCOL and TOO_LARGE."""
    size = CACHE_HEADER.itemsize
    if len(body) < size:
        raise error(Code.PROTOCOL, f"a look-up of {len(body)} bytes has no header")
    inode, rows, _ = np.frombuffer(body, CACHE_HEADER, 1).tolist()[0]
    if rows > rows_max:
        raise error(Code.TOO_LARGE, f"{rows} blocks, at most {rows_max}")
    if len(body) != size + rows * kind.itemsize:
        raise error(Code.PROTOCOL, f"a look-up of {len(body)} bytes, its header says {rows} rows")
    return inode, np.frombuffer(body, kind, rows, size)


def _row(found: ReadResult) -> Row:
    if not found.length:
        return (int(Code.TOO_LARGE), 0, found.version, 0, found.chunk_length)
    return (0, found.length, found.version, found.crc32c, found.chunk_length)


def _known(engine: ChunkEngine, inode: int, pairs: Sequence[tuple[int, int]], now_unix_s: int) -> list[bool]:
    """Which blocks, given as (index, check), are stored."""
    known = []
    for index, check in pairs:
        state = engine.stat(ChunkKey(inode, index))
        committed = state.committed if state is not None else None
        name = committed.name if committed is not None and not committed.damaged else None
        alive = name is not None and (not name.expires_unix_s or name.expires_unix_s > now_unix_s)
        known.append(alive and name is not None and hash_key(name.key)[1] == check)
    return known
