"""Recovery, at the SYNCING successor: what its predecessor asks and tells it until it is a full replica again."""

from __future__ import annotations

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import UPDATE_ITEMS_MAX
from fireflyfs.proto import storage_pb2
from fireflyfs.storage.core import target
from fireflyfs.storage.core.target import Public
from fireflyfs.storage.engine.interface import ChunkKey, Done, DoneChunk, Writer
from fireflyfs.storage.service import inventory
from fireflyfs.storage.service.local_target import DONE_PAGE, LocalTarget
from fireflyfs.storage.service.replica import Replicas

PAGE_MAX = 2048  # chunk states in one SyncStart reply


class Successor:
    """Raises CHAIN_VERSION for another version of the chain, TARGET_OFFLINE for a target that is not syncing."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    async def start(self, request: storage_pb2.SyncStartRequest) -> storage_pb2.SyncStartReply:
        await self._replicas.catch_up(request.chain_id, request.chain_version)
        local = self._syncing(request.chain_id, request.chain_version)
        after = ChunkKey(request.after.inode, request.after.index) if request.HasField("after") else None
        limit = min(request.limit or PAGE_MAX, PAGE_MAX)
        states = await local.call(local.engine.scan, after, limit)
        return storage_pb2.SyncStartReply(chunks=map(inventory.state_message, states), more=len(states) == limit)

    async def writers(self, request: storage_pb2.SyncWritersRequest) -> storage_pb2.SyncWritersReply:
        await self._replicas.catch_up(request.chain_id, request.chain_version)
        local = self._syncing(request.chain_id, request.chain_version)
        if len(request.done) > DONE_PAGE:
            raise error(Code.TOO_LARGE, f"{len(request.done)} requests, at most {DONE_PAGE}")
        done = [_done(message) for message in request.done]
        await local.call(local.engine.adopt, done)
        local.know(done)
        return storage_pb2.SyncWritersReply()

    async def done(self, request: storage_pb2.SyncDoneRequest) -> storage_pb2.SyncDoneReply:
        await self._replicas.catch_up(request.chain_id, request.chain_version)
        local = self._syncing(request.chain_id, request.chain_version)
        # What was fsynced on the other replicas before this one came must be on its disk before it counts as one.
        await local.call(local.engine.sync)
        local = self._syncing(request.chain_id, request.chain_version)
        local.set_state(target.on_sync_done(local.state, local.public))
        return storage_pb2.SyncDoneReply()

    def _syncing(self, chain_id: int, chain_version: int) -> LocalTarget:
        local, _ = self._replicas.at(chain_id, chain_version)
        if local.public is not Public.SYNCING or not target.may_receive(local.state, local.public):
            raise error(Code.TARGET_OFFLINE, f"target {local.target_id} is not syncing")
        return local


def _done(message: storage_pb2.DoneRequest) -> Done:
    if len(message.client_id) != 16 or len(message.chunks) > UPDATE_ITEMS_MAX:
        raise error(Code.INVALID, f"a client id of {len(message.client_id)} bytes, {len(message.chunks)} chunks")
    chunks = tuple(
        DoneChunk(
            ChunkKey(found.chunk.inode, found.chunk.index),
            found.version,
            found.chain_version,
            found.length,
            found.crc32c,
        )
        for found in message.chunks
    )
    return Done(Writer(message.client_id, message.channel, message.sequence), chunks)
