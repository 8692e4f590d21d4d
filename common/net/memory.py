"""Memory that links can reach: `PrivatePool` for tcp alone, `SharedPool` (sealed memfds) for shm as well."""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from typing import Final

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import REGION_BYTES_MAX, GiB
from fireflyfs.common.net.api import Slice

SHARED_POOL_BYTES_MAX: Final = 8 * GiB
# Not to shrink: a server that touches a page beyond the end would die of SIGBUS. Not to grow: nobody needs it.
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_region_numbers = itertools.count(1)


class PrivateMemory:
    """Anonymous memory of this process."""

    __slots__ = ("_view",)

    def __init__(self, length: int) -> None:
        self._view = memoryview(mmap.mmap(-1, max(length, 1)))[:length]

    @property
    def view(self) -> memoryview:
        return self._view

    def slice(self, offset: int, length: int) -> Slice:
        return checked_slice(self, len(self._view), offset, length)

    def close(self) -> None:
        """Nothing is registered anywhere: the memory goes when its last view goes."""


class PrivatePool:
    """Memory for links that copy or send: fits every link."""

    __slots__ = ()

    def allocate(self, length: int) -> PrivateMemory:
        return PrivateMemory(length)


class SharedMemory:
    """One sealed memfd, mapped here; a server on this host maps it too once a link has registered it.

    `tainted` is set when a request that names it ended without an answer (timeout, lost peer): the server may still
    write into it, so what is read there later may not be what was put there. Close such memory; do not use it again.
    """

    __slots__ = ("__weakref__", "_on_close", "_on_drop", "_view", "closed", "fd", "length", "region", "tainted")

    def __init__(self, length: int, on_close: Callable[[SharedMemory], None], on_drop: Callable[[int], None]) -> None:
        if not 0 < length <= REGION_BYTES_MAX:
            raise error(Code.TOO_LARGE, f"shared memory of {length} bytes; 1 to {REGION_BYTES_MAX} can be shared")
        self.length = length
        self.region = next(_region_numbers) & 0x7FFFFFFF  # never frame.INLINE
        self.fd = os.memfd_create("fireflyfs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.closed = False
        self.tainted = False
        try:
            os.ftruncate(self.fd, length)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
            self._view = memoryview(mmap.mmap(self.fd, length))
        except BaseException:
            os.close(self.fd)
            raise
        self._on_close = on_close
        self._on_drop = on_drop

    @property
    def view(self) -> memoryview:
        return self._view

    def slice(self, offset: int, length: int) -> Slice:
        return checked_slice(self, self.length, offset, length)

    def close(self) -> None:
        """Withdraw it from every connection. Views that still exist keep the pages of this process."""
        if self.closed:
            return
        self.closed = True
        self._on_close(self)
        os.close(self.fd)
        self._view = memoryview(b"")

    def __del__(self) -> None:
        # Dropped without `close`: no connection knows it (each keeps what it registered), so nobody has to be told.
        if not getattr(self, "closed", True) and hasattr(self, "_on_drop"):
            self.closed = True
            os.close(self.fd)
            self._on_drop(self.length)


class SharedPool:
    """Allocates sealed memfds, within a bound on their sum; safe to use from several threads."""

    def __init__(self, bytes_max: int = SHARED_POOL_BYTES_MAX) -> None:
        self._lock = threading.RLock()  # a collected memory comes back from anywhere, also from inside
        self._bytes_max = bytes_max
        self._bytes = 0
        self._listeners: weakref.WeakSet[WithdrawListener] = weakref.WeakSet()
        _pools.add(self)

    def allocate(self, length: int) -> SharedMemory:
        """Zero-filled. Raises TOO_LARGE, or OVERLOADED when the pool's bound is reached."""
        with self._lock:
            if self._bytes + length > self._bytes_max:
                raise error(Code.OVERLOADED, f"shared memory pool is at its bound of {self._bytes_max} bytes")
            self._bytes += length
        try:
            return SharedMemory(length, self._closed, self._dropped)
        except BaseException:
            with self._lock:
                self._bytes -= length
            raise

    def subscribe(self, listener: WithdrawListener) -> None:
        """`listener.memory_closed` is called for each memory that is closed."""
        with self._lock:
            self._listeners.add(listener)

    def _dropped(self, length: int) -> None:
        with self._lock:
            self._bytes -= length

    def _closed(self, memory: SharedMemory) -> None:
        with self._lock:
            self._bytes -= memory.length
            listeners = list(self._listeners)
        for listener in listeners:
            listener.memory_closed(memory)


_pools: weakref.WeakSet[SharedPool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool._lock = threading.RLock()  # a thread of the parent's may have held it


os.register_at_fork(after_in_child=_after_fork)


class WithdrawListener:
    """What a link is to the pools whose memory it registers."""

    def memory_closed(self, memory: SharedMemory) -> None:
        """Withdraw `memory` from every connection, at once or before its next use."""
        raise TypeError(f"{type(self).__name__} does not withdraw memory")


def checked_slice(memory: PrivateMemory | SharedMemory, size: int, offset: int, length: int) -> Slice:
    """A slice inside the memory. Raises INVALID for one that is not."""
    if offset < 0 or length < 0 or offset + length > size:
        raise error(Code.INVALID, f"slice [{offset}, {offset} + {length}) of {size} bytes")
    return Slice(memory, offset, length)
