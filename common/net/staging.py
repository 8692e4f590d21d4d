"""Shared buffers through which plain memory travels over shm: one copy here instead of two in the kernel."""

from __future__ import annotations

import threading
from typing import Final

from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net.memory import SharedMemory, SharedPool

STAGING_BYTES_MAX: Final = 256 * MiB
STAGING_BUFFER_BYTES_MAX: Final = 64 * MiB
STAGING_BUFFER_BYTES_MIN: Final = 256 * KiB
STAGED_PIECE_BYTES_MIN: Final = 32 * KiB  # shorter pieces travel on the socket


class StagingPool:
    """Hands out shared buffers in powers of two. Never waits: when the bound is reached, the socket is the way."""

    def __init__(self, pool: SharedPool, bytes_max: int = STAGING_BYTES_MAX) -> None:
        self._pool = pool
        self._bytes_max = bytes_max
        self._bytes = 0
        self._lock = threading.Lock()
        self._free: dict[int, list[SharedMemory]] = {}

    def take(self, length: int) -> SharedMemory | None:
        """A buffer of `length` bytes or more, with old bytes in it; None when there is none to have."""
        if length > STAGING_BUFFER_BYTES_MAX:
            return None
        size = max(STAGING_BUFFER_BYTES_MIN, 1 << (length - 1).bit_length())
        with self._lock:
            free = self._free.get(size)
            if free:
                return free.pop()
            if self._bytes + size > self._bytes_max:
                idle = [memory for sizes in self._free.values() for memory in sizes]
                self._free.clear()
                self._bytes -= sum(memory.length for memory in idle)
            else:
                idle = []
            fits = self._bytes + size <= self._bytes_max
            if fits:
                self._bytes += size
        for memory in idle:  # other sizes gave way
            memory.close()
        if not fits:
            return None
        try:
            return self._pool.allocate(size)
        except (FfsError, OSError):
            with self._lock:
                self._bytes -= size
            return None

    def give(self, memory: SharedMemory) -> None:
        """Take back a buffer; one that a server may still write into is closed instead."""
        with self._lock:
            if not memory.tainted:
                self._free.setdefault(memory.length, []).append(memory)
                return
            self._bytes -= memory.length
        memory.close()

    def close(self) -> None:
        with self._lock:
            idle = [memory for sizes in self._free.values() for memory in sizes]
            self._free.clear()
            self._bytes -= sum(memory.length for memory in idle)
        for memory in idle:
            memory.close()
