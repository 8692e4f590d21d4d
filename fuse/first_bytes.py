"""What a small file begins with, read while meta is asked to open it: most who open a small file read all of it.

The bytes are read after the open has begun, so they are as new as close-to-open promises. From then on they are kept as
the kernel keeps pages that it has read ahead: until they were read once, the file changes here, a lock or anything else
has the kernel drop pages, or attributes of that age would not be trusted any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from fireflyfs.client.striping import FileLayout
from fireflyfs.common.limits import KiB
from fireflyfs.common.net.api import MemoryPool, tainted
from fireflyfs.common.net.busy_poll import Worthwhile
from fireflyfs.fuse.backend import DataCalls
from fireflyfs.fuse.inodes import FileHandle, InodeTable, Stamp, stamp_of
from fireflyfs.fuse.request import Request
from fireflyfs.proto import meta_pb2 as m

FIRST_BYTES_MAX: Final = 64 * KiB  # of one file
KEPT_MAX: Final = 64  # files whose bytes wait to be read
KNOWN_MAX: Final = 1024  # files that might be opened next


class Early:
    """A read under way into the landing of an open's request. `inode` is what the file was like before."""

    def __init__(
        self, request: Request, pool: MemoryPool, inode: m.Inode, finish: Callable[[], bool], dropped: int
    ) -> None:
        self.inode = inode
        self.dropped = dropped
        self.data: bytes | None = None
        self._request = request
        self._pool = pool
        self._finish = finish

    def finish(self) -> None:
        """Wait for it. `data` stays None where it was of no use."""
        request, length = self._request, self.inode.length
        if self._finish():
            self.data = bytes(request.landing_view[:length])
        elif tainted(request.landing_slice(length)):
            request.renew_landing(self._pool)


class FirstBytes:
    """Safe to use from several threads. `valid_s`: how old bytes may get; 0: nothing is read."""

    def __init__(self, data: DataCalls, pool: MemoryPool, table: InodeTable, valid_s: float) -> None:
        self._data = data
        self._pool = pool
        self._table = table
        self._valid_s = valid_s
        self._lock = threading.Lock()
        self._known: dict[int, m.Inode] = {}
        self._kept: dict[int, tuple[bytes, Stamp, float]] = {}  # by file handle; the last is until when
        self._worthwhile = Worthwhile()
        self._dropped = 0

    def told(self, inode: m.Inode) -> None:
        """The kernel has been given these attributes: it may open the file next."""
        if 0 < inode.length <= FIRST_BYTES_MAX and inode.layout.chains and self._valid_s:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[inode.id] = inode

    def begin(self, request: Request) -> Early | None:
        """At the open of a file that is not open here, before meta is asked; None: nothing should be read."""
        inode = self._known.pop(request.nodeid, None)
        if inode is None or inode.length > inode.layout.chunk_size or self._table.pages_are_known(inode):
            return None
        if not self._worthwhile:
            return None
        dropped = self._dropped
        into = request.landing_slice(inode.length)
        finish = self._data.begin_first(FileLayout.of(inode.id, inode.layout), into)
        return Early(request, self._pool, inode, finish, dropped) if finish is not None else None

    def keep(self, handle: FileHandle, early: Early, now_s: float) -> None:
        """`handle` has been opened, and meta said what the file is like."""
        stamp = stamp_of(early.inode)
        with self._lock:
            if early.data is None or early.dropped != self._dropped or stamp != stamp_of(handle.live.inode):
                return
            if len(self._kept) >= KEPT_MAX:
                del self._kept[next(iter(self._kept))]
                self._worthwhile.note(False)
            self._kept[handle.fh] = (early.data, stamp, now_s + self._valid_s)

    def has(self, handle: FileHandle) -> bool:
        """Whether `take` should be asked before storage is."""
        return handle.fh in self._kept

    def take(self, handle: FileHandle, offset: int, size: int, now_s: float) -> memoryview | None:
        """Up to `size` bytes from `offset` on, as the file has them; None: storage must be asked."""
        kept = self._kept.get(handle.fh)
        if kept is None:
            return None
        data, stamp, until_s = kept
        live = handle.live
        if now_s >= until_s or live.mtime_ns or stamp_of(live.inode) != stamp:
            self.closed(handle)
            return None
        self._worthwhile.note(True)
        if offset + size >= len(data):
            with self._lock:
                self._kept.pop(handle.fh, None)
        return memoryview(data)[offset : offset + size]

    def closed(self, handle: FileHandle) -> None:
        """They were not read, or not all of them."""
        if handle.fh in self._kept:
            with self._lock:
                self._kept.pop(handle.fh, None)
            self._worthwhile.note(False)

    def drop(self) -> None:
        """The kernel is told to drop pages: so are we."""
        with self._lock:
            self._dropped += 1
            self._kept.clear()
