"""Shared buffers through which plain memory travels over shm: one copy here instead of two in the kernel."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net.api import Call, Piece, Slice
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


class StagedCall:
    """A call whose longer plain pieces were replaced by slices of a staging buffer.

    Held by the caller and, once it is sent, by its connection until the server has answered or can reach it no more.
    """

    __slots__ = ("_landings", "_memory", "_pool", "_users", "call")

    def __init__(self, call: Call, memory: SharedMemory, pool: StagingPool) -> None:
        self._memory = memory
        self._pool = pool
        self._users = 1
        self._landings: list[tuple[int, memoryview, memoryview]] = []  # (index, in the buffer, the caller's)
        position = 0
        out, into = list(call.out), list(call.into)
        for index, piece in enumerate(out):
            if isinstance(piece, memoryview) and len(piece) >= STAGED_PIECE_BYTES_MIN:
                memory.view[position : position + len(piece)] = piece
                out[index] = Slice(memory, position, len(piece))
                position += len(piece)
        for index, piece in enumerate(into):
            if isinstance(piece, memoryview) and len(piece) >= STAGED_PIECE_BYTES_MIN:
                self._landings.append((index, memory.view[position : position + len(piece)], piece))
                into[index] = Slice(memory, position, len(piece))
                position += len(piece)
        self.call = replace(call, out=out, into=into)

    @classmethod
    def of(cls, call: Call, pool: StagingPool) -> StagedCall | None:
        """None: nothing is worth it, or there is no buffer to have."""
        need = _plain_bytes(call.out) + _plain_bytes(call.into)
        memory = pool.take(need) if need else None
        return cls(call, memory, pool) if memory is not None else None

    def land(self, pushed: Sequence[int]) -> None:
        """Copy what was pushed to where the caller wants it."""
        for index, landed, piece in self._landings:
            length = pushed[index] if index < len(pushed) else 0
            piece[:length] = landed[:length]

    def hold(self) -> None:
        self._users += 1

    def leave(self) -> None:
        self._users -= 1
        if not self._users:
            self._landings.clear()
            self._pool.give(self._memory)


def _plain_bytes(pieces: Sequence[Piece]) -> int:
    lengths = [len(piece) for piece in pieces if isinstance(piece, memoryview)]
    return sum(length for length in lengths if length >= STAGED_PIECE_BYTES_MIN)
