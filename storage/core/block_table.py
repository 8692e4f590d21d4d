"""Slots for the blocks of one target, and the table that finds them by namespace and chunk index.

By slot in numpy arrays; the table has open addressing and linear probing, and is at most half full. A batch is looked
up in a few numpy operations, or one by one where it is so small that these cost more. Memory: 46 bytes a slot and its
key, 4 a place of the table, two places a slot. To be told whether a block is there, 96 bits of hash are compared; to be
told where, the whole key.

Slots are u32: 2**31 blocks to a target. Namespaces are known by a number of the caller's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fireflyfs.common import native
from fireflyfs.storage.core import eviction
from fireflyfs.storage.core.block_rows import BlockRows, Located, Wanted
from fireflyfs.storage.core.eviction import NONE
from fireflyfs.storage.engine.interface import NamedBlock

SLOTS_FIRST = 1024
KEY_BYTES_FIRST = 16
FEW = 32
_ODD = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_NATIVE_ARRAYS = ("index", "space", "expires", "size", "crc", "block", "shift", "key_length", "frequency")

Indexes = npt.NDArray[np.uint64]
Slotted = npt.NDArray[np.intp]


class BlockTable:
    """What is known of each block. Also the `Slots` of the queues of eviction."""

    def __init__(self) -> None:
        self.count = 0
        self.used = 0  # slots that were ever taken
        self._key_bytes = KEY_BYTES_FIRST  # in the array of keys
        self._free = NONE  # the first of the free slots, linked by `after`
        self._allocate(SLOTS_FIRST)
        self._rehash()

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
        self._index: Indexes = self._arrays["index"]
        self._check: npt.NDArray[np.uint32] = self._arrays["check"]
        self.expires_array: npt.NDArray[np.uint32] = self._arrays["expires"]
        self._space: npt.NDArray[np.uint32] = self._arrays["space"]
        self._frequency: npt.NDArray[np.uint8] = self._arrays["frequency"]
        self.queue_array: npt.NDArray[np.uint8] = self._arrays["queue"]
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

    def _tell_native(self) -> None:
        """Where the arrays lie, for the library in C."""
        arrays = self._arrays
        named = {name: arrays[name].ctypes.data for name in _NATIVE_ARRAYS}
        self._native = native.Index(
            places=self._table.ctypes.data,
            places_mask=self._places_mask,
            keys=arrays["key"].ctypes.data,
            slots=self._slots,
            key_bytes=self._key_bytes,
            **named,
        )
        self._native_at = ctypes.addressof(self._native)

    def _rehash(self) -> None:
        """A table for twice as many slots as there are, with every block in it."""
        places = 2 * self._slots
        self._places_mask = places - 1
        self._table: npt.NDArray[np.uint32] = np.full(places, NONE, np.uint32)
        self._places = self._table.data
        self._tell_native()
        waiting = np.flatnonzero(self.queue_array[: self.used])
        homes = self._homes(self._space[waiting], self._index[waiting])
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
        return sum(array.nbytes for array in self._arrays.values()) + self._table.nbytes

    # -- looking

    def look(self, number: int, index: int) -> tuple[int, int]:
        """(place in the table, slot there); NONE: it is free, and where the block would go."""
        places, mask, indexes, spaces = self._places, self._places_mask, self.index, self.space
        place = (index ^ (number * _ODD & _MASK)) & mask
        while True:
            slot = places[place]
            if slot == NONE or (indexes[slot] == index and spaces[slot] == number):
                return place, slot
            place = (place + 1) & mask

    def find(self, number: int, indexes: Indexes) -> Slotted:
        """The slot of each; -1: not here."""
        found = np.full(len(indexes), -1, np.intp)
        left = np.arange(len(indexes))
        places = self._homes(number, indexes)
        wanted = indexes
        while len(left):
            slots = self._table[places]
            taken = slots != NONE
            slots = np.where(taken, slots, 0)
            match = taken & (self._index[slots] == wanted) & (self._space[slots] == number)
            found[left[match]] = slots[match]
            on = taken & ~match
            left, wanted, places = left[on], wanted[on], (places[on] + 1) & self._places_mask
        return found

    def present(
        self, number: int, indexes: Indexes, checks: npt.NDArray[np.uint32], now_unix_s: int
    ) -> npt.NDArray[np.bool_]:
        """Which are here and not expired; those count as asked for."""
        if len(indexes) <= FEW:
            wanted = zip(indexes.tolist(), checks.tolist(), strict=True)
            return np.array(self._present_few(number, wanted, now_unix_s), np.bool_)
        slots = self.find(number, indexes)
        there = slots >= 0
        if not there.any():
            return there
        # Slot -1 names the last one: whatever that says, `there` is false.
        expires = self.expires_array[slots]
        there &= (expires == 0) | (expires > now_unix_s)
        there &= self._check[slots] == checks
        eviction.note_hits(self._frequency, slots[there])
        return there

    def _present_few(self, number: int, wanted: Iterable[tuple[int, int]], now_unix_s: int) -> list[bool]:
        """The same for so few that a numpy operation costs more than all of them."""
        look, check, expires, frequency = self.look, self.check, self.expires, self.frequency
        found = []
        for index, want in wanted:
            _, slot = look(number, index)
            there = slot != NONE and check[slot] == want and not 0 < expires[slot] <= now_unix_s
            if there and frequency[slot] < eviction.FREQUENCY_MAX:
                frequency[slot] += 1
            found.append(there)
        return found

    def locate(self, number: int, wanted: Iterable[Wanted], now_unix_s: int) -> list[Located]:
        """Where the blocks of these keys are that are here and not expired; they count as asked for."""
        found: list[Located] = []
        salt = number * _ODD & _MASK
        places, mask, indexes, spaces = self._places, self._places_mask, self.index, self.space
        lengths, keys, width, expires, frequency = (
            self._key_lengths, self._keys, self._key_bytes, self.expires, self.frequency,
        )  # fmt: skip
        size, crc, shift, block = self.size, self._crcs, self._shifts, self._block_numbers
        for row, index, key in wanted:
            # As `look`, whose call would cost as much as all of this.
            place = (index ^ salt) & mask
            while (slot := places[place]) != NONE and (indexes[slot] != index or spaces[slot] != number):
                place = (place + 1) & mask
            length = len(key)
            if slot == NONE or lengths[slot] != length or 0 < expires[slot] <= now_unix_s:
                continue
            at = slot * width
            if keys[at : at + length] != key:
                continue
            if frequency[slot] < eviction.FREQUENCY_MAX:
                frequency[slot] += 1
            found.append((row, size[slot], crc[slot], (shift[slot], block[slot])))
        return found

    def locate_rows(self, number: int, rows: BlockRows, begin: int, end: int, now_unix_s: int) -> None:
        """The same for rows of a request, which say then what was `located`."""
        if native.blocks is not None:
            native.blocks.locate(self._native_at, number, rows.table, begin, end, now_unix_s, rows.address)
        else:
            rows.note_located(self.locate(number, rows.wanted(begin, end), now_unix_s))

    # -- changing

    def add(self, number: int, index: int) -> int:
        """A slot for a block that is not here."""
        if 2 * (self.count + 1) > self._places_mask + 1:
            self._allocate(2 * self._slots)
            self._rehash()
        place, _ = self.look(number, index)
        if self._free != NONE:
            slot = self._free
            self._free = self.after[slot]
        else:
            slot = self.used
            self.used += 1
        self._places[place] = slot
        self.index[slot] = index
        self.space[slot] = number
        self.count += 1
        return slot

    def describe(self, slot: int, block: NamedBlock, check: int) -> None:
        """What the block in the slot is, until it is described anew."""
        name, length = block.name.key, len(block.name.key)
        if length > self._key_bytes:
            self._key_bytes = -(-length // 8) * 8
            self._allocate(self._slots)
            self._tell_native()
        self.check[slot] = check
        self.size[slot] = block.length
        self.expires[slot] = block.name.expires_unix_s
        self._crcs[slot] = block.crc32c
        self._shifts[slot], self._block_numbers[slot] = block.place
        self._keys[slot * self._key_bytes : slot * self._key_bytes + length] = name
        self._key_lengths[slot] = length

    def remove(self, place: int, slot: int) -> None:
        """What `look` said of a block that is here, and in no queue any more."""
        self._clear_place(place)
        self.queue[slot] = 0
        self.after[slot] = self._free
        self._free = slot
        self.count -= 1

    def _clear_place(self, hole: int) -> None:
        """Empty a place, and move up what would not be found behind it any more (Knuth, TAOCP 3, 6.4, algorithm R)."""
        places, mask = self._places, self._places_mask
        place = hole
        while True:
            place = (place + 1) & mask
            slot = places[place]
            if slot == NONE:
                break
            home = (self.index[slot] ^ (self.space[slot] * _ODD & _MASK)) & mask
            if (place - home) & mask >= (place - hole) & mask:
                places[hole] = slot
                hole = place
        places[hole] = NONE
