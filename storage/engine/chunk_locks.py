"""Locks of chunks: a fixed number, shared by hash."""

from __future__ import annotations

import threading

from fireflyfs.storage.engine.interface import ChunkKey, WouldBlock

LOCKS = 64


class ChunkLocks:
    """Who changes a chunk's records holds its lock."""

    def __init__(self) -> None:
        self._locks = [threading.Lock() for _ in range(LOCKS)]

    def of(self, key: ChunkKey) -> threading.Lock:
        return self._locks[hash(key) % LOCKS]

    def holding(self, keys: list[ChunkKey], nowait: bool = False) -> _Holding:
        """Hold the locks of all keys; with `nowait`, raises WouldBlock when another thread has one."""
        if len(keys) == 1:
            return _Holding([self.of(keys[0])], nowait)
        return _Holding([self._locks[index] for index in sorted({hash(key) % LOCKS for key in keys})], nowait)


class _Holding:
    """`ChunkLocks.holding`; a class, because each update enters it twice and a generator costs three times as much."""

    __slots__ = ("_blocking", "_locks")

    def __init__(self, locks: list[threading.Lock], nowait: bool) -> None:
        self._locks = locks
        self._blocking = not nowait

    def __enter__(self) -> None:
        held = 0
        try:
            for lock in self._locks:
                if not lock.acquire(self._blocking):
                    raise WouldBlock
                held += 1
        except BaseException:
            for lock in self._locks[:held]:
                lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        for lock in self._locks:
            lock.release()
