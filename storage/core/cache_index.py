"""What one target holds of the KV cache, in memory: who is there, how large, until when, and who goes first.

The blocks stand in a `BlockTable`; here are the namespaces: what each holds and may hold, and its order of eviction.
Memory for a block with a key of 32 bytes, and room to grow into: 86 to 172 bytes, and 24 to 48 for ghosts;
`memory_bytes` measures it. Belongs to the caller's lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fireflyfs.storage.core.block_rows import BlockRows, Located, Wanted
from fireflyfs.storage.core.block_table import BlockTable, Indexes
from fireflyfs.storage.core.eviction import EXPIRED, LEAVING, NONE, S3Fifo
from fireflyfs.storage.engine.interface import ChunkKey, NamedBlock

SPACES_MAX = 4096  # namespaces remembered; those without a block are forgotten beyond
STEPS_MAX = 4096  # of the order of eviction, in one choice of victims: the event loop waits for it
NEVER_S = 1 << 62


class SpaceStats(NamedTuple):
    """One namespace on one target. Counters since the process began; sizes in bytes."""

    blocks: int
    bytes: int
    capacity_bytes: int
    hits: int
    misses: int
    hit_bytes: int
    puts: int
    evictions: int
    expired: int
    damaged: int


class Space:
    """One namespace's part of the index."""

    __slots__ = (
        "capacity_bytes",
        "damaged",
        "evictions",
        "expired",
        "hit_bytes",
        "hits",
        "inode",
        "leaving_bytes",
        "misses",
        "number",
        "order",
        "puts",
    )

    def __init__(self, inode: int, number: int, order: S3Fifo) -> None:
        self.inode = inode
        self.number = number
        self.order = order
        self.capacity_bytes = 0
        self.leaving_bytes = 0  # of victims that are not gone yet
        self.hits = self.misses = self.hit_bytes = self.puts = self.evictions = self.expired = self.damaged = 0

    @property
    def bytes(self) -> int:
        return self.order.bytes + self.leaving_bytes

    def stats(self, blocks: int) -> SpaceStats:
        return SpaceStats(
            blocks, self.bytes, self.capacity_bytes, self.hits, self.misses, self.hit_bytes, self.puts,
            self.evictions, self.expired, self.damaged,
        )  # fmt: skip


