"""What a target holds, for a check of the cluster: states of chunks, with nothing locked and no data read."""

from __future__ import annotations

from collections.abc import Sequence

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import RANGE_CHUNKS_MAX, UPDATE_ITEMS_MAX
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.storage_wire import UpdateKind
from fireflyfs.storage.core import target
from fireflyfs.storage.engine.interface import ChunkEngine, ChunkKey, ChunkState, Writer
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.wire import Item

PAGE_MAX = 2048  # chunk states in one reply
BY_NAME_MAX = 2048


async def list_chunks(replicas: Replicas, request: storage_pb2.ListChunksRequest) -> storage_pb2.ListChunksReply:
    """A page of a target's chunks, or those that are named. Also of a target that does not serve: marked so.

    Raises TARGET_OFFLINE for a target that is not here or whose disk has failed.
    """
    local = replicas.targets.get(request.target_id)
    if local is None or local.state.failed:
        raise error(Code.TARGET_OFFLINE, f"target {request.target_id} cannot be read here")
    reply = storage_pb2.ListChunksReply(
        # A fenced worker may have been taken out of its chain without knowing it.
        serving=target.may_serve(local.state, local.public) and not replicas.fenced(),
        chain_id=local.chain.chain_id if local.chain is not None else 0,
        chain_version=local.chain.version if local.chain is not None else 0,
    )
    if request.chunks:
        if len(request.chunks) > BY_NAME_MAX:
            raise error(Code.TOO_LARGE, f"{len(request.chunks)} chunks are asked for, at most {BY_NAME_MAX}")
        keys = [ChunkKey(chunk.inode, chunk.index) for chunk in request.chunks]
        # Busy before and after the look: an update that came in between shows one way or the other.
        before = [local.locks.held(key) for key in keys]
        states = await local.call(_named, local.engine, keys)
        for key, was_busy, state in zip(keys, before, states, strict=True):
            reply.chunks.append(_listed(local, key, state, was_busy, writers=True))
        return reply
    after = ChunkKey(request.after.inode, request.after.index) if request.HasField("after") else None
    limit = min(request.limit or PAGE_MAX, PAGE_MAX)
    page = await local.call(local.engine.scan, after, limit)
    reply.chunks.extend(_listed(local, state.key, state, False, writers=False) for state in page)
    reply.more = len(page) == limit
    return reply


async def list_range(local: LocalTarget, request: storage_pb2.ListRangeRequest) -> storage_pb2.ListRangeReply:
    """Committed chunks of one file: at the head, what it has not committed yet nobody was told of."""
    where = request.range
    limit = min(request.limit or RANGE_CHUNKS_MAX, RANGE_CHUNKS_MAX)
    states = await local.call(local.engine.scan_inode, where.inode, where.begin, where.end, limit + 1)
    reply = storage_pb2.ListRangeReply(more=len(states) > limit)
    for state in states[:limit]:
        reply.indexes.append(state.key.chunk_index)
        reply.lengths.append(state.committed.length if state.committed is not None else 0)
    return reply


def _named(engine: ChunkEngine, keys: Sequence[ChunkKey]) -> list[ChunkState | None]:
    return [engine.stat(key) for key in keys]


def _listed(
    local: LocalTarget, key: ChunkKey, state: ChunkState | None, was_busy: bool, *, writers: bool
) -> storage_pb2.ListedChunk:
    chunk = storage_pb2.ListedChunk(busy=was_busy or local.locks.held(key))
    if state is None:
        chunk.state.chunk.inode, chunk.state.chunk.index = key
        return chunk
    chunk.state.CopyFrom(state_message(state))
    if writers:
        if state.committed is not None:
            chunk.writer.CopyFrom(_writer_message(state.committed.writer))
        if state.pending is not None:
            chunk.pending_writer.CopyFrom(_writer_message(state.pending.writer))
    return chunk


def _writer_message(writer: Writer) -> storage_pb2.ChunkWriter:
    return storage_pb2.ChunkWriter(client_id=writer.client_id, channel=writer.channel, sequence=writer.sequence)


def seen_chunks(engine: ChunkEngine, request: storage_pb2.SeeChunksRequest, limit: int) -> storage_pb2.SeeChunksReply:
    """Chunks that hold bytes which a trim has to drop, each as it is committed; `more`: there are at least `limit`."""
    where = request.range
    reply = storage_pb2.SeeChunksReply()
    begin = where.begin
    while True:
        page = engine.scan_inode(where.inode, begin, where.end, limit)
        for state in page:
            index = state.key.chunk_index
            keep = request.keep_bytes if index == where.begin else 0
            # What is pending here may be committed by the successors, and somebody may have read it: who drops this
            # chunk finishes that first, is refused, and looks again.
            length = max(version.length for version in (state.committed, state.pending) if version is not None)
            if length > keep or not keep:
                reply.chunks.append(_seen(state, keep))
            if len(reply.chunks) == limit:
                reply.more = True
                return reply
        if len(page) < limit:
            return reply
        begin = page[-1].key.chunk_index + 1


def _seen(state: ChunkState, keep_bytes: int) -> storage_pb2.SeenChunk:
    seen = storage_pb2.SeenChunk(keep_bytes=keep_bytes)
    seen.chunk.inode, seen.chunk.index = state.key
    if state.committed is not None:
        seen.version = state.committed.version
        seen.writer.CopyFrom(_writer_message(state.committed.writer))
    return seen


def drop_items(engine: ChunkEngine, seen: Sequence[storage_pb2.SeenChunk]) -> list[Item]:
    """The updates that drop these chunks, each only while it is what was seen; none for one that is not stored.

    Raises INVALID for a chunk that is named twice.
    """
    items: list[Item] = []
    for one in seen:
        key = ChunkKey(one.chunk.inode, one.chunk.index)
        state = engine.stat(key)
        if state is None:
            continue
        kind = UpdateKind.TRUNCATE if one.keep_bytes else UpdateKind.REMOVE
        writer = Writer(one.writer.client_id, one.writer.channel, one.writer.sequence)
        keep = min(one.keep_bytes, state.chunk_size)
        items.append(Item(key, kind, 0, state.chunk_size, keep, seen=(one.version, writer)))
    if len({item.key for item in items}) != len(items):
        raise error(Code.INVALID, "a chunk to drop is named twice")
    if len(items) > UPDATE_ITEMS_MAX:
        raise error(Code.TOO_LARGE, f"{len(items)} chunks to drop, at most {UPDATE_ITEMS_MAX}")
    return items


def state_message(state: ChunkState) -> storage_pb2.ChunkState:
    committed = state.committed
    message = storage_pb2.ChunkState(
        chunk=storage_pb2.ChunkId(inode=state.key.inode, index=state.key.chunk_index),
        pending_version=state.pending.version if state.pending is not None else 0,
        chunk_size=state.chunk_size,
    )
    if committed is not None:
        message.committed_version = committed.version
        message.chain_version = committed.chain_version
        message.length = committed.length
        message.crc32c = committed.crc32c
        message.damaged = committed.damaged
        message.named = committed.name is not None
    return message
