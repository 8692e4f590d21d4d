"""`KVCache`: blocks by key on the storage nodes. The contract is in api.py, how it works in docs/kv_cache.md.

A batch is grouped by storage worker, all requests are sent before any answer is waited for, and blocks land in the
caller's memory. A worker that does not answer within `timeout_s` makes misses of its keys, and is not asked again for a
second.
"""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from fireflyfs.client.channels import ChannelPool
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.kvcache.api import BLOCK_BYTES_MIN, MISS, Block, CacheStats, Namespace, Out
from fireflyfs.client.kvcache.memory import pieces_of
from fireflyfs.client.kvcache.namespaces import Namespaces
from fireflyfs.client.kvcache.nodes import MOVED, Nodes
from fireflyfs.client.kvcache.placement import NodeRows, Placement, Rows, requests_of
from fireflyfs.client.kvcache.prefetch import Prefetcher, PrefetchJob
from fireflyfs.client.kvcache.upkeep import Upkeep
from fireflyfs.client.retry import RetryPolicy
from fireflyfs.client.routing import Routing
from fireflyfs.client.storage_codec import ChunkUpdate, length_of, pack_rounds, part_of, read_results, view_of
from fireflyfs.client.storage_writer import StorageWriter
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.cache_hash import Keys
from fireflyfs.common.clock import SystemClock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import new_client_id
from fireflyfs.common.limits import CACHE_LOOKUPS_MAX
from fireflyfs.common.net.api import Call, Piece, Reply
from fireflyfs.common.net.methods import Method
from fireflyfs.proto.storage_wire import UpdateKind

TIMEOUT_S = 0.4  # a look-up waits so long for a node
PUT_TIMEOUT_S = 2.0  # and a put, which may have to wait for room
_MISSING = int(Code.CHUNK_NOT_FOUND)


