"""The KV cache's look-ups: STORAGE_CACHE_GET, STORAGE_CACHE_EXISTS and the methods of single blocks.

A look-up takes what this replica has committed and never waits for an update under way: a put that was acknowledged is
committed on every replica that serves, and of one that was not yet, both answers are right. A block that expired, has
another key, or does not match its checksum is a miss; the last is mended, or removed, in the background.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Sequence

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
from fireflyfs.proto.storage_wire import CACHE_BLOCK, CACHE_LOOKUP, UpdateKind
from fireflyfs.storage.core.block_rows import ChainAt
from fireflyfs.storage.engine.interface import CacheName, ChunkEngine, ChunkKey, Extent
from fireflyfs.storage.service.block_get import BlockGet, refused
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.reading import Reader
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.wire import Item

_HEADER = struct.Struct("<QII")  # CACHE_HEADER
Members = list[int]  # rows of a look-up

ABSENT, THERE, UNKNOWN = 0, 1, 2  # in the answer to STORAGE_CACHE_EXISTS


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
        inode, flags, table = decode(request.body, CACHE_BLOCK, READ_ITEMS_MAX)
        self._replicas.check_fence()
        get = BlockGet(request, inode, table, flags, self._now_unix_s())
        for chain, begin, end in get.runs():
            found = self._admit(chain)
            if isinstance(found, Code):
                get.refuse(begin, end, found)
            else:
                get.read(found, begin, end)
        return get.finish(self._replicas.check_fence)

    def _admit(self, chain: ChainAt) -> LocalTarget | Code:
        """The target that answers for a chain here, or why none does."""
        try:
            return self._reader.admit(*chain)
        except FfsError as exc:
            return exc.code

    # STORAGE_CACHE_EXISTS

    def exists(self, request: ServerRequest) -> Awaitable[None] | None:
        inode, _, body = decode(request.body, CACHE_LOOKUP, CACHE_LOOKUPS_MAX)
        table: npt.NDArray[np.void] = np.frombuffer(body, CACHE_LOOKUP)
        self._replicas.check_fence()
        now_unix_s = self._now_unix_s()
        answer = np.full(len(table), UNKNOWN, np.uint8)
        slow: list[tuple[LocalTarget, Members]] = []
        by_chain: dict[ChainAt, Members] = {}
        for row, chain in enumerate(zip(table["chain_id"].tolist(), table["chain_version"].tolist(), strict=True)):
            by_chain.setdefault(chain, []).append(row)
        for chain, members in by_chain.items():
            local = self._admit(chain)
            if isinstance(local, Code):
                continue
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
        slow: Sequence[tuple[LocalTarget, Members]],
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
        try:
            found = await local.call(local.engine.read_block, key, request.key, [data], self._now_unix_s())
        except FfsError as exc:
            refused(local, key, exc)
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
        item = removal(engine, key, name)
        if item is not None:
            items[key] = item
    return list(items.values())


def removal(engine: ChunkEngine, key: ChunkKey, name: bytes | None = None) -> Item | None:
    """The update that removes a block while it is what is there now; None where there is none, or none of that name."""
    state = engine.stat(key)
    committed = state.committed if state is not None else None
    if state is None or committed is None or committed.name is None or name not in (None, committed.name.key):
        return None
    seen = (committed.version, committed.writer)
    return Item(key, UpdateKind.REMOVE, 0, state.chunk_size, 0, seen=seen)


def decode(body: memoryview, kind: np.dtype[np.void], rows_max: int) -> tuple[int, int, memoryview]:
    """(inode, flags, the table of `kind`) of a look-up. Raises PROTOCOL and TOO_LARGE."""
    size = _HEADER.size
    if len(body) < size:
        raise error(Code.PROTOCOL, f"a look-up of {len(body)} bytes has no header")
    inode, rows, flags = _HEADER.unpack_from(body)
    if rows > rows_max:
        raise error(Code.TOO_LARGE, f"{rows} blocks, at most {rows_max}")
    if len(body) != size + rows * kind.itemsize:
        raise error(Code.PROTOCOL, f"a look-up of {len(body)} bytes, its header says {rows} rows")
    return inode, flags, body[size:]


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
