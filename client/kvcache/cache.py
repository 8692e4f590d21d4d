"""`KVCache`: blocks by key on the storage nodes. The contract is in api.py, how it works in docs/kv_cache.md.

A batch is grouped by storage worker, all requests are sent before any answer is waited for, and blocks land in the
caller's memory. A worker that does not answer within `timeout_s` makes misses of its keys, and is not asked again for a
second.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fireflyfs.client.channels import ChannelPool
from fireflyfs.client.file import File
from fireflyfs.client.filesystem import FileSystem
from fireflyfs.client.forkguard import ForkGuard
from fireflyfs.client.kvcache.api import MISS, Block, CacheStats, Namespace, Out
from fireflyfs.client.kvcache.getting import GetBatch
from fireflyfs.client.kvcache.namespaces import Namespaces
from fireflyfs.client.kvcache.nodes import Nodes
from fireflyfs.client.kvcache.packed import PackedAnswer
from fireflyfs.client.kvcache.placement import Placed, Placement, Plan, Rows, place
from fireflyfs.client.kvcache.prefetch import Prefetcher, PrefetchJob
from fireflyfs.client.kvcache.putting import Putter
from fireflyfs.client.kvcache.upkeep import Upkeep
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.cache_hash import Keys
from fireflyfs.common.clock import SystemClock
from fireflyfs.common.errors import Code, error
from fireflyfs.common.ids import new_client_id
from fireflyfs.common.limits import CACHE_LOOKUPS_MAX
from fireflyfs.common.net.api import Call, Reply
from fireflyfs.common.net.methods import Method

log = logging.getLogger(__name__)

TIMEOUT_S = 0.4  # a look-up waits so long for a node
PUT_TIMEOUT_S = 2.0  # and a put, which may have to wait for room
THERE, UNKNOWN = 1, 2  # answers to STORAGE_CACHE_EXISTS


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
        held: File | None = None,
        own_filesystem: bool = False,
    ) -> None:
        """`held`: see `Namespaces.hold`; the cache closes it, and with `own_filesystem` the file system."""
        context = filesystem.context
        self.namespace = namespace
        self._fs = filesystem
        self._held = held
        self._own_filesystem = own_filesystem
        self._placement = Placement(file)
        self._clock = SystemClock()
        self._nodes = Nodes(context.link, context.routing, self._placement, self._clock, timeout_s)
        # Its puts are those of a client of their own: they share no channels with the file system's writes.
        client_id, channels = new_client_id(), ChannelPool()
        self._putter = Putter(
            context, self._nodes, self._placement, namespace, self._clock, client_id, channels, put_timeout_s
        )
        self._upkeep = Upkeep(context, self._nodes, self._placement, client_id, channels, put_timeout_s)
        self._stats = CacheStats()
        self._lock = threading.Lock()
        self._prefetcher = Prefetcher(self.get_batch)
        self._closed = False
        self._guard = ForkGuard()

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
            namespaces = Namespaces(filesystem)
            namespace, file = namespaces.open(
                name,
                block_size=block_size,
                replication=replication,
                capacity_bytes=capacity_bytes,
                ttl_s=ttl_s,
                fingerprint=mark,
            )
            return cls(
                filesystem,
                namespace,
                file,
                timeout_s=timeout_s,
                put_timeout_s=put_timeout_s,
                held=namespaces.hold(namespace),
                own_filesystem=own,
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
        stats = CacheStats()
        stored = self._putter.put(keys, blocks, stats)
        self._count(stats)
        return stored

    # Looking up

    def get_batch(self, keys: Sequence[bytes], out: Sequence[Out]) -> list[int]:
        self._check(len(keys), len(out))
        stats = CacheStats()
        batch = GetBatch(keys, out, self._placement)

        def land(rows: Rows, reply: Reply, answer: PackedAnswer | None) -> list[int]:
            return batch.land(rows, reply, answer, stats)

        unanswered: list[int] = []
        for rows in batch.waves():
            unanswered += self._nodes.ask_all(batch.place, rows, batch.pack, land)
        unanswered += batch.give_up_tainted()
        lengths = batch.lengths
        stats.damaged = len(batch.damaged)
        stats.away = len(set(unanswered) - batch.damaged)
        stats.misses = lengths.count(MISS)
        stats.hits = len(keys) - stats.misses
        stats.hit_bytes = sum(lengths) + stats.misses
        self._count(stats)
        return lengths

    def exists_batch(self, keys: Sequence[bytes]) -> list[bool]:
        return [bool(each) for each in self._find(keys).tolist()]

    def match_prefix(self, keys: Sequence[bytes]) -> int:
        found = self._find(keys)
        return len(keys) if found.all() else int(np.argmin(found))

    def _find(self, keys: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        self._check(len(keys), len(keys))
        hashed = Keys(keys)
        positions = self._placement.positions_of(hashed)
        table = self._placement.lookup_table(hashed, positions)
        found = np.zeros(len(keys), np.bool_)

        def divide(plan: Plan, rows: Rows) -> Placed:
            return place(plan, positions, rows)

        def pack(placed: Placed, mine: Rows, _: bytes | None) -> Iterator[tuple[Rows, Call, None]]:
            for start in range(0, len(mine), CACHE_LOOKUPS_MAX):
                rows = mine[start : start + CACHE_LOOKUPS_MAX]
                yield rows, Call(Method.STORAGE_CACHE_EXISTS, self._placement.body(table, placed, rows)), None

        def land(rows: Rows, reply: Reply, _: None) -> list[int]:
            if len(reply.body) != len(rows):
                return []  # nonsense: misses
            answer = np.frombuffer(reply.body, np.uint8)
            found[rows] = answer == THERE
            return rows[answer == UNKNOWN].tolist() if answer.max() == UNKNOWN else []

        unanswered: list[int] = []
        if len(keys):
            unanswered = self._nodes.ask_all(divide, np.arange(len(keys)), pack, land)
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
        """Ends prefetches first: nobody writes into callers' memory afterwards. Twice is no error.

        In a forked child it does nothing: all that there is to close is the parent's.
        """
        if self._closed or self._guard.forked():
            return
        self._closed = True
        self._prefetcher.close()
        if self._held is not None:
            try:
                self._held.close()
            except OSError as exc:
                log.warning("the session of %s ends with this client's lease: %s", self.namespace.name, exc)
        if self._own_filesystem:
            self._fs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, keys: int, others: int) -> None:
        self._guard.check()  # a child would use its parent's update channels: its puts would pass for repeated ones
        if self._closed:
            raise error(Code.CANCELLED, f"the cache {self.namespace.name!r} is closed")
        if keys != others:
            raise error(Code.INVALID, f"{keys} keys for {others} blocks")

    def _count(self, more: CacheStats) -> None:
        with self._lock:
            for name in _COUNTERS:
                setattr(self._stats, name, getattr(self._stats, name) + getattr(more, name))


_COUNTERS = tuple(each.name for each in dataclasses.fields(CacheStats) if each.name != "servers")
