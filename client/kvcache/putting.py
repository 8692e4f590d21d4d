"""Storing blocks: updates of kind PUT through the heads of their chains, with the exactly-once retry of writes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from fireflyfs.client.channels import ChannelPool
from fireflyfs.client.kvcache.api import BLOCK_BYTES_MIN, Block, CacheStats, Namespace
from fireflyfs.client.kvcache.getting import WAVE_BYTES_MAX
from fireflyfs.client.kvcache.memory import pieces_of
from fireflyfs.client.kvcache.nodes import Nodes
from fireflyfs.client.kvcache.placement import Placement
from fireflyfs.client.retry import RetryPolicy
from fireflyfs.client.routing import Routing
from fireflyfs.client.session import ClientContext
from fireflyfs.client.storage_codec import ChunkUpdate, length_of, pack_rounds
from fireflyfs.client.storage_writer import StorageWriter
from fireflyfs.common.cache_hash import Keys
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import ClientId
from fireflyfs.common.net.api import Piece
from fireflyfs.proto.storage_wire import UpdateKind

Updates = list[tuple[int, ChunkUpdate]]  # with their chains


class Putter:
    """The puts of one open namespace. Safe to use from several threads."""

    def __init__(
        self,
        context: ClientContext,
        nodes: Nodes,
        placement: Placement,
        namespace: Namespace,
        clock: Clock,
        client_id: ClientId,
        channels: ChannelPool,
        timeout_s: float,
    ) -> None:
        self._nodes = nodes
        self._placement = placement
        self._namespace = namespace
        self._clock = clock
        policy = RetryPolicy(deadline_s=timeout_s, call_deadline_s=timeout_s)
        self._writer = StorageWriter(context.link, context.routing, client_id, channels, policy, clock, random.Random())
        self._capacity_bytes = -(-namespace.capacity_bytes // len(placement.file.chains))

    def put(self, keys: Sequence[bytes], blocks: Sequence[Block], stats: CacheStats) -> list[bool]:
        """See `Cache.put_batch`. Raises INVALID with nothing stored."""
        hashed = Keys(keys)
        indexes: list[int] = hashed.index.tolist()
        chains: list[int] = self._placement.chains_of(hashed).tolist()
        expires_unix_s = self._expires_unix_s()
        updates: dict[int, tuple[int, ChunkUpdate]] = {}  # by chunk: of several, the last one counts
        for key, block, index, chain in zip(keys, blocks, indexes, chains, strict=True):
            updates[index] = (chain, self._update(key, block, index, expires_unix_s))
        done: set[int] = set()
        for wave in _waves(updates.values()):
            self._wave(wave, done, stats)
        stored = [index in done for index in indexes]
        stats.puts_refused += stored.count(False)
        return stored

    def _update(self, key: bytes, block: Block, index: int, expires_unix_s: int) -> ChunkUpdate:
        pieces, nbytes = pieces_of(block, writable=False)
        most = self._namespace.block_size
        if not BLOCK_BYTES_MIN <= nbytes <= most:
            raise error(Code.INVALID, f"a block of {nbytes} bytes, {BLOCK_BYTES_MIN} to {most} are taken")
        file = self._placement.file
        update = ChunkUpdate(file.inode, index, file.chunk_size, UpdateKind.PUT, nbytes=nbytes)
        update.extents = _extents(pieces)
        update.name = (bytes(key), expires_unix_s)
        return update

    def _wave(self, wave: Updates, done: set[int], stats: CacheStats) -> None:
        routing = self._nodes.routing()
        reachable = {chain: self._nodes.head_of(routing, chain) is not None for chain, _ in wave}
        requests = pack_rounds(each for each in wave if reachable[each[0]])
        stats.away += sum(not reachable[chain] for chain, _ in wave)
        for request in requests:
            request.capacity_bytes = self._capacity_bytes
        for request, outcome in zip(requests, self._writer.update(requests), strict=True):
            for item, failure in zip(request.items, outcome, strict=True):
                if failure is None:
                    done.add(item.index)
                    stats.puts += 1
                    stats.put_bytes += item.nbytes
                else:
                    self._refused(routing, request.chain_id, failure, stats)

    def _refused(self, routing: Routing, chain_id: int, failure: FfsError, stats: CacheStats) -> None:
        if failure.code in (Code.NO_SPACE, Code.QUOTA_EXCEEDED):
            stats.no_room += 1
            return
        if failure.code is Code.CHECKSUM:
            stats.damaged += 1
            return
        stats.away += 1
        head = self._nodes.head_of(routing, chain_id)
        if head is not None and failure.code in (Code.TIMEOUT, Code.UNAVAILABLE):
            self._nodes.note_away(head[1])

    def _expires_unix_s(self) -> int:
        if not self._namespace.ttl_s:
            return 0
        return -int(-(self._clock.unix_ns() / 1e9 + self._namespace.ttl_s) // 1)


def _waves(updates: Iterable[tuple[int, ChunkUpdate]]) -> Iterator[Updates]:
    """Parts of a batch that are under way at once: their bytes may stand once more in memory shared with servers."""
    wave: Updates = []
    nbytes = 0
    for chain, update in updates:
        if wave and nbytes + update.nbytes > WAVE_BYTES_MAX:
            yield wave
            wave, nbytes = [], 0
        wave.append((chain, update))
        nbytes += update.nbytes
    if wave:
        yield wave


def _extents(pieces: Sequence[Piece]) -> list[tuple[int, int, Piece]]:
    extents: list[tuple[int, int, Piece]] = []
    at = 0
    for piece in pieces:
        extents.append((at, length_of(piece), piece))
        at += length_of(piece)
    return extents
