"""What one target holds of the KV cache, in memory: who is there, how large, until when, and who goes first.

By slot in numpy arrays, found through a table with open addressing and linear probing, at most half full. Look-ups of a
batch are a few numpy operations. Memory: 46 bytes a slot and its key, 4 a place of the table, two places a slot. With
keys of 32 bytes and room to grow into that is 86 to 172 bytes a block, and 24 to 48 for ghosts; `memory_bytes` measures
it. To be told whether a block is there, 96 bits of hash are compared; to be told where, the whole key.

Belongs to the caller's lock. Slots are u32: 2**31 blocks to a target.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fireflyfs.storage.core import eviction
from fireflyfs.storage.core.eviction import LEAVING, NONE, S3Fifo
from fireflyfs.storage.engine.interface import ChunkKey, NamedBlock

SLOTS_FIRST = 1024
KEY_BYTES_FIRST = 16
SPACES_MAX = 4096  # namespaces remembered; those without a block are forgotten beyond
_ODD = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

Indexes = npt.NDArray[np.uint64]
Slotted = npt.NDArray[np.intp]
Wanted = tuple[int, int, bytes]  # the caller's number of it, the chunk's index, the key
Located = tuple[int, int, int, tuple[int, int]]  # the caller's number, bytes, CRC32C, place
FEW = 32


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
        self._spaces: dict[int, Space] = {}
        self._by_number: dict[int, Space] = {}
        self._next_number = 1
        self._count = 0
        self._blocks: dict[int, int] = {}  # namespace number to blocks, leaving ones too
        self._key_bytes = KEY_BYTES_FIRST  # in the array of keys
        self._free = NONE  # the first of the free slots, linked by `after`
        self._used = 0  # slots that were ever taken
        self._allocate(SLOTS_FIRST)
        self._rehash()

    # -- memory

    def _allocate(self, slots: int) -> None:
        """Arrays for `slots`, with what the old ones hold."""
        old = getattr(self, "_arrays", None)
        kinds: dict[str, npt.DTypeLike] = {
            "index": np.uint64, "check": np.uint32, "size": np.uint32, "expires": np.uint32, "before": np.uint32,
            "after": np.uint32, "space": np.uint32, "crc": np.uint32, "block": np.uint32, "shift": np.uint8,
            "key_length": np.uint8, "queue": np.uint8, "frequency": np.uint8, "key": f"S{self._key_bytes}",
        }  # fmt: skip
        self._arrays = {name: np.zeros(slots, kind) for name, kind in kinds.items()}
        if old is not None:
            for name, array in self._arrays.items():
                array[: len(old[name])] = old[name]
        self.index_of: Indexes = self._arrays["index"]
        self._check: npt.NDArray[np.uint32] = self._arrays["check"]
        self._expires: npt.NDArray[np.uint32] = self._arrays["expires"]
        self._space: npt.NDArray[np.uint32] = self._arrays["space"]
        self._frequency: npt.NDArray[np.uint8] = self._arrays["frequency"]
        self._queue: npt.NDArray[np.uint8] = self._arrays["queue"]
        # Single elements are read and set through these, at a third of an array's price.
        self.index = self._arrays["index"].data
        self.check = self._arrays["check"].data
        self.size = self._arrays["size"].data
        self.expires = self._arrays["expires"].data
        self.before = self._arrays["before"].data
        self.after = self._arrays["after"].data
        self.space = self._arrays["space"].data
        self.queue = self._arrays["queue"].data
        self.frequency = self._arrays["frequency"].data
        self._crcs = self._arrays["crc"].data
        self._block_numbers = self._arrays["block"].data
        self._shifts = self._arrays["shift"].data
        self._key_lengths = self._arrays["key_length"].data
        self._keys = self._arrays["key"].view(np.uint8).data
        self._slots = slots

    def _rehash(self) -> None:
        """A table for twice as many slots as there are, with every block in it."""
        places = 2 * self._slots
        self._places_mask = places - 1
        self._table: npt.NDArray[np.uint32] = np.full(places, NONE, np.uint32)
        self._places = self._table.data
        waiting = np.flatnonzero(self._queue[: self._used])
        homes = self._homes(self._space[waiting], self.index_of[waiting])
        while len(waiting):
            free = self._table[homes] == NONE
            self._table[homes[free]] = waiting[free]  # of several with one place, one stays
            placed = self._table[homes] == waiting
            waiting, homes = waiting[~placed], (homes[~placed] + 1) & self._places_mask

    def _homes(self, spaces: npt.NDArray[np.uint32] | int, indexes: Indexes) -> npt.NDArray[np.intp]:
        mixed = indexes ^ (np.asarray(spaces, np.uint64) * np.uint64(_ODD))
        return (mixed & np.uint64(self._places_mask)).astype(np.intp)

    @property
    def memory_bytes(self) -> int:
        arrays = sum(array.nbytes for array in self._arrays.values())
        return arrays + self._table.nbytes + sum(space.order.memory_bytes for space in self._spaces.values())

    def __len__(self) -> int:
        return self._count

    # -- looking

    def find(self, inode: int, indexes: Indexes) -> Slotted:
        """The slot of each; -1: not here."""
        found = np.full(len(indexes), -1, np.intp)
        space = self._spaces.get(inode)
        if space is None or not len(indexes):
            return found
        left = np.arange(len(indexes))
        places = self._homes(space.number, indexes)
        wanted = indexes
        while len(left):
            slots = self._table[places]
            taken = slots != NONE
            slots = np.where(taken, slots, 0)
            match = taken & (self.index_of[slots] == wanted) & (self._space[slots] == space.number)
            found[left[match]] = slots[match]
            on = taken & ~match
            left, wanted, places = left[on], wanted[on], (places[on] + 1) & self._places_mask
        return found

    def present(
        self, inode: int, indexes: Indexes, checks: npt.NDArray[np.uint32], now_unix_s: int
    ) -> npt.NDArray[np.bool_]:
        """Which are here and not expired; those count as asked for."""
        if len(indexes) <= FEW:
            wanted = zip(indexes.tolist(), checks.tolist(), strict=True)
            return np.array(self._present_few(inode, wanted, now_unix_s), np.bool_)
        slots = self.find(inode, indexes)
        there = slots >= 0
        if not there.any():
            return there
        # Slot -1 names the last one: whatever that says, `there` is false.
        expires = self._expires[slots]
        there &= (expires == 0) | (expires > now_unix_s)
        there &= self._check[slots] == checks
        eviction.note_hits(self._frequency, slots[there])
        return there

    def _present_few(self, inode: int, wanted: Iterable[tuple[int, int]], now_unix_s: int) -> list[bool]:
        """The same for so few that a numpy operation costs more than all of them."""
        space = self._spaces.get(inode)
        if space is None:
            return [False for _ in wanted]
        number, look, check, expires, frequency = space.number, self._look, self.check, self.expires, self.frequency
        found = []
        for index, want in wanted:
            _, slot = look(number, index)
            there = slot != NONE and check[slot] == want and not 0 < expires[slot] <= now_unix_s
            if there and frequency[slot] < eviction.FREQUENCY_MAX:
                frequency[slot] += 1
            found.append(there)
        return found

    def locate(self, inode: int, wanted: Iterable[Wanted], now_unix_s: int) -> list[Located]:
        """Where the blocks of these keys are that are here and not expired; they count as asked for."""
        space = self._spaces.get(inode)
        found: list[Located] = []
        if space is None:
            return found
        number, look, expires, frequency = space.number, self._look, self.expires, self.frequency
        lengths, keys, width = self._key_lengths, self._keys, self._key_bytes
        size, crc, shift, block = self.size, self._crcs, self._shifts, self._block_numbers
        for row, index, key in wanted:
            _, slot = look(number, index)
            if slot == NONE or lengths[slot] != len(key) or 0 < expires[slot] <= now_unix_s:
                continue
            at = slot * width
            if keys[at : at + len(key)] != key:
                continue
            if frequency[slot] < eviction.FREQUENCY_MAX:
                frequency[slot] += 1
            found.append((row, size[slot], crc[slot], (shift[slot], block[slot])))
        return found

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
        space = Space(inode, self._next_number, S3Fifo(self))
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
        place, slot = self._look(space.number, key.chunk_index)
        if slot != NONE:
            if not fresh:
                return
            self._take_out(space, slot)
        else:
            if 2 * (self._count + 1) > self._places_mask + 1:
                self._allocate(2 * self._slots)
                self._rehash()
                place, _ = self._look(space.number, key.chunk_index)
            slot = self._new_slot()
            self._places[place] = slot
            self.index[slot] = key.chunk_index
            self.space[slot] = space.number
            self._count += 1
            self._blocks[space.number] += 1
        name, length = block.name.key, len(block.name.key)
        if length > self._key_bytes:
            self._key_bytes = -(-length // 8) * 8
            self._allocate(self._slots)
        self.check[slot] = check
        self.size[slot] = block.length
        self.expires[slot] = block.name.expires_unix_s
        self._crcs[slot] = block.crc32c
        self._shifts[slot], self._block_numbers[slot] = block.place
        self._keys[slot * self._key_bytes : slot * self._key_bytes + length] = name
        self._key_lengths[slot] = length
        space.puts += fresh
        space.order.enter(slot, key.chunk_index)

    def drop(self, key: ChunkKey) -> bool:
        """The block is gone. False: it was not here."""
        space = self._spaces.get(key.inode)
        if space is None:
            return False
        place, slot = self._look(space.number, key.chunk_index)
        if slot == NONE:
            return False
        self._take_out(space, slot)
        self._clear_place(place)
        self.queue[slot] = 0
        self.after[slot] = self._free
        self._free = slot
        self._count -= 1
        self._blocks[space.number] -= 1
        return True

    def note_damage(self, key: ChunkKey) -> None:
        """Its bytes are lost: nobody finds it any more."""
        self.drop(key)
        (self._spaces.get(key.inode) or self._open(key.inode)).damaged += 1

    def _take_out(self, space: Space, slot: int) -> None:
        if self.queue[slot] == LEAVING:
            space.leaving_bytes -= self.size[slot]
        else:
            space.order.leave(slot)

    def _new_slot(self) -> int:
        if self._free != NONE:
            slot = self._free
            self._free = self.after[slot]
            return slot
        self._used += 1
        return self._used - 1

    def _home(self, number: int, index: int) -> int:
        return (index ^ (number * _ODD & _MASK)) & self._places_mask

    def _look(self, number: int, index: int) -> tuple[int, int]:
        """(place in the table, slot there); NONE: it is free, and where the block would go."""
        place = self._home(number, index)
        places, mask = self._places, self._places_mask
        while True:
            slot = places[place]
            if slot == NONE or (self.index[slot] == index and self.space[slot] == number):
                return place, slot
            place = (place + 1) & mask

    def _clear_place(self, hole: int) -> None:
        """Empty a place, and move up what would not be found behind it any more (Knuth, TAOCP 3, 6.4, algorithm R)."""
        places, mask = self._places, self._places_mask
        place = hole
        while True:
            place = (place + 1) & mask
            slot = places[place]
            if slot == NONE:
                break
            home = self._home(self.space[slot], self.index[slot])
            if (place - home) & mask >= (place - hole) & mask:
                places[hole] = slot
                hole = place
        places[hole] = NONE

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

    def evict(self, inode: int, want_bytes: int, limit: int) -> list[ChunkKey]:
        """Blocks that go next, until `want_bytes` are together: they are victims now, and still found.

        Each must end in `drop` (when it is gone) or `keep`.
        """
        space = self._spaces.get(inode)
        victims: list[ChunkKey] = []
        while space is not None and want_bytes > 0 and len(victims) < limit:
            slot = space.order.evict(self.index)
            if slot == NONE:
                break
            size = self.size[slot]
            want_bytes -= size
            space.leaving_bytes += size
            space.evictions += 1
            victims.append(ChunkKey(inode, self.index[slot]))
        return victims

    def keep(self, key: ChunkKey) -> None:
        """A victim that could not be removed."""
        space = self._spaces.get(key.inode)
        if space is None:
            return
        _, slot = self._look(space.number, key.chunk_index)
        if slot != NONE and self.queue[slot] == LEAVING:
            space.leaving_bytes -= self.size[slot]
            space.evictions -= 1
            space.order.back(slot)

    def expired(self, now_unix_s: int, limit: int) -> list[ChunkKey]:
        """Blocks whose time is over: victims from now on."""
        used = slice(0, self._used)
        over = (self._expires[used] != 0) & (self._expires[used] <= now_unix_s)
        over &= (self._queue[used] != 0) & (self._queue[used] != LEAVING)
        victims: list[ChunkKey] = []
        for slot in np.flatnonzero(over)[:limit].tolist():
            space = self._by_number[self.space[slot]]
            space.order.leave(slot)
            space.leaving_bytes += self.size[slot]
            space.expired += 1
            victims.append(ChunkKey(space.inode, self.index[slot]))
        return victims
