"""The index of one target's blocks of the KV cache, in step with its engine: the loop asks, whoever commits tells."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fireflyfs.common.cache_hash import hash_key
from fireflyfs.storage.core.block_rows import BlockRows, Located, Wanted
from fireflyfs.storage.core.block_table import Indexes
from fireflyfs.storage.core.cache_index import CacheIndex, SpaceStats
from fireflyfs.storage.engine.interface import ChunkEngine, ChunkKey, NamedBlock

LOAD_PAGE = 2048  # chunks looked at in one visit to the engine
GONE_MAX = 65_536  # blocks that went while the index was being made; of more than so many it may keep ghosts
DAMAGED_MAX = 4096  # lost blocks that wait to be removed; the others are met again


class TargetCache:
    """`CacheIndex` behind a lock, and how it is made when the target is opened."""

    def __init__(self, engine: ChunkEngine) -> None:
        self._engine = engine
        self._index = CacheIndex()
        self._lock = threading.Lock()
        self._gone: set[ChunkKey] | None = set()  # since the scan began; None: it is over
        self._damaged: dict[ChunkKey, None] = {}
        self._complete = False
        self._told = engine.observe(self)

    @property
    def ready(self) -> bool:
        """Whether what is not in the index is not there."""
        return self._complete

    # Told by the engine, see `BlockObserver`

    def stored(self, block: NamedBlock) -> None:
        _, check = hash_key(block.name.key)
        with self._lock:
            self._index.store(block, check)
            self._damaged.pop(block.key, None)
            if self._gone is not None:
                self._gone.discard(block.key)

    def gone(self, key: ChunkKey) -> None:
        with self._lock:
            self._forget(key)
            self._damaged.pop(key, None)

    def damaged(self, key: ChunkKey) -> None:
        with self._lock:
            self._index.note_damage(key)
            self._forget(key)
            if len(self._damaged) < DAMAGED_MAX:
                self._damaged[key] = None

    def _forget(self, key: ChunkKey) -> None:
        self._index.drop(key)
        if self._gone is not None and len(self._gone) < GONE_MAX:
            self._gone.add(key)

    # Made by a scan

    def load_page(self, after: ChunkKey | None) -> ChunkKey | None:
        """Add the blocks of one page; where to go on. None: that was all, and the index is complete. Blocks."""
        blocks, on = self._engine.blocks_of_cache(after, LOAD_PAGE)
        checks = [hash_key(block.name.key)[1] for block in blocks]
        with self._lock:
            self._add(blocks, checks)
            if on is None:
                self._gone = None
                self._complete = self._told
        return on

    def _add(self, blocks: Sequence[NamedBlock], checks: Sequence[int]) -> None:
        for block, check in zip(blocks, checks, strict=True):
            if self._gone and block.key in self._gone:
                continue
            if block.damaged:
                if len(self._damaged) < DAMAGED_MAX:
                    self._damaged[block.key] = None
                continue
            self._index.store(block, check, fresh=False)

    # Asked

    def present(
        self, inode: int, indexes: Indexes, checks: npt.NDArray[np.uint32], now_unix_s: int
    ) -> npt.NDArray[np.bool_]:
        """See `CacheIndex.present`. Only once it is `ready`."""
        with self._lock:
            return self._index.present(inode, indexes, checks, now_unix_s)

    def locate(self, inode: int, wanted: Iterable[Wanted], now_unix_s: int) -> list[Located]:
        """See `CacheIndex.locate`. Only once it is `ready`."""
        with self._lock:
            return self._index.locate(inode, wanted, now_unix_s)

    def locate_rows(self, inode: int, rows: BlockRows, begin: int, end: int, now_unix_s: int) -> None:
        """See `CacheIndex.locate_rows`. Only once it is `ready`."""
        with self._lock:
            self._index.locate_rows(inode, rows, begin, end, now_unix_s)

    def count_reads(self, inode: int, hits: int, misses: int, hit_bytes: int) -> None:
        with self._lock:
            self._index.count_reads(inode, hits, misses, hit_bytes)

    def stats(self, inode: int) -> SpaceStats:
        with self._lock:
            return self._index.stats(inode)

    @property
    def bytes(self) -> int:
        """Of all blocks that may be evicted."""
        with self._lock:
            return self._index.bytes

    @property
    def memory_bytes(self) -> int:
        with self._lock:
            return self._index.memory_bytes

    def __len__(self) -> int:
        return len(self._index)

    # Eviction

    def set_capacity(self, inode: int, capacity_bytes: int) -> int:
        """The namespace's bound on this target; how many bytes it is over it."""
        with self._lock:
            self._index.set_capacity(inode, capacity_bytes)
            return self._index.over_bytes(inode)

    def over_capacity(self) -> list[int]:
        with self._lock:
            return self._index.over_capacity()

    def evict_over(self, inode: int, slack: int, limit: int) -> list[ChunkKey]:
        """Victims that bring the namespace below its bound, by one part in `slack` of it so that it lasts a while."""
        with self._lock:
            over = self._index.over_bytes(inode)
            more = self._index.stats(inode).capacity_bytes // slack
            return self._index.evict(inode, over + more, limit) if over else []

    def evict_fullest(self, want_bytes: int, limit: int) -> list[ChunkKey]:
        """Victims of whichever namespace has most."""
        with self._lock:
            return self._index.evict(self._index.fullest(), want_bytes, limit)

    def evict_expired(self, now_unix_s: int, limit: int) -> list[ChunkKey]:
        with self._lock:
            return self._index.expired(now_unix_s, limit)

    def damaged_blocks(self, limit: int) -> list[ChunkKey]:
        """Lost blocks to remove, other ones next time. Each is among them until it is gone, or put anew."""
        with self._lock:
            chosen = list(self._damaged)[:limit]
            for key in chosen:
                del self._damaged[key]
            self._damaged.update(dict.fromkeys(chosen))
            return chosen

    def keep(self, key: ChunkKey) -> None:
        """A victim that could not be removed."""
        with self._lock:
            self._index.keep(key)
