"""Memory that links reach directly, for reads that end up as `bytes`: one copy instead of two. Bounded."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import MiB
from fireflyfs.common.net.api import Memory, MemoryPool, Piece, Slice

BLOCK_BYTES = 4 * MiB
BLOCKS_MAX = 8

log = logging.getLogger(__name__)


class Unfilled:
    """A `bytes` object that is read into before anybody has it: no copy. `view` is its memory, zeros at first."""

    def __init__(self, length: int) -> None:
        # BytesIO lets nobody write into bytes that others share; these it alone has, and gives them away as they are.
        self._holder = io.BytesIO(bytes(length))
        self.view = self._holder.getbuffer()

    def filled(self) -> bytes:
        """The object; a copy where somebody still holds a part of `view`, who changes nothing by writing there."""
        self.view.release()
        return self._holder.getvalue()


class Scratch:
    """Blocks that are allocated when first needed. Safe to use from several threads."""

    def __init__(self, pool: MemoryPool, block_bytes: int = BLOCK_BYTES, blocks_max: int = BLOCKS_MAX) -> None:
        self._pool = pool
        self._block_bytes = block_bytes
        self._left = blocks_max
        self._free: list[Memory] = []
        self._all: list[Memory] = []
        self._lock = threading.Lock()

    def shares(self, length: int) -> bool:
        """Whether `take` has blocks as long as that."""
        return length <= self._block_bytes

    @contextmanager
    def take(self, length: int) -> Iterator[Piece]:
        """`length` bytes with old content, until the end of the block; private memory when none of ours is free."""
        memory = self._get() if length <= self._block_bytes else None
        if memory is None:
            # Not a bytearray, which would be filled with zeros first; and long ones get huge pages from numpy.
            yield np.empty(length, np.uint8).data
            return
        try:
            yield Slice(memory, 0, length)
        finally:
            self._put(memory)

    def _put(self, memory: Memory) -> None:
        if getattr(memory, "tainted", False):
            # A server that never answered may still write into it: nobody may read there again.
            with self._lock:
                self._all.remove(memory)
                self._left += 1
            memory.close()
            return
        with self._lock:
            self._free.append(memory)

    def _get(self) -> Memory | None:
        with self._lock:
            if self._free:
                return self._free.pop()
            if not self._left:
                return None
            self._left -= 1
        try:
            memory = self._pool.allocate(self._block_bytes)
        except (FfsError, OSError) as exc:  # out of descriptors, or of what may be shared: private memory will do
            log.debug("no memory to share with servers now: %s", exc)
            with self._lock:
                self._left += 1
            return None
        with self._lock:
            self._all.append(memory)
        return memory

    def close(self) -> None:
        """Give all blocks back; nobody may hold one."""
        with self._lock:
            blocks, self._all, self._free, self._left = self._all, [], [], 0
        for memory in blocks:
            memory.close()
