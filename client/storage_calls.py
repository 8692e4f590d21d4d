"""The storage methods that are not bulk, as requests and folded answers, for both storage clients. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fireflyfs.client.routing import Chain, Routing
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.errors import Code, error
from fireflyfs.proto import storage_pb2


@dataclass(frozen=True, slots=True)
class LastChunk:
    """What storage holds of a file: its highest chunk, how many chunks there are, and their bytes."""

    index: int
    length: int
    chunks: int
    used_bytes: int

    def end(self, chunk_size: int) -> int:
        """The file length that the highest chunk stands for."""
        return self.index * chunk_size + self.length


@dataclass(frozen=True, slots=True)
class Removed:
    """One step of removing a file's chunks."""

    removed: int
    more: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What storage holds beyond an end, by chain; `more`: some chain has more."""

    chunks: dict[int, list[storage_pb2.SeenChunk]]
    more: bool


def serving_head(chain: Chain) -> int:
    """The target that takes updates of a chain. Raises TARGET_OFFLINE when nobody serves."""
    serving = chain.serving
    if not serving:
        raise error(Code.TARGET_OFFLINE, f"no replica of chain {chain.chain_id} serves now")
    return serving[0]


def chunk_range(chain: Chain, inode: int, begin: int, end: int) -> storage_pb2.ChunkRange:
    return storage_pb2.ChunkRange(
        chain_id=chain.chain_id, chain_version=chain.version, inode=inode, begin=begin, end=end
    )


def query_last_request(chain: Chain, inode: int, begin: int, end: int) -> storage_pb2.QueryLastChunkRequest:
    return storage_pb2.QueryLastChunkRequest(ranges=[chunk_range(chain, inode, begin, end)])


def query_last_result(reply: storage_pb2.QueryLastChunkReply) -> LastChunk | None:
    """Of a query with one range. Raises the range's error."""
    if len(reply.results) != 1:
        raise error(Code.PROTOCOL, f"one range was asked for, {len(reply.results)} were answered")
    result = reply.results[0]
    if result.status == Code.CHUNK_NOT_FOUND:
        return None
    if result.status:
        raise error(result.status, "storage could not look for the last chunk")
    if not result.found:
        return None
    return LastChunk(result.index, result.length, result.chunks, result.used_bytes)


def fold_last(parts: Iterable[LastChunk | None]) -> LastChunk | None:
    """The file's last chunk from those of its chains."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    last = max(found, key=lambda part: part.index)
    return LastChunk(last.index, last.length, sum(p.chunks for p in found), sum(p.used_bytes for p in found))


def heads_of(routing: Routing, chains: Iterable[int]) -> dict[int, list[int]]:
    """Chains grouped by the head that takes their updates: target to chain ids."""
    groups: dict[int, list[int]] = {}
    for chain_id in chains:
        groups.setdefault(serving_head(routing.chain(chain_id)), []).append(chain_id)
    return groups


def truncate_request(
    chain: Chain, file: FileLayout, index: int, length: int, client_id: bytes, channel: int, sequence: int
) -> storage_pb2.TruncateChunkRequest:
    return storage_pb2.TruncateChunkRequest(
        chain_id=chain.chain_id,
        chain_version=chain.version,
        chunk=storage_pb2.ChunkId(inode=file.inode, index=index),
        length=length,
        client_id=client_id,
        channel=channel,
        sequence=sequence,
    )


def remove_files_request(
    chain: Chain, inodes: Iterable[int], limit: int, client_id: bytes, channel: int, sequence: int
) -> storage_pb2.RemoveFilesRequest:
    return storage_pb2.RemoveFilesRequest(
        chain_id=chain.chain_id,
        chain_version=chain.version,
        inodes=inodes,
        limit=limit,
        client_id=client_id,
        channel=channel,
        sequence=sequence,
    )


def see_request(chain: Chain, inode: int, begin: int, keep_bytes: int, limit: int) -> storage_pb2.SeeChunksRequest:
    return storage_pb2.SeeChunksRequest(range=chunk_range(chain, inode, begin, 0), keep_bytes=keep_bytes, limit=limit)


def drop_request(
    chain: Chain, chunks: Iterable[storage_pb2.SeenChunk], client_id: bytes, channel: int, sequence: int
) -> storage_pb2.DropChunksRequest:
    return storage_pb2.DropChunksRequest(
        chain_id=chain.chain_id,
        chain_version=chain.version,
        chunks=chunks,
        client_id=client_id,
        channel=channel,
        sequence=sequence,
    )


def remove_request(
    chain: Chain, inode: int, begin: int, end: int, limit: int, client_id: bytes, channel: int, sequence: int
) -> storage_pb2.RemoveChunksRequest:
    return storage_pb2.RemoveChunksRequest(
        range=chunk_range(chain, inode, begin, end),
        limit=limit,
        client_id=client_id,
        channel=channel,
        sequence=sequence,
    )
