"""Locks of chunks: a fixed number, shared by hash."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from fireflyfs.storage.engine.interface import ChunkKey, WouldBlock

LOCKS = 64


class ChunkLocks:
    """Who changes a chunk's records holds its lock."""

    def __init__(self) -> None:
        self._locks = [threading.Lock() for _ in range(LOCKS)]

    def of(self, key: ChunkKey) -> threading.Lock:
        return self._locks[hash(key) % LOCKS]

    @contextlib.contextmanager
    def holding(self, keys: list[ChunkKey], nowait: bool = False) -> Iterator[None]:
        """Hold the locks of all keys; with `nowait`, raises WouldBlock when another thread has one."""
        if len(keys) == 1:
            locks = [self.of(keys[0])]
        else:
            locks = [self._locks[index] for index in sorted({hash(key) % LOCKS for key in keys})]
        held = 0
        try:
            for lock in locks:
                if not lock.acquire(blocking=not nowait):
                    raise WouldBlock
                held += 1
            yield
        finally:
            for lock in locks[:held]:
                lock.release()
