"""Which blocks of one size class are in use. Pure bookkeeping: it touches no file, and its caller holds a lock.

Bitmaps, one bit a block: `used`; `backed` (the file system has space for it, so that writing cannot fail); `fresh`
(handed out since `age` was called last); `spoiled` (backed, and freed while fresh: what was written there need not
reach the disk).
Free blocks are handed out in ascending order from a short list that is refilled from the bitmap, so that neighbours in
time are neighbours on disk, and a block costs a pop. A million blocks need 512 KiB.
"""

from __future__ import annotations

import numpy as np

REFILL_BLOCKS_MAX = 1024  # free blocks looked up at a time
_WINDOW_BYTES = 1 << 16  # of a bitmap looked at in one go
_GROW_BYTES = 128  # bitmaps grow by at least so many bytes


class ClassAllocator:
    """Blocks 0, 1, 2 ... of one size. Numbers are handed out once until they are freed."""

    __slots__ = (
        "_aged", "_backed", "_cursors", "_fresh", "_ready", "_refill_blocks", "_spoiled", "_used", "spoiled_blocks",
        "used_blocks",
    )  # fmt: skip

    def __init__(self, refill_blocks: int = REFILL_BLOCKS_MAX) -> None:
        self._used = bytearray()
        self._backed = bytearray()
        self._fresh = bytearray()
        self._spoiled = bytearray()
        self._aged = True  # no block is fresh
        self.spoiled_blocks = 0
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
            self._fresh += bytes(extra)
            self._spoiled += bytes(extra)

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
        """Free blocks of one window in bytes [start, stop) of the bitmap, the lowest last; empty: there are none."""
        for low in range(start, stop, _WINDOW_BYTES):
            high = min(low + _WINDOW_BYTES, stop)
            free = ~np.frombuffer(self._used, dtype=np.uint8, count=high - low, offset=low)
            if backed:
                free &= np.frombuffer(self._backed, dtype=np.uint8, count=high - low, offset=low)
            with_room = np.flatnonzero(free)[: self._refill_blocks // 8]
            if len(with_room):
                rows, columns = np.nonzero(np.unpackbits(free[with_room], bitorder="little").reshape(-1, 8))
                self._cursors[backed] = int(with_room[-1]) + low + 1
                ready: list[int] = ((with_room[rows] + low) * 8 + columns)[::-1].tolist()
                return ready
        return []

    def allocate(self) -> int:
        """A free block, now in use."""
        while True:
            if not self._ready:
                self._refill()
            block = self._ready.pop()
            if not self.is_used(block):
                byte, bit = block >> 3, 1 << (block & 7)
                self._used[byte] |= bit
                self._fresh[byte] |= bit
                self._aged = False
                if self._spoiled[byte] & bit:
                    self._spoiled[byte] &= ~bit & 0xFF
                    self.spoiled_blocks -= 1
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
        byte, bit = block >> 3, 1 << (block & 7)
        self._used[byte] &= ~bit & 0xFF
        self.used_blocks -= 1
        if self._fresh[byte] & self._backed[byte] & bit:
            self._spoiled[byte] |= bit
            self.spoiled_blocks += 1

    def is_fresh(self, block: int) -> bool:
        """Whether a used block was handed out since `age`."""
        return bool(self._fresh[block >> 3] & (1 << (block & 7)))

    def age(self) -> None:
        """No block is fresh any more; spoiled ones stay so."""
        if not self._aged:
            self._aged = True
            self._fresh = bytearray(len(self._fresh))

    def is_used(self, block: int) -> bool:
        return block >> 3 < len(self._used) and bool(self._used[block >> 3] & (1 << (block & 7)))

    def is_backed(self, block: int) -> bool:
        return block >> 3 < len(self._backed) and bool(self._backed[block >> 3] & (1 << (block & 7)))

    def set_backed(self, first: int, count: int, backed: bool, step: int = 1) -> None:
        """Blocks first, first + step ...: whether the file system has space for them."""
        self._grow(first + count * step)
        for block in range(first, first + count * step, step):
            if backed:
                self._backed[block >> 3] |= 1 << (block & 7)
            else:
                self._backed[block >> 3] &= ~(1 << (block & 7)) & 0xFF

    def assume_backed(self, stripe: int, stripes: int, rows: int) -> int:
        """Take blocks row * stripes + stripe of the first `rows` rows for backed; how many free ones this added.

        `stripes` divides 8.
        """
        last = rows * stripes  # the first block beyond them
        size = min(len(self._used), (last + 7) // 8)
        ours = np.zeros(size * 8, dtype=np.uint8)
        ours[stripe:last:stripes] = 1
        used = np.frombuffer(self._used, dtype=np.uint8)[:size]
        backed = np.frombuffer(self._backed, dtype=np.uint8)[:size]
        new = np.packbits(ours, bitorder="little") & ~used & ~backed
        backed |= new
        return int.from_bytes(new.tobytes(), "little").bit_count()

    def take_free_runs(self, stripe: int, stripes: int, blocks_max: int) -> list[tuple[int, int]]:
        """Runs (row, count) of free, backed blocks row * stripes + stripe, at most blocks_max blocks in all.

        They count as not backed from here on: the caller gives their space back. `stripes` divides 8.
        """
        runs = self._take_runs(self._backed, stripe, stripes, blocks_max)
        if runs and self.spoiled_blocks:  # what has no space has no bytes either
            spoiled = np.frombuffer(self._spoiled, dtype=np.uint8)
            spoiled &= np.frombuffer(self._backed, dtype=np.uint8)
            self.spoiled_blocks = int.from_bytes(self._spoiled, "little").bit_count()
        return runs

    def take_spoiled_runs(self, stripe: int, stripes: int) -> list[tuple[int, int]]:
        """The same of spoiled blocks that are still free. They count as used until `put_back`."""
        runs = self._take_runs(self._spoiled, stripe, stripes, self.spoiled_blocks)
        for row, count in runs:
            self.spoiled_blocks -= count
            self._set_used(row, count, stripe, stripes, True)
        return runs

    def put_back(self, stripe: int, stripes: int, runs: list[tuple[int, int]]) -> None:
        """What `take_spoiled_runs` gave is free again."""
        for row, count in runs:
            self._set_used(row, count, stripe, stripes, False)

    def _set_used(self, row: int, count: int, stripe: int, stripes: int, used: bool) -> None:
        for block in range(row * stripes + stripe, (row + count) * stripes, stripes):
            if used:
                self._used[block >> 3] |= 1 << (block & 7)
            else:
                self._used[block >> 3] &= ~(1 << (block & 7)) & 0xFF

    def _take_runs(self, bitmap: bytearray, stripe: int, stripes: int, blocks_max: int) -> list[tuple[int, int]]:
        """Runs of free blocks that have a bit in `bitmap`, which they lose."""
        runs: list[tuple[int, int]] = []
        left = blocks_max
        if not left:
            return runs
        for start in range(0, len(self._used), _WINDOW_BYTES):
            used = np.frombuffer(self._used, dtype=np.uint8)[start : start + _WINDOW_BYTES]
            marked = np.frombuffer(bitmap, dtype=np.uint8)[start : start + _WINDOW_BYTES]
            bits = np.unpackbits(marked & ~used, bitorder="little").reshape(-1, stripes)
            rows = np.flatnonzero(bits[:, stripe])[:left]
            if not len(rows):
                continue
            breaks = np.flatnonzero(np.diff(rows) > 1) + 1
            for run in np.split(rows, breaks):
                runs.append((start * 8 // stripes + int(run[0]), len(run)))
            taken = np.zeros_like(bits)
            taken[rows, stripe] = 1
            marked &= ~np.packbits(taken.reshape(-1), bitorder="little")
            left -= len(rows)
            if left == 0:
                break
        return runs
