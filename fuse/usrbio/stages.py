"""Memory that bytes pass through between storage and applications' regions: sealed, so that storage servers take it.

A batch uses one pair of buffers: while storage fills or drains one, the other is copied. Pairs are few, and rings that
wait for one get it by priority, then by order.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from fireflyfs.common.limits import MiB
from fireflyfs.common.net.api import Piece
from fireflyfs.common.net.memory import SharedMemory, SharedPool

STAGE_BYTES: Final = 4 * MiB
PAIRS_MAX: Final = 8


class Pair:
    """Two buffers, and a thread that copies beside the one that talks to storage."""

    def __init__(self, pool: SharedPool) -> None:
        self._pool = pool
        self.buffers = [pool.allocate(STAGE_BYTES), pool.allocate(STAGE_BYTES)]
        self._length = 0
        self._slices: list[Piece] = []
        self.copier = ThreadPoolExecutor(1, thread_name_prefix="copy")

    def slices(self, length: int, count: int) -> list[Piece]:
        """`count` pieces of `length` bytes of the first buffer, one behind the other."""
        if length != self._length or count > len(self._slices):
            self._length = length
            self._slices = [self.buffers[0].slice(number * length, length) for number in range(count)]
        return self._slices[:count]

    def buffer(self, number: int) -> SharedMemory:
        """One of the two, for other bytes. Where a server may still write, whose request has failed, another one takes
        its place."""
        buffer = self.buffers[number]
        if buffer.tainted:
            self._length = 0
            self.buffers[number] = self._pool.allocate(STAGE_BYTES)
            buffer.close()
        return self.buffers[number]

    def renew(self) -> None:
        """Before another batch uses it."""
        for number in range(len(self.buffers)):
            self.buffer(number)

    def close(self) -> None:
        self.copier.shutdown()
        for buffer in self.buffers:
            buffer.close()


class Stages:
    """Safe to use from several threads."""

    def __init__(self, pool: SharedPool, pairs_max: int = PAIRS_MAX) -> None:
        self._pool = pool
        self._left = pairs_max
        self._free: list[Pair] = []
        self._waiting: list[tuple[int, int]] = []  # heap of (priority, turn)
        self._turns = itertools.count()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, priority: int = 0) -> Iterator[Pair]:
        """A pair, with old bytes in it. Waits for one; -1 comes before 0, and 0 before 1. Raises as the pool does."""
        with self._changed:
            mine = (priority, next(self._turns))
            heapq.heappush(self._waiting, mine)
            while self._waiting[0] != mine or not (self._free or self._left):
                self._changed.wait()
            heapq.heappop(self._waiting)
            pair = self._free.pop() if self._free else None
            if pair is None:
                self._left -= 1
            self._changed.notify_all()
        try:
            if pair is None:
                pair = Pair(self._pool)
            yield pair
            pair.renew()
        except BaseException:
            with self._changed:
                self._left += 1
                self._changed.notify_all()
            if pair is not None:
                pair.close()
            raise
        with self._changed:
            self._free.append(pair)
            self._changed.notify_all()

    def close(self) -> None:
        """Of pairs that nobody uses."""
        with self._changed:
            free, self._free = self._free, []
        for pair in free:
            pair.close()
