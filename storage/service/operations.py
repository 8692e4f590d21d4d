"""The methods of `proto/storage.proto`, one handler object for both lanes, and the bulk methods of the data link."""

from __future__ import annotations

from collections.abc import Callable

import crc32c as crc32c_module

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import CHUNK_BYTES_MAX, GRPC_MESSAGE_BYTES_MAX, UPDATE_ITEMS_MAX
from fireflyfs.common.net.api import Handler
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.core import forward, target
from fireflyfs.storage.engine.interface import ChunkEngine, ChunkKey, ChunkState, Extent
from fireflyfs.storage.service import blocks, copying, inventory
from fireflyfs.storage.service.durability import Durability
from fireflyfs.storage.service.evictor import ROOM_BYTES_MAX, ROOM_PART, Evictors
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.local_updates import LocalUpdates
from fireflyfs.storage.service.reading import Reader
from fireflyfs.storage.service.repair import Repairer
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.syncing import Successor
from fireflyfs.storage.service.update import Updater
from fireflyfs.storage.service.wire import Item, Result

DAMAGED_LISTED_MAX = 1000


class StorageService:
    """What a storage worker answers."""

    def __init__(
        self, replicas: Replicas, *, room_part: float = ROOM_PART, room_bytes_max: int = ROOM_BYTES_MAX
    ) -> None:
        self._replicas = replicas
        self.link_counts: Callable[[], dict[str, int]] = dict  # of the connections of this process
        self.repairer = Repairer(replicas)
        self.updater = Updater(replicas, self.repairer)
        self.reader = Reader(replicas)
        self.evictors = Evictors(replicas, self.updater, room_part=room_part, room_bytes_max=room_bytes_max)
        self._blocks = blocks.BlockReader(replicas, self.reader)
        self._updates = LocalUpdates(replicas, self.updater, self.evictors)
        self._durability = Durability(replicas)
        self._successor = Successor(replicas)
        self._copier = copying.Copier(replicas, self.reader)

    def bulk_handlers(self) -> dict[int, Handler]:
        return {
            Method.STORAGE_READ: self.reader.handle,
            Method.STORAGE_WRITE: self._updates.handle_write,
            Method.STORAGE_UPDATE: self._updates.handle_update,
            Method.STORAGE_SYNC_READ: self.repairer.sync_read,
            Method.STORAGE_CACHE_GET: self._blocks.get,
            Method.STORAGE_CACHE_EXISTS: self._blocks.exists,
        }

    # Blocks of the KV cache, for any language

    async def read_block(self, request: storage_pb2.ReadBlockRequest) -> storage_pb2.ReadBlockReply:
        return await self._blocks.read(request)

    async def write_block(self, request: storage_pb2.WriteBlockRequest) -> storage_pb2.WriteBlockReply:
        item = blocks.put_item(request)
        writer = self._updates.writer(request.client_id, request.channel, request.sequence)
        result = (
            await self._updates.through_chain(
                request.chain_id, request.chain_version, writer, [item], request.capacity_bytes
            )
        )[0]
        return storage_pb2.WriteBlockReply(version=result.version)

    async def find_blocks(self, request: storage_pb2.FindBlocksRequest) -> storage_pb2.FindBlocksReply:
        return await self._blocks.find(request)

    async def drop_blocks(self, request: storage_pb2.DropBlocksRequest) -> storage_pb2.DropBlocksReply:
        local = await self._head(request.chain_id, request.chain_version)
        items = await local.call(blocks.drop_items, local.engine, request.inode, list(request.keys))
        if not items:
            return storage_pb2.DropBlocksReply()
        writer = self._updates.writer(request.client_id, request.channel, request.sequence)
        results = await self._updates.results_of(request.chain_id, request.chain_version, writer, items)
        return storage_pb2.DropBlocksReply(removed=sum(result.code is Code.OK for result in results))

    async def block_stats(self, request: storage_pb2.BlockStatsRequest) -> storage_pb2.BlockStatsReply:
        return self._blocks.stats(request)

    # Single chunks, for any language

    async def read_chunk(self, request: storage_pb2.ReadChunkRequest) -> storage_pb2.ReadChunkReply:
        if request.length > min(CHUNK_BYTES_MAX, GRPC_MESSAGE_BYTES_MAX - 1024):
            raise error(Code.TOO_LARGE, f"a read of {request.length} bytes")
        await self._replicas.catch_up(request.chain_id, request.chain_version)
        self._replicas.check_fence()
        local = self.reader.admit(request.chain_id, request.chain_version)
        data = bytearray(request.length)
        found = await self.reader.read(
            local, _key(request.chunk), request.offset, memoryview(data), self._updates.deadline_s()
        )
        return storage_pb2.ReadChunkReply(data=bytes(data[: found.length]), version=found.version, crc32c=found.crc32c)

    async def write_chunk(self, request: storage_pb2.WriteChunkRequest) -> storage_pb2.WriteChunkReply:
        size = request.chunk_size
        if not 0 < size <= CHUNK_BYTES_MAX or not request.data or request.offset + len(request.data) > size:
            raise error(Code.INVALID, f"{len(request.data)} bytes at {request.offset} of a chunk of {size} bytes")
        data = memoryview(request.data)
        if crc32c_module.crc32c(data) != request.crc32c:
            raise error(Code.CHECKSUM, "the data does not match its checksum")
        extent = Extent(request.offset, data, request.crc32c)
        item = Item(_key(request.chunk), UpdateKind.WRITE, 0, size, 0, extents=[extent])
        writer = self._updates.writer(request.client_id, request.channel, request.sequence)
        result = (await self._updates.through_chain(request.chain_id, request.chain_version, writer, [item]))[0]
        return storage_pb2.WriteChunkReply(version=result.version, length=result.length)

    async def truncate_chunk(self, request: storage_pb2.TruncateChunkRequest) -> storage_pb2.TruncateChunkReply:
        local = await self._head(request.chain_id, request.chain_version)
        state = await local.call(local.engine.stat, _key(request.chunk))
        if state is None:
            self._updates.nothing_to_do(
                local, self._updates.writer(request.client_id, request.channel, request.sequence)
            )
            return storage_pb2.TruncateChunkReply()
        item = Item(state.key, UpdateKind.TRUNCATE, 0, state.chunk_size, min(request.length, state.chunk_size))
        writer = self._updates.writer(request.client_id, request.channel, request.sequence)
        result = (await self._updates.through_chain(request.chain_id, request.chain_version, writer, [item]))[0]
        return storage_pb2.TruncateChunkReply(version=result.version, length=result.length)

    async def remove_chunks(self, request: storage_pb2.RemoveChunksRequest) -> storage_pb2.RemoveChunksReply:
        where = request.range
        local = await self._head(where.chain_id, where.chain_version)
        limit = min(request.limit or UPDATE_ITEMS_MAX, UPDATE_ITEMS_MAX)
        states = await local.call(local.engine.scan_inode, where.inode, where.begin, where.end, limit + 1)
        more = len(states) > limit
        removed = await self._remove(where.chain_id, where.chain_version, request, states[:limit])
        return storage_pb2.RemoveChunksReply(removed=removed, more=more)

    async def list_range(self, request: storage_pb2.ListRangeRequest) -> storage_pb2.ListRangeReply:
        local = await self._head(request.range.chain_id, request.range.chain_version)
        return await inventory.list_range(local, request)

    async def copy_chunks(self, request: storage_pb2.CopyChunksRequest) -> storage_pb2.CopyChunksReply:
        await self._head(request.chain_id, request.chain_version)
        writer = self._updates.writer(request.client_id, request.channel, request.sequence)
        with self._copier.gate.enter(copying.checked_bytes(request)):
            items = await self._copier.items(request, self._updates.deadline_s())
            results = await self._updates.results_of(request.chain_id, request.chain_version, writer, items)
        codes = {item.key: int(result.code) for item, result in zip(items, results, strict=True)}
        return storage_pb2.CopyChunksReply(statuses=[codes[_key(piece.target)] for piece in request.pieces])

    async def remove_files(self, request: storage_pb2.RemoveFilesRequest) -> storage_pb2.RemoveFilesReply:
        if not 0 < len(request.inodes) <= UPDATE_ITEMS_MAX:
            raise error(Code.INVALID, f"{len(request.inodes)} files to remove, 1 to {UPDATE_ITEMS_MAX} are taken")
        local = await self._head(request.chain_id, request.chain_version)
        limit = min(request.limit or UPDATE_ITEMS_MAX, UPDATE_ITEMS_MAX)
        states, left = await local.call(_chunks_of, local.engine, list(request.inodes), limit)
        removed = await self._remove(request.chain_id, request.chain_version, request, states)
        return storage_pb2.RemoveFilesReply(removed=removed, left=left)

    async def _remove(
        self,
        chain_id: int,
        chain_version: int,
        request: storage_pb2.RemoveChunksRequest | storage_pb2.RemoveFilesRequest,
        states: list[ChunkState],
    ) -> int:
        """Remove these chunks through the chain; how many they are."""
        items = [Item(state.key, UpdateKind.REMOVE, 0, state.chunk_size, 0) for state in states]
        writer = self._updates.writer(request.client_id, request.channel, request.sequence)
        if items:
            await self._updates.through_chain(chain_id, chain_version, writer, items)
        else:
            self._updates.nothing_to_do(self._replicas.local(chain_id), writer)
        return len(items)

    async def see_chunks(self, request: storage_pb2.SeeChunksRequest) -> storage_pb2.SeeChunksReply:
        self._replicas.check_fence()
        where = request.range
        local = await self._head(where.chain_id, where.chain_version)
        limit = min(request.limit or UPDATE_ITEMS_MAX, UPDATE_ITEMS_MAX)
        return await local.call(inventory.seen_chunks, local.engine, request, limit)

    async def drop_chunks(self, request: storage_pb2.DropChunksRequest) -> storage_pb2.DropChunksReply:
        if not 0 < len(request.chunks) <= UPDATE_ITEMS_MAX:
            raise error(Code.INVALID, f"{len(request.chunks)} chunks to drop, 1 to {UPDATE_ITEMS_MAX} are taken")
        local = await self._head(request.chain_id, request.chain_version)
        items = await local.call(inventory.drop_items, local.engine, list(request.chunks))
        results: dict[ChunkKey, Result] = {}
        if items:
            writer = self._updates.writer(request.client_id, request.channel, request.sequence)
            outcome = await self._updates.results_of(request.chain_id, request.chain_version, writer, items)
            results = dict(zip((item.key for item in items), outcome, strict=True))
        # One that is not stored any more is as good as dropped.
        keys = [_key(seen.chunk) for seen in request.chunks]
        codes = [results[key].code if key in results else Code.OK for key in keys]
        return storage_pb2.DropChunksReply(statuses=map(int, codes))

    # Questions

    async def query_last_chunk(self, request: storage_pb2.QueryLastChunkRequest) -> storage_pb2.QueryLastChunkReply:
        self._replicas.check_fence()
        return storage_pb2.QueryLastChunkReply(results=[await self._last_chunk(where) for where in request.ranges])

    async def _last_chunk(self, where: storage_pb2.ChunkRange) -> storage_pb2.LastChunk:
        try:
            local = await self._head(where.chain_id, where.chain_version)
            # The head commits last: what it has not committed yet, nobody was told of.
            last = await local.call(local.engine.last_chunk, where.inode, where.begin, where.end)
        except FfsError as exc:
            return storage_pb2.LastChunk(status=int(exc.code))
        if last is None:
            return storage_pb2.LastChunk()
        return storage_pb2.LastChunk(
            found=True, index=last.chunk_index, length=last.length, chunks=last.chunks, used_bytes=last.used_bytes
        )

    async def query_chunk(self, request: storage_pb2.QueryChunkRequest) -> storage_pb2.QueryChunkReply:
        self._replicas.check_fence()
        local = self._replicas.local(request.chain_id)
        if not target.may_serve(local.state, local.public):
            raise error(Code.TARGET_OFFLINE)
        state = local.engine.stat(_key(request.chunk))
        if state is None:
            return storage_pb2.QueryChunkReply()
        return storage_pb2.QueryChunkReply(found=True, state=inventory.state_message(state))

    async def list_chunks(self, request: storage_pb2.ListChunksRequest) -> storage_pb2.ListChunksReply:
        return await inventory.list_chunks(self._replicas, request)

    async def space(self, request: storage_pb2.SpaceRequest) -> storage_pb2.SpaceReply:
        reply = storage_pb2.SpaceReply()
        for local in self._replicas.targets.values():
            space = local.space if local.state.failed else await local.call(local.engine.space)
            reply.targets.add(
                target_id=local.target_id,
                chain_id=local.chain.chain_id if local.chain is not None else 0,
                path=str(local.path or ""),
                capacity_bytes=space.capacity_bytes,
                free_bytes=space.free_bytes,
                used_bytes=space.used_bytes,
                chunks=space.chunks,
                damaged_chunks=space.damaged,
            )
        return reply

    async def stats(self, request: storage_pb2.StatsRequest) -> storage_pb2.StatsReply:
        values = {**self._replicas.counters, **self.link_counts()}
        for name, gate in (("client", self._replicas.client_gate), ("forwarded", self._replicas.replica_gate)):
            values[f"{name}_requests_in_flight"] = gate.requests
            values[f"{name}_bytes_in_flight"] = gate.bytes
        for local in self._replicas.targets.values():
            prefix = f"target.{local.target_id}."
            values[prefix + "chunks_locked"] = len(local.locks)
            values[prefix + "channels"] = len(local.once)
            for key, value in (await local.call(local.engine.stats)).items():
                values[prefix + key] = value
        return storage_pb2.StatsReply(values=values)

    async def scrub(self, request: storage_pb2.ScrubRequest) -> storage_pb2.ScrubReply:
        """Raises INVALID for a target that is not here, before any pass is started."""
        ids = list(request.targets) or sorted(self._replicas.targets)
        unknown = [target_id for target_id in ids if target_id not in self._replicas.targets]
        if unknown:
            raise error(Code.INVALID, f"target {unknown[0]} is not served by this worker")
        reply = storage_pb2.ScrubReply()
        for target_id in ids:
            local = self._replicas.targets[target_id]
            if request.start:
                local.scrub_asked.set()
            local.space = space = local.space if local.state.failed else await local.call(local.engine.space)
            listed = await local.call(local.engine.quarantined, DAMAGED_LISTED_MAX) if space.damaged else []
            row = reply.targets.add(target_id=target_id, report=local.scrub_report())
            for found in listed:
                if not found.replaced:
                    row.damaged.add(
                        chunk=storage_pb2.ChunkId(inode=found.key.inode, index=found.key.chunk_index),
                        version=found.version,
                        length=found.length,
                        reason=found.reason,
                    )
        return reply

    async def sync_chains(self, request: storage_pb2.SyncChainsRequest) -> storage_pb2.SyncChainsReply:
        return await self._durability.sync_chains(request, self._updates.deadline_s())

    # Recovery, at the SYNCING successor

    async def sync_start(self, request: storage_pb2.SyncStartRequest) -> storage_pb2.SyncStartReply:
        return await self._successor.start(request)

    async def sync_writers(self, request: storage_pb2.SyncWritersRequest) -> storage_pb2.SyncWritersReply:
        return await self._successor.writers(request)

    async def sync_done(self, request: storage_pb2.SyncDoneRequest) -> storage_pb2.SyncDoneReply:
        return await self._successor.done(request)

    async def _head(self, chain_id: int, chain_version: int) -> LocalTarget:
        await self._replicas.catch_up(chain_id, chain_version)
        local, chain = self._replicas.at(chain_id, chain_version)
        if not target.may_serve(local.state, local.public):
            raise error(Code.TARGET_OFFLINE, f"target {local.target_id} does not serve")
        if not forward.is_head(chain, local.target_id):
            raise error(Code.NOT_HEAD)
        return local


def _chunks_of(engine: ChunkEngine, inodes: list[int], limit: int) -> tuple[list[ChunkState], list[int]]:
    """Up to `limit` chunks of these files, and the files that have more."""
    found: list[ChunkState] = []
    left: list[int] = []
    for inode in inodes:
        room = limit - len(found)
        states = engine.scan_inode(inode, 0, 0, room + 1)
        found += states[:room]
        if len(states) > room:
            left.append(inode)
    return found, left


def _key(chunk: storage_pb2.ChunkId) -> ChunkKey:
    return ChunkKey(chunk.inode, chunk.index)
