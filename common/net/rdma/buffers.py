"""Registered buffers of a server: what it reads from clients lands in them, what it writes to clients leaves from them.

No peer has any right in them. They are kept, because to register memory costs as much as to move it.
"""

from __future__ import annotations

import asyncio
import mmap
from collections import deque
from typing import Final

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net.rdma.verbs import Domain

REGISTERED_BYTES_MAX: Final = 512 * MiB
BUFFER_BYTES_MIN: Final = 4 * KiB
WAITING_MAX: Final = 4096


class RegisteredBuffer:
    """Counted: goes back to its pool when the request and every transfer are through with it."""

    __slots__ = ("_map", "_pool", "_region", "_users", "address", "lkey", "size", "view")

    def __init__(self, pool: RegisteredPool, size: int, domain: Domain) -> None:
        self._pool = pool
        self._users = 0
        self._map = mmap.mmap(-1, size)
        self.size = size
        self.view = memoryview(self._map)
        self._region = domain.register(self.view, remote=False)
        self.address = self._region.address
        self.lkey = self._region.lkey

    def hold(self) -> None:
        self._users += 1

    def drop(self) -> None:
        self._users -= 1
        if not self._users:
            self._pool.give(self)

    def close(self) -> None:
        self._region.close()


class RegisteredPool:
    """Hands out buffers in powers of two, within a bound on all that are registered. One thread (the loop's)."""

    def __init__(self, domain: Domain, bytes_max: int = REGISTERED_BYTES_MAX) -> None:
        self._domain = domain
        self._bytes_max = bytes_max
        self._bytes = 0
        self._free: dict[int, list[RegisteredBuffer]] = {}
        self._waiting: deque[tuple[int, asyncio.Future[RegisteredBuffer]]] = deque()

    @property
    def bytes(self) -> int:
        """Registered now, in use or kept."""
        return self._bytes

    def take(self, length: int) -> RegisteredBuffer:
        """Held once, with old bytes in it. Raises OVERLOADED at the bound or when memory cannot be locked."""
        size = _size(length)
        free = self._free.get(size)
        if free:
            buffer = free.pop()
        else:
            if self._bytes + size > self._bytes_max:
                self._let_go()
            if self._bytes + size > self._bytes_max:
                raise error(Code.OVERLOADED, f"registered buffers are at their bound of {self._bytes_max} bytes")
            try:
                buffer = RegisteredBuffer(self, size, self._domain)
            except OSError as exc:
                raise error(
                    Code.OVERLOADED, f"{size} bytes cannot be registered: {exc.strerror or exc}; see ulimit -l"
                ) from exc
            self._bytes += size
        buffer.hold()
        return buffer

    def take_at_once(self, length: int) -> RegisteredBuffer | None:
        """One that lies ready and that nobody waits for."""
        free = self._free.get(_size(length))
        if not free or self._waiting:
            return None
        buffer = free.pop()
        buffer.hold()
        return buffer

    async def take_in_turn(self, length: int, deadline_s: float) -> RegisteredBuffer:
        """`take`, or what others give back, until the loop's time is `deadline_s`. Raises OVERLOADED."""
        loop = asyncio.get_running_loop()
        left_s = deadline_s - loop.time()
        if not self._waiting:
            try:
                return self.take(length)
            except FfsError:
                if left_s <= 0:
                    raise
        if len(self._waiting) >= WAITING_MAX:
            raise error(Code.OVERLOADED, f"{WAITING_MAX} requests wait for registered buffers")
        given: asyncio.Future[RegisteredBuffer] = loop.create_future()
        self._waiting.append((length, given))
        try:
            async with asyncio.timeout(left_s):
                return await given
        except BaseException as exc:
            if given.done() and not given.cancelled():  # it came as we gave up
                given.result().drop()
            self._serve()  # those behind us may need less
            if isinstance(exc, TimeoutError):
                raise error(Code.OVERLOADED, f"no registered buffer of {length} bytes came free in time") from exc
            raise

    def give(self, buffer: RegisteredBuffer) -> None:
        self._free.setdefault(buffer.size, []).append(buffer)
        self._serve()

    def _serve(self) -> None:
        """Hand out what is free, in turn: who needs much is not passed by those who need little."""
        locked_out = []
        while self._waiting:
            length, given = self._waiting[0]
            if not given.done():  # or its request has given up
                if not self._fits(length):
                    break
                try:
                    given.set_result(self.take(length))
                except FfsError:  # so much cannot be locked, now or ever: it must not hold up the others
                    locked_out.append((length, given))
            self._waiting.popleft()
        self._waiting.extendleft(reversed(locked_out))

    def _fits(self, length: int) -> bool:
        """Whether the bound allows it, other sizes making way."""
        size = _size(length)
        idle = sum(size * len(buffers) for size, buffers in self._free.items())
        return bool(self._free.get(size)) or self._bytes - idle + size <= self._bytes_max

    def _let_go(self) -> None:
        """Other sizes make way."""
        for buffers in self._free.values():
            for buffer in buffers:
                self._bytes -= buffer.size
                buffer.close()
        self._free.clear()

    def close(self) -> None:
        """Buffers in use are closed with their last user's process; those kept, now."""
        self._let_go()


def _size(length: int) -> int:
    return max(BUFFER_BYTES_MIN, 1 << (length - 1).bit_length())
