"""Locks of single chunks, and the bound on work in flight. Both belong to one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from fireflyfs.common.errors import Code, error
from fireflyfs.storage.engine.interface import ChunkKey

LOCKED_MAX = 65_536  # chunks locked at a time, waiters not counted
WAITERS_MAX = 65_536


class KeyLocks:
    """One fair lock for each chunk that is in use, and nothing for the others."""

    __slots__ = ("_held", "_waiters")

    def __init__(self) -> None:
        self._held: dict[ChunkKey, deque[asyncio.Future[None]] | None] = {}  # None: nobody waits
        self._waiters = 0

    def held(self, key: ChunkKey) -> bool:
        """Whether an update of the chunk is under way: its newest version may be committed elsewhere."""
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, keys: Sequence[ChunkKey], timeout_s: float) -> _Hold:
        """Hold all of `keys`, which are sorted. Raises CHUNK_BUSY after `timeout_s`, OVERLOADED over the bound."""
        return _Hold(self, keys, timeout_s)

    def take_now(self, keys: Sequence[ChunkKey]) -> bool:
        """Take all of them if nobody holds one; else none."""
        held = self._held
        if len(held) + len(keys) > LOCKED_MAX:
            return False
        for key in keys:
            if key in held:
                return False
        for key in keys:
            held[key] = None
        return True

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
                    self._held[key] = None
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
        waiters = self._held[key]
        if waiters is None:
            waiters = self._held[key] = deque()
        waiters.append(turn)
        self._waiters += 1
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except (TimeoutError, asyncio.CancelledError) as exc:
            # The lock may have been handed over in this very moment.
            if turn.done() and not turn.cancelled():
                self._release(key)
            if isinstance(exc, TimeoutError):
                raise error(Code.CHUNK_BUSY, f"chunk {key.inode}.{key.chunk_index} is being updated") from None
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
        if not self._locks.take_now(self._keys):
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

    def enter(self, size: int) -> _Passage:
        """Entering raises OVERLOADED. One request is let in whatever its size, so that none is refused for ever."""
        return _Passage(self, size)


class _Passage:
    """`Gate.enter`; a class for the same reason as `_Hold`."""

    __slots__ = ("_gate", "_size")

    def __init__(self, gate: Gate, size: int) -> None:
        self._gate = gate
        self._size = size

    def __enter__(self) -> None:
        gate = self._gate
        if gate.requests >= gate.requests_max or (gate.requests and gate.bytes + self._size > gate.bytes_max):
            raise error(Code.OVERLOADED, f"{gate.requests} updates with {gate.bytes} bytes are in flight")
        gate.requests += 1
        gate.bytes += self._size

    def __exit__(self, *_: object) -> None:
        self._gate.requests -= 1
        self._gate.bytes -= self._size
