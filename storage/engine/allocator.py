"""Which blocks of one size class are in use. Pure bookkeeping: it touches no file, and its caller holds a lock.

Two bitmaps, one bit a block: `used`, and `backed` (the file system has space for it, so that writing cannot fail).
Free blocks are handed out in ascending order from a short list that is refilled from the bitmap, so that neighbours in
time are neighbours on disk, and a block costs a pop. A million blocks need 256 KiB.
"""

from __future__ import annotations

import numpy as np

REFILL_BLOCKS_MAX = 1024  # free blocks looked up at a time
_GROW_BYTES = 128  # bitmaps grow by at least so many bytes


class ClassAllocator:
    """Blocks 0, 1, 2 ... of one size. Numbers are handed out once until they are freed."""

    __slots__ = ("_backed", "_cursors", "_ready", "_refill_blocks", "_used", "used_blocks")

    def __init__(self, refill_blocks: int = REFILL_BLOCKS_MAX) -> None:
        self._used = bytearray()
        self._backed = bytearray()
        self._refill_blocks = max(8, min(refill_blocks, REFILL_BLOCKS_MAX))
        self._ready: list[int] = []  # free blocks, the next to hand out last; their bits are still 0
        self._cursors = [0, 0]  # bytes of the bitmap where the next search for any, for backed blocks starts
        self.used_blocks = 0

    def _grow(self, blocks: int) -> None:
        need = (blocks + 7) // 8
        if need > len(self._used):
            extra = max(need - len(self._used), _GROW_BYTES, len(self._used) // 8)
            self._used += bytes(extra)
            self._backed += bytes(extra)

    def _refill(self) -> None:
        """Find free blocks: such that have space already, then others, then new ones."""
        for backed in (True, False):
            cursor = self._cursors[backed]
            self._ready = self._search(cursor, len(self._used), backed) or self._search(0, cursor, backed)
            if self._ready:
                return
        start = len(self._used)
        self._grow(8 * start + self._refill_blocks)
        self._ready = self._search(start, len(self._used), False)

    def _search(self, start: int, stop: int, backed: bool) -> list[int]:
        """Free blocks in bytes [start, stop) of the bitmap, the lowest last."""
        free = ~np.frombuffer(bytes(memoryview(self._used)[start:stop]), dtype=np.uint8)
        if backed:
            free &= np.frombuffer(bytes(memoryview(self._backed)[start:stop]), dtype=np.uint8)
        with_room = np.flatnonzero(free)[: self._refill_blocks // 8]
        if not len(with_room):
            return []
        rows, columns = np.nonzero(np.unpackbits(free[with_room], bitorder="little").reshape(-1, 8))
        self._cursors[backed] = int(with_room[-1]) + start + 1
        ready: list[int] = ((with_room[rows] + start) * 8 + columns)[::-1].tolist()
        return ready

    def allocate(self) -> int:
        """A free block, now in use."""
        while True:
            if not self._ready:
                self._refill()
            block = self._ready.pop()
            if not self.is_used(block):
                self._used[block >> 3] |= 1 << (block & 7)
                self.used_blocks += 1
                return block

    def mark_used(self, block: int) -> bool:
        """Record at open that a stored record names this block; False when another one already did."""
        if block >> 3 >= len(self._used):
            self._grow(block + 1)
        bit = 1 << (block & 7)
        if self._used[block >> 3] & bit:
            return False
        self._used[block >> 3] |= bit
        self.used_blocks += 1
        return True

    def free(self, block: int) -> None:
        """Give a block back. Freeing a free block is a bug and raises ValueError."""
        if not self.is_used(block):
            raise ValueError(f"block {block} is not in use")
        self._used[block >> 3] &= ~(1 << (block & 7)) & 0xFF
        self.used_blocks -= 1

    def is_used(self, block: int) -> bool:
        return block >> 3 < len(self._used) and bool(self._used[block >> 3] & (1 << (block & 7)))

    def is_backed(self, block: int) -> bool:
        return block >> 3 < len(self._backed) and bool(self._backed[block >> 3] & (1 << (block & 7)))

    def set_backed(self, first: int, count: int, backed: bool) -> None:
        self._grow(first + count)
        for block in range(first, first + count):
            if backed:
                self._backed[block >> 3] |= 1 << (block & 7)
            else:
                self._backed[block >> 3] &= ~(1 << (block & 7)) & 0xFF

    def free_runs(self, blocks_max: int) -> list[tuple[int, int]]:
        """Runs (first, count) of blocks that are backed and free, at most blocks_max blocks in all."""
        used = np.frombuffer(bytes(self._used), dtype=np.uint8)
        backed = np.frombuffer(bytes(self._backed), dtype=np.uint8)
        candidates = np.flatnonzero(backed & ~used)
        runs: list[tuple[int, int]] = []
        left = blocks_max
        for byte in candidates.tolist():
            value = int(backed[byte]) & ~int(used[byte])
            for bit in range(8):
                if left == 0:
                    return runs
                if value >> bit & 1:
                    block = byte * 8 + bit
                    if runs and runs[-1][0] + runs[-1][1] == block:
                        runs[-1] = (runs[-1][0], runs[-1][1] + 1)
                    else:
                        runs.append((block, 1))
                    left -= 1
        return runs
