"""A small file's bytes, read while meta is asked to open it and given to the kernel with the answer.

Most who open a small file read all of it. The bytes are read after the open has begun, so they are as new as
close-to-open promises, and from then on they are pages like others: whatever has the kernel drop pages drops these.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from fireflyfs.client.striping import FileLayout
from fireflyfs.common.limits import KiB
from fireflyfs.common.net.api import MemoryPool, tainted
from fireflyfs.fuse import protocol
from fireflyfs.fuse.backend import DataCalls
from fireflyfs.fuse.change_log import ChangeLog
from fireflyfs.fuse.inodes import InodeTable, LiveInode, stamp_of
from fireflyfs.fuse.request import Request
from fireflyfs.proto import meta_pb2 as m

FIRST_BYTES_MAX: Final = 64 * KiB  # of one file
KNOWN_MAX: Final = 1024  # files that might be opened next

Store = Callable[[bytes, memoryview], bool]  # a notification and its data; whether the kernel took it


class Early:
    """A read under way into the landing of an open's request. `inode` is what the file was like before."""

    def __init__(
        self, request: Request, pool: MemoryPool, inode: m.Inode, finish: Callable[[], bool], mark: int, dropped: int
    ) -> None:
        self.inode = inode
        self.mark = mark
        self.dropped = dropped
        self.data: memoryview | None = None
        self._request = request
        self._pool = pool
        self._finish = finish

    def finish(self) -> None:
        """Wait for it. `data` is valid until the request is answered, and stays None where it was of no use."""
        request, length = self._request, self.inode.length
        if self._finish():
            self.data = request.landing_view[:length]
        elif tainted(request.landing_slice(length)):
            request.renew_landing(self._pool)


class FirstBytes:
    """Safe to use from several threads. `on`: whether anything is read early."""

    def __init__(
        self, data: DataCalls, pool: MemoryPool, table: InodeTable, changes: ChangeLog, store: Store, on: bool
    ) -> None:
        self._data = data
        self._pool = pool
        self._table = table
        self._changes = changes
        self._store = store
        self._on = on
        self._lock = threading.Lock()
        self._known: dict[int, m.Inode] = {}
        self._dropped = 0

    def told(self, inode: m.Inode) -> None:
        """The kernel has been given these attributes: it may open the file next."""
        if self._on and 0 < inode.length <= FIRST_BYTES_MAX and inode.layout.chains:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[inode.id] = inode

    def begin(self, request: Request) -> Early | None:
        """At the open of a file that is not open here, before meta is asked; None: nothing should be read."""
        inode = self._known.pop(request.nodeid, None)
        if inode is None or inode.length > inode.layout.chunk_size or self._table.may_have_pages(inode.id):
            return None
        mark, dropped = self._changes.mark(), self._dropped
        into = request.landing_slice(inode.length)
        finish = self._data.begin_first(FileLayout.of(inode.id, inode.layout), into)
        return Early(request, self._pool, inode, finish, mark, dropped) if finish is not None else None

    def give(self, early: Early, live: LiveInode, inode: m.Inode) -> bool:
        """Meta said what the file is like: whether the kernel has all of its bytes now, and may keep them.

        Called under `live.lock`. What the kernel may have from elsewhere is never written over.
        """
        data, table = early.data, self._table
        if data is None or stamp_of(early.inode) != stamp_of(inode) or table.kernel_attributes_differ(inode):
            return False
        if live.handles > 1 or table.may_have_pages(inode.id) or self._changes.since(inode.id, early.mark):
            return False
        with self._lock:  # so that who has pages dropped comes before this, and counts, or after it
            return early.dropped == self._dropped and self._store(protocol.encode_store(inode.id, len(data)), data)

    def drop(self) -> None:
        """Before the kernel is told to drop pages."""
        with self._lock:
            self._dropped += 1