class CacheIndex:
    """The blocks of one target."""

    def __init__(self) -> None:
        self._table = BlockTable()
        self._spaces: dict[int, Space] = {}
        self._by_number: dict[int, Space] = {}
        self._next_number = 1
        self._blocks: dict[int, int] = {}  # namespace number to blocks, leaving ones too
        self.expires_from_unix_s = NEVER_S  # no block that is not leaving expires before

    @property
    def memory_bytes(self) -> int:
        return self._table.memory_bytes + sum(space.order.memory_bytes for space in self._spaces.values())

    def __len__(self) -> int:
        return self._table.count

    # -- looking

    def present(
        self, inode: int, indexes: Indexes, checks: npt.NDArray[np.uint32], now_unix_s: int
    ) -> npt.NDArray[np.bool_]:
        """Which are here and not expired; those count as asked for."""
        space = self._spaces.get(inode)
        if space is None:
            return np.zeros(len(indexes), np.bool_)
        return self._table.present(space.number, indexes, checks, now_unix_s)

    def locate(self, inode: int, wanted: Iterable[Wanted], now_unix_s: int) -> list[Located]:
        """Where the blocks of these keys are that are here and not expired; they count as asked for."""
        space = self._spaces.get(inode)
        return self._table.locate(space.number, wanted, now_unix_s) if space is not None else []

    def locate_rows(self, inode: int, rows: BlockRows, begin: int, end: int, now_unix_s: int) -> None:
        """See `BlockTable.locate_rows`."""
        space = self._spaces.get(inode)
        self._table.locate_rows(space.number if space is not None else 0, rows, begin, end, now_unix_s)

    def count_reads(self, inode: int, hits: int, misses: int, hit_bytes: int) -> None:
        space = self._spaces.get(inode) or self._open(inode)
        space.hits += hits
        space.misses += misses
        space.hit_bytes += hit_bytes

    def stats(self, inode: int) -> SpaceStats:
        space = self._spaces.get(inode)
        return space.stats(self._blocks[space.number]) if space is not None else SpaceStats(*[0] * 10)

    # -- changing

    def _open(self, inode: int) -> Space:
        if len(self._spaces) >= SPACES_MAX:
            for old in [space for space in self._spaces.values() if not self._blocks[space.number]]:
                del self._spaces[old.inode], self._by_number[old.number], self._blocks[old.number]
        space = Space(inode, self._next_number, S3Fifo(self._table))
        self._next_number += 1
        self._spaces[inode] = self._by_number[space.number] = space
        self._blocks[space.number] = 0
        return space

    def set_capacity(self, inode: int, capacity_bytes: int) -> None:
        (self._spaces.get(inode) or self._open(inode)).capacity_bytes = capacity_bytes

    def store(self, block: NamedBlock, check: int, *, fresh: bool = True) -> None:
        """The block is there; where one was, this is it now. Not `fresh`: it was found by a scan."""
        key = block.key
        space = self._spaces.get(key.inode) or self._open(key.inode)
        _, slot = self._table.look(space.number, key.chunk_index)
        if slot == NONE:
            slot = self._table.add(space.number, key.chunk_index)
            self._blocks[space.number] += 1
        elif fresh:
            self._take_out(space, slot)
        else:
            return
        self._table.describe(slot, block, check)
        if block.name.expires_unix_s:
            self.expires_from_unix_s = min(self.expires_from_unix_s, block.name.expires_unix_s)
        space.puts += fresh
        space.order.enter(slot, key.chunk_index)

    def drop(self, key: ChunkKey) -> bool:
        """The block is gone. False: it was not here."""
        space = self._spaces.get(key.inode)
        if space is None:
            return False
        place, slot = self._table.look(space.number, key.chunk_index)
        if slot == NONE:
            return False
        self._take_out(space, slot)
        self._table.remove(place, slot)
        self._blocks[space.number] -= 1
        return True

    def note_damage(self, key: ChunkKey) -> None:
        """Its bytes are lost: nobody finds it any more."""
        self.drop(key)
        (self._spaces.get(key.inode) or self._open(key.inode)).damaged += 1

    def _take_out(self, space: Space, slot: int) -> None:
        if self._table.queue[slot] >= LEAVING:
            space.leaving_bytes -= self._table.size[slot]
        else:
            space.order.leave(slot)

    # -- eviction

    def over_bytes(self, inode: int) -> int:
        """How many bytes the namespace has beyond its capacity, victims that are under way not counted."""
        space = self._spaces.get(inode)
        if space is None or not space.capacity_bytes:
            return 0
        return max(0, space.order.bytes - space.capacity_bytes)

    def over_capacity(self) -> list[int]:
        """Namespaces that have more than they may."""
        return [inode for inode in self._spaces if self.over_bytes(inode)]

    @property
    def bytes(self) -> int:
        """Of all blocks that may still be evicted."""
        return sum(space.order.bytes for space in self._spaces.values())

    def fullest(self) -> int:
        """The namespace that has the most bytes; 0: there are none."""
        space = max(self._spaces.values(), key=lambda space: space.order.bytes, default=None)
        return space.inode if space is not None and space.order.count else 0

    def eviction_steps(self, inode: int) -> int:
        """Blocks of the namespace that were passed over because they were asked for."""
        space = self._spaces.get(inode)
        return space.order.steps if space is not None else 0

    def evict(self, inode: int, want_bytes: int, limit: int) -> list[ChunkKey]:
        """Blocks that go next, until `want_bytes` are together: they are victims now, and still found.

        Each must end in `drop` (when it is gone) or `keep`.
        """
        space, table = self._spaces.get(inode), self._table
        victims: list[ChunkKey] = []
        if space is None:
            return victims
        steps_end = space.order.steps + STEPS_MAX
        while want_bytes > 0 and len(victims) < limit:
            slot = space.order.evict(table.index, steps_end)
            if slot == NONE:
                break
            size = table.size[slot]
            want_bytes -= size
            space.leaving_bytes += size
            space.evictions += 1
            victims.append(ChunkKey(inode, table.index[slot]))
        return victims

    def keep(self, key: ChunkKey) -> None:
        """A victim that could not be removed."""
        space, table = self._spaces.get(key.inode), self._table
        if space is None:
            return
        _, slot = table.look(space.number, key.chunk_index)
        if slot != NONE and table.queue[slot] >= LEAVING:
            space.leaving_bytes -= table.size[slot]
            if table.queue[slot] == EXPIRED:
                space.expired -= 1
            else:
                space.evictions -= 1
            space.order.back(slot)
            if table.expires[slot]:
                self.expires_from_unix_s = min(self.expires_from_unix_s, table.expires[slot])

    def expired(self, now_unix_s: int, limit: int) -> list[ChunkKey]:
        """Blocks whose time is over: victims from now on. Looks at all blocks only when there may be one."""
        if now_unix_s < self.expires_from_unix_s:
            return []
        table = self._table
        used = slice(0, table.used)
        expires, queue = table.expires_array[used], table.queue_array[used]
        staying = (expires != 0) & (queue != 0) & (queue < LEAVING)
        over = np.flatnonzero(staying & (expires <= now_unix_s))
        if len(over) <= limit:
            later = expires[staying & (expires > now_unix_s)]
            self.expires_from_unix_s = int(later.min()) if len(later) else NEVER_S
        victims: list[ChunkKey] = []
        for slot in over[:limit].tolist():
            space = self._by_number[table.space[slot]]
            space.order.leave(slot)
            table.queue[slot] = EXPIRED
            space.leaving_bytes += table.size[slot]
            space.expired += 1
            victims.append(ChunkKey(space.inode, table.index[slot]))
        return victims
