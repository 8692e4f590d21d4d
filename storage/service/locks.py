"""Locks of single chunks, and the bound on work in flight. Both belong to one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fireflyfs.common.errors import Code, error
from fireflyfs.storage.engine.interface import ChunkKey

LOCKED_MAX = 65_536  # chunks locked at a time, waiters not counted
WAITERS_MAX = 65_536


class KeyLocks:
    """One fair lock for each chunk that is in use, and nothing for the others."""

    __slots__ = ("_held", "_waiters")

    def __init__(self) -> None:
        self._held: dict[ChunkKey, deque[asyncio.Future[None]]] = {}
        self._waiters = 0

    def held(self, key: ChunkKey) -> bool:
        """Whether an update of the chunk is under way: its newest version may be committed elsewhere."""
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, keys: Sequence[ChunkKey], timeout_s: float) -> _Hold:
        """Hold all of `keys`, which are sorted. Raises CHUNK_BUSY after `timeout_s`, OVERLOADED over the bound."""
        return _Hold(self, keys, timeout_s)

    async def take(self, keys: Sequence[ChunkKey], timeout_s: float) -> None:
        """All of them or, when it raises, none. See `hold`."""
        taken = 0
        try:
            for key in keys:
                if key in self._held:
                    await self._wait(key, timeout_s)
                else:
                    if len(self._held) >= LOCKED_MAX:
                        raise error(Code.OVERLOADED, f"{LOCKED_MAX} chunks are being updated")
                    self._held[key] = deque()
                taken += 1
        except BaseException:
            self.give(keys[:taken])
            raise

    def give(self, keys: Sequence[ChunkKey]) -> None:
        for key in keys:
            self._release(key)

    async def _wait(self, key: ChunkKey, timeout_s: float) -> None:
        if self._waiters >= WAITERS_MAX:
            raise error(Code.OVERLOADED, f"{WAITERS_MAX} updates wait for chunks")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held[key].append(turn)
        self._waiters += 1
        try:
            await asyncio.wait_for(turn, timeout_s)
        except TimeoutError:
            raise error(Code.CHUNK_BUSY, f"chunk {key.inode}.{key.chunk_index} is being updated") from None
        except asyncio.CancelledError:
            # The lock may have been handed over in the very moment of the cancellation.
            if turn.done() and not turn.cancelled():
                self._release(key)
            raise
        finally:
            self._waiters -= 1

    def _release(self, key: ChunkKey) -> None:
        waiters = self._held[key]
        while waiters:
            turn = waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._held[key]


class _Hold:
    """`KeyLocks.hold`; a class, because each request enters it and a generator costs three times as much."""

    __slots__ = ("_keys", "_locks", "_timeout_s")

    def __init__(self, locks: KeyLocks, keys: Sequence[ChunkKey], timeout_s: float) -> None:
        self._locks = locks
        self._keys = keys
        self._timeout_s = timeout_s

    async def __aenter__(self) -> None:
        await self._locks.take(self._keys, self._timeout_s)

    async def __aexit__(self, *_: object) -> None:
        self._locks.give(self._keys)


class Gate:
    """Requests and bytes in flight; what is over the bound is refused, not queued."""

    __slots__ = ("bytes", "bytes_max", "requests", "requests_max")

    def __init__(self, requests_max: int, bytes_max: int) -> None:
        self.requests_max = requests_max
        self.bytes_max = bytes_max
        self.requests = 0
        self.bytes = 0

    @contextmanager
    def enter(self, size: int) -> Iterator[None]:
        """Raises OVERLOADED. One request is let in whatever its size, so that none is refused for ever."""
        if self.requests >= self.requests_max or (self.requests and self.bytes + size > self.bytes_max):
            raise error(Code.OVERLOADED, f"{self.requests} updates with {self.bytes} bytes are in flight")
        self.requests += 1
        self.bytes += size
        try:
            yield
        finally:
            self.requests -= 1
            self.bytes -= size