class KVCache:
    """One namespace. Safe to use from several threads, not across a fork. A `Cache` (api.py)."""

    def __init__(
        self,
        filesystem: FileSystem,
        namespace: Namespace,
        file: FileLayout,
        *,
        timeout_s: float = TIMEOUT_S,
        put_timeout_s: float = PUT_TIMEOUT_S,
        own_filesystem: bool = False,
    ) -> None:
        context = filesystem.context
        self.namespace = namespace
        self._fs = filesystem
        self._own_filesystem = own_filesystem
        self._placement = Placement(file)
        self._clock = SystemClock()
        self._nodes = Nodes(context.link, context.routing, self._clock, random.Random(), timeout_s)
        # Its puts are those of a client of their own: they share no channels with the file system's writes.
        client_id, channels = new_client_id(), ChannelPool()
        policy = RetryPolicy(deadline_s=put_timeout_s, call_deadline_s=put_timeout_s)
        self._writer = StorageWriter(
            context.link, context.routing, client_id, channels, policy, self._clock, random.Random()
        )
        self._upkeep = Upkeep(context, self._nodes, self._placement, client_id, channels, put_timeout_s)
        self._stats = CacheStats()
        self._lock = threading.Lock()
        self._prefetcher = Prefetcher(self.get_batch)
        self._closed = False

    @classmethod
    def open(
        cls,
        filesystem_or_mgmtd_address: FileSystem | str | Sequence[str],
        name: str,
        *,
        block_size: int,
        replication: int = 1,
        capacity_bytes: int = 0,
        ttl_s: float = 0,
        fingerprint: bytes | str = b"",
        timeout_s: float = TIMEOUT_S,
        put_timeout_s: float = PUT_TIMEOUT_S,
        **connect_options: Any,
    ) -> Self:
        """The namespace `name`, made now if there is none.

        `replication`: at least; the chain table with the fewest replicas that are enough is taken. `capacity_bytes` and
        `ttl_s` are those of the first opening. `connect_options` go to `FileSystem.connect` with an address.
        Raises FfsError: INVALID for another fingerprint or block size than the namespace was made with.
        """
        mark = fingerprint.encode() if isinstance(fingerprint, str) else bytes(fingerprint)
        own = not isinstance(filesystem_or_mgmtd_address, FileSystem)
        if isinstance(filesystem_or_mgmtd_address, FileSystem):
            filesystem = filesystem_or_mgmtd_address
        else:
            filesystem = FileSystem.connect(filesystem_or_mgmtd_address, **connect_options)
        try:
            namespace, file = Namespaces(filesystem).open(
                name,
                block_size=block_size,
                replication=replication,
                capacity_bytes=capacity_bytes,
                ttl_s=ttl_s,
                fingerprint=mark,
            )
            return cls(
                filesystem, namespace, file, timeout_s=timeout_s, put_timeout_s=put_timeout_s, own_filesystem=own
            )
        except BaseException:
            if own:
                filesystem.close()
            raise

    @property
    def filesystem(self) -> FileSystem:
        """Whose connections it uses: `allocate` gives memory that storage servers of this host reach directly."""
        return self._fs

    # Storing

    def put_batch(self, keys: Sequence[bytes], blocks: Sequence[Block]) -> list[bool]:
        self._check(len(keys), len(blocks))
        hashed = Keys(keys)
        capacity_bytes = -(-self.namespace.capacity_bytes // len(self._placement.file.chains))
        expires_unix_s = self._expires_unix_s()
        updates: dict[int, tuple[int, ChunkUpdate]] = {}  # by chunk: of several, the last one counts
        chunk_of: list[int] = hashed.index.tolist()
        chains: list[int] = self._placement.chains_of(hashed).tolist()
        routing = self._nodes.routing()
        reachable = {chain: self._nodes.head_of(routing, chain) is not None for chain in set(chains)}
        stored = [False] * len(keys)
        stats = CacheStats()
        file = self._placement.file
        for row, (key, block, index, chain) in enumerate(zip(keys, blocks, chunk_of, chains, strict=True)):
            pieces, nbytes = pieces_of(block, writable=False)
            if not BLOCK_BYTES_MIN <= nbytes <= self.namespace.block_size:
                raise error(
                    Code.INVALID,
                    f"a block of {nbytes} bytes, {BLOCK_BYTES_MIN} to {self.namespace.block_size} are taken",
                )
            if not reachable[chain]:
                stats.away += 1
                continue
            update = ChunkUpdate(file.inode, index, file.chunk_size, UpdateKind.PUT, 0, nbytes=nbytes)
            update.name = (bytes(key), expires_unix_s)
            update.extents = _extents(pieces)
            update.spans = [row]
            updates[index] = (chain, update)
        requests = pack_rounds(updates.values())
        for request in requests:
            request.capacity_bytes = capacity_bytes
        done: set[int] = set()
        for request, outcome in zip(requests, self._writer.update(requests), strict=True):
            for item, failure in zip(request.items, outcome, strict=True):
                if failure is None:
                    done.add(item.index)
                    stats.puts += 1
                    stats.put_bytes += item.nbytes
                else:
                    self._note_refused(routing, request.chain_id, failure, stats)
        stored = [index in done for index in chunk_of]
        stats.puts_refused = stored.count(False)
        self._count(stats)
        return stored

    def _note_refused(self, routing: Routing, chain_id: int, failure: FfsError, stats: CacheStats) -> None:
        if failure.code in (Code.NO_SPACE, Code.QUOTA_EXCEEDED):
            stats.no_room += 1
        elif failure.code is Code.CHECKSUM:
            stats.damaged += 1
        else:
            stats.away += 1
            head = self._nodes.head_of(routing, chain_id)
            if head is not None and failure.code in (Code.TIMEOUT, Code.UNAVAILABLE):
                self._nodes.note_away(head[1])

    def _expires_unix_s(self) -> int:
        if not self.namespace.ttl_s:
            return 0
        return -int(-(self._clock.unix_ns() / 1e9 + self.namespace.ttl_s) // 1)

    # Looking up

    def get_batch(self, keys: Sequence[bytes], out: Sequence[Out]) -> list[int]:
        self._check(len(keys), len(out))
        if not keys:
            return []
        landing = [pieces_of(each, writable=True) for each in out]
        batch = _GetBatch(Keys(keys), self._placement, [pieces for pieces, _ in landing], [n for _, n in landing])
        stats = CacheStats()
        unanswered = self._nodes.ask_all(
            self._placement,
            batch.chains,
            np.arange(len(keys)),
            batch.pack,
            lambda rows, reply: batch.land(rows, reply, stats),
        )
        stats.away += len(set(unanswered) - batch.damaged_rows)
        stats.hit_bytes = sum([length for length in batch.lengths if length > 0])
        stats.misses = batch.lengths.count(MISS)
        stats.hits = len(keys) - stats.misses
        self._count(stats)
        return batch.lengths

    def exists_batch(self, keys: Sequence[bytes]) -> list[bool]:
        return [bool(each) for each in self._find(keys).tolist()]

    def match_prefix(self, keys: Sequence[bytes]) -> int:
        found = self._find(keys)
        return len(keys) if found.all() else int(np.argmin(found))

    def _find(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        self._check(len(keys), len(keys))
        hashed = Keys(keys)
        chains = self._placement.chains_of(hashed)
        found = np.zeros(len(keys), np.bool_)

        def pack(routing: Routing, node: NodeRows) -> Iterator[tuple[Rows, Call]]:
            versions = self._placement.versions_of(routing, chains)
            for start in range(0, len(node.rows), CACHE_LOOKUPS_MAX):
                rows = node.rows[start : start + CACHE_LOOKUPS_MAX]
                body = self._placement.lookup_body(hashed, chains, versions, rows)
                yield rows, Call(Method.STORAGE_CACHE_EXISTS, body)

        def land(rows: Rows, reply: Reply) -> list[int]:
            if len(reply.body) != len(rows):
                return []  # nonsense: misses
            answer = np.frombuffer(reply.body, np.uint8)
            found[rows] = answer == 1
            return rows[answer == 2].tolist() if answer.max() == 2 else []

        unanswered: list[int] = []
        if len(keys):
            unanswered = self._nodes.ask_all(self._placement, chains, np.arange(len(keys)), pack, land)
        self._count(CacheStats(looked_up=len(keys), found=int(found.sum()), away=len(unanswered)))
        return found

    def prefetch(self, keys: Sequence[bytes], out: Sequence[Out]) -> PrefetchJob:
        self._check(len(keys), len(out))
        return self._prefetcher.start(keys, out)

    # Upkeep

    def delete(self, keys: Sequence[bytes]) -> int:
        self._check(len(keys), len(keys))
        return self._upkeep.delete(keys)

    def clear(self) -> None:
        self._check(0, 0)
        self._upkeep.clear()

    def stats(self) -> CacheStats:
        self._check(0, 0)
        with self._lock:
            mine = dataclasses.replace(self._stats)
        mine.servers = self._upkeep.server_stats()
        return mine

    def close(self) -> None:
        """Ends prefetches first: nobody writes into callers' memory afterwards. Twice is no error."""
        if self._closed:
            return
        self._closed = True
        self._prefetcher.close()
        if self._own_filesystem:
            self._fs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, keys: int, others: int) -> None:
        if self._closed:
            raise error(Code.CANCELLED, f"the cache {self.namespace.name!r} is closed")
        if keys != others:
            raise error(Code.INVALID, f"{keys} keys for {others} blocks")

    def _count(self, more: CacheStats) -> None:
        with self._lock:
            for name in _COUNTERS:
                setattr(self._stats, name, getattr(self._stats, name) + getattr(more, name))


_COUNTERS = tuple(each.name for each in dataclasses.fields(CacheStats) if each.name != "servers")


class _GetBatch:
    """One `get_batch`: what is asked, and what has landed."""

    def __init__(self, keys: Keys, placement: Placement, pieces: list[list[Piece]], room: list[int]) -> None:
        self.keys = keys
        self.chains = placement.chains_of(keys)
        self.lengths = [MISS] * len(pieces)
        self.damaged_rows: set[int] = set()
        self._placement = placement
        self._pieces = pieces
        self._room = room
        self._counts = [len(each) for each in pieces]
        self._count_array = np.array(self._counts, np.uint32)

    def pack(self, routing: Routing, node: NodeRows) -> Iterator[tuple[Rows, Call]]:
        versions = self._placement.versions_of(routing, self.chains)
        for rows in requests_of(node.rows, self._room, self._counts):
            into = [piece for row in rows.tolist() for piece in self._pieces[row]]
            body = self._placement.get_body(self.keys, self.chains, versions, rows, self._count_array)
            yield rows, Call(Method.STORAGE_CACHE_GET, body, (), into)

    def land(self, rows: Rows, reply: Reply, stats: CacheStats) -> list[int]:
        """Verify what came; rows to ask another replica for."""
        try:
            results = read_results(reply.body, len(rows))
        except FfsError:
            return list(rows.tolist())
        again: list[int] = []
        for row, status, length, expected in zip(
            rows.tolist(),
            results["status"].tolist(),
            results["length"].tolist(),
            results["crc32c"].tolist(),
            strict=True,
        ):
            if status == 0 and 0 < length <= self._room[row] and self._crc(row, length) == expected:
                self.lengths[row] = length
            elif status == 0 or status == Code.CHECKSUM:
                stats.damaged += row not in self.damaged_rows
                self.damaged_rows.add(row)
                again.append(row)
            elif status in MOVED:
                again.append(row)
            elif status == Code.TOO_LARGE:
                stats.too_large += 1
        return again

    def _crc(self, row: int, length: int) -> int:
        pieces = self._pieces[row]
        if len(pieces) == 1:
            view = view_of(pieces[0])
            return crc32c(view if len(view) == length else view[:length])
        whole = 0
        for piece in pieces:
            take = min(length, length_of(piece))
            whole = crc32c(view_of(part_of(piece, 0, take)), whole)
            length -= take
        return whole


def _extents(pieces: Sequence[Piece]) -> list[tuple[int, int, Piece]]:
    extents: list[tuple[int, int, Piece]] = []
    at = 0
    for piece in pieces:
        extents.append((at, length_of(piece), piece))
        at += length_of(piece)
    return extents
