"""Which blocks of the KV cache go first: S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction",
SOSP 2023), by bytes, over arrays.

A new block enters a small queue. Whoever was asked for again while it was there moves to the main queue; the others
leave from the small queue's end, and a ghost of each is remembered: one that returns soon goes to the main queue at
once. The main queue is a CLOCK: what was asked for goes round again. So a flood of blocks that nobody asks for a second
time, which is what most prompts are, passes through a part of the room, and to note a hit is to raise a number.

A slot is a place in arrays that the caller owns (`Slots`); queues are lists linked through them. No clock, no lock.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

NONE = 0xFFFFFFFF  # no slot
FREQUENCY_MAX = 3
SMALL_SHARE = 4  # the small queue is to hold one part in so many of the bytes: see bench/kvcache_eviction.py
GHOSTS_MIN = 1024
# In `Slots.queue`; 0: free. From LEAVING on: a victim, in no queue; EXPIRED ones by their time.
IN_SMALL, IN_MAIN, LEAVING, EXPIRED = 1, 2, 3, 4


class Slots(Protocol):
    """Arrays by slot, as memoryviews: what is common to all queues of a target."""

    size: memoryview  # u32, bytes of the block
    queue: memoryview  # u8, where the slot is
    frequency: memoryview  # u8, how often it was asked for since it was looked at, to FREQUENCY_MAX
    before: memoryview  # u32, the slot that entered the queue next
    after: memoryview  # u32, the slot that entered before


class Queue:
    """First in, first out; slots may leave from anywhere."""

    __slots__ = ("_slots", "bytes", "count", "newest", "number", "oldest")

    def __init__(self, slots: Slots, number: int) -> None:
        self._slots = slots
        self.number = number
        self.newest = self.oldest = NONE
        self.bytes = 0
        self.count = 0

    def push(self, slot: int) -> None:
        slots = self._slots
        slots.queue[slot] = self.number
        slots.before[slot] = NONE
        slots.after[slot] = self.newest
        if self.newest != NONE:
            slots.before[self.newest] = slot
        else:
            self.oldest = slot
        self.newest = slot
        self.bytes += slots.size[slot]
        self.count += 1

    def take(self, slot: int) -> None:
        slots = self._slots
        before, after = slots.before[slot], slots.after[slot]
        if before != NONE:
            slots.after[before] = after
        else:
            self.newest = after
        if after != NONE:
            slots.before[after] = before
        else:
            self.oldest = before
        self.bytes -= slots.size[slot]
        self.count -= 1


class Ghosts:
    """Tags of blocks that left the small queue lately: a table by tag, each with the turn at which it left.

    Another tag in its place makes the table forget one; it holds twice as many places as are remembered.
    """

    __slots__ = ("_mask", "_tags", "_turns", "turn")

    def __init__(self) -> None:
        self._resize(1)  # until there is one to remember
        self.turn = 0

    def _resize(self, places: int) -> None:
        self._mask = places - 1
        self._tags: memoryview = np.zeros(places, np.uint32).data
        self._turns: memoryview = np.zeros(places, np.uint64).data

    def add(self, tag: int, blocks: int) -> None:
        """`blocks`: how many there are in the queues: as many ghosts are kept."""
        if 2 * max(blocks, GHOSTS_MIN) > self._mask + 1:
            self._resize(1 << (2 * max(blocks, GHOSTS_MIN) - 1).bit_length())
        self.turn += 1
        place = tag & self._mask
        self._tags[place] = tag >> 32
        self._turns[place] = self.turn

    def claim(self, tag: int, blocks: int) -> bool:
        """Whether it left no more than `blocks` leavings ago; it is forgotten then."""
        place = tag & self._mask
        if self._tags[place] != tag >> 32 or not self._turns[place]:
            return False
        recent = self.turn - self._turns[place] <= max(blocks, GHOSTS_MIN)
        self._turns[place] = 0
        return bool(recent)

    @property
    def bytes(self) -> int:
        return (self._mask + 1) * 12


class S3Fifo:
    """The order of eviction of one namespace on one target."""

    __slots__ = ("_ghosts", "_main", "_slots", "_small", "steps")

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._small = Queue(slots, IN_SMALL)
        self._main = Queue(slots, IN_MAIN)
        self._ghosts = Ghosts()
        self.steps = 0  # blocks that `evict` has passed over because they were asked for

    @property
    def bytes(self) -> int:
        return self._small.bytes + self._main.bytes

    @property
    def count(self) -> int:
        return self._small.count + self._main.count

    @property
    def memory_bytes(self) -> int:
        return self._ghosts.bytes

    def enter(self, slot: int, tag: int) -> None:
        """A new block. `tag`: 64 bits of hash of its key."""
        self._slots.frequency[slot] = 0
        (self._main if self._ghosts.claim(tag, self.count) else self._small).push(slot)

    def leave(self, slot: int) -> None:
        """The block is gone, or about to be, for another reason than its age."""
        where = self._slots.queue[slot]
        if where == IN_SMALL:
            self._small.take(slot)
        elif where == IN_MAIN:
            self._main.take(slot)
        self._slots.queue[slot] = LEAVING

    def back(self, slot: int) -> None:
        """It was to go and stays: last in line."""
        self._main.push(slot)

    def evict(self, tags: memoryview, steps_end: int) -> int:
        """The slot that is to go next, taken out of its queue; NONE: there is none. `tags`: u64 by slot.

        Once `steps` has come to `steps_end`, the next one goes whether it was asked for or not: where all were, going
        round takes three steps for every block there is.
        """
        slots, small, main = self._slots, self._small, self._main
        while small.count or main.count:
            if small.count and (small.bytes * SMALL_SHARE >= self.bytes or not main.count):
                slot = small.oldest
                small.take(slot)
                if slots.frequency[slot] and self.steps < steps_end:
                    self.steps += 1
                    slots.frequency[slot] = 0
                    main.push(slot)
                    continue
                self._ghosts.add(tags[slot], self.count + 1)
            else:
                slot = main.oldest
                main.take(slot)
                if slots.frequency[slot] and self.steps < steps_end:
                    self.steps += 1
                    slots.frequency[slot] -= 1
                    main.push(slot)
                    continue
            slots.queue[slot] = LEAVING
            return slot
        return NONE


def note_hits(frequency: npt.NDArray[np.uint8], slots: npt.NDArray[np.intp]) -> None:
    """These slots were asked for. One that stands twice counts once."""
    frequency[slots] = np.minimum(frequency[slots] + 1, FREQUENCY_MAX)
