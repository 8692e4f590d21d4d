"""A small file's bytes, read while meta is asked to open it or shortly before, and given to the kernel with the answer.

Most who open a small file read all of it, and who opens several in some order goes on: then those that follow are read
in the same request. The bytes were read after somebody was told what the file is like, and meta says at the open that
it still is like that: so they are as new as close-to-open promises. From then on they are pages like others, and
whatever has the kernel drop pages drops them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final

from fireflyfs.client.storage_client import ReadSpan
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import FfsError
from fireflyfs.common.limits import KiB
from fireflyfs.common.net.api import MemoryPool, tainted
from fireflyfs.common.net.pending import view_of
from fireflyfs.fuse import protocol
from fireflyfs.fuse.backend import DataCalls
from fireflyfs.fuse.change_log import ChangeLog
from fireflyfs.fuse.in_turn import InTurn
from fireflyfs.fuse.inodes import InodeTable, LiveInode, stamp_of
from fireflyfs.fuse.request import Request
from fireflyfs.proto import meta_pb2 as m

FIRST_BYTES_MAX: Final = 64 * KiB  # of one file
KNOWN_MAX: Final = 8192  # files that might be opened next
KEPT_MAX: Final = 64  # files that are read and not opened yet
TOGETHER_MIN: Final = 2  # files of one request: as many as are used
TOGETHER_MAX: Final = 16

Store = Callable[[bytes, memoryview | bytes], bool]  # a notification and its data; whether the kernel took it


class Early:
    """What a file holds that was like `inode` says. `mark` and `dropped` tell what has changed since it was read."""

    def __init__(self, inode: m.Inode, mark: int, dropped: int, data: bytes | memoryview | None) -> None:
        self.inode = inode
        self.mark = mark
        self.dropped = dropped
        self.data = data

    def finish(self) -> None:
        """Wait for it. `data` is valid until the open is answered, and stays None where it cannot be had."""


class _UnderWay(Early):
    """A read into the landing of the open's request."""

    def __init__(
        self, inode: m.Inode, mark: int, dropped: int, request: Request, pool: MemoryPool, finish: Callable[[], bool]
    ) -> None:
        super().__init__(inode, mark, dropped, None)
        self._request = request
        self._pool = pool
        self._finish = finish

    def finish(self) -> None:
        request, length = self._request, self.inode.length
        if self._finish():
            self.data = request.landing_view[:length]
        elif tainted(request.landing_slice(length)):
            request.renew_landing(self._pool)


def _is_small(inode: m.Inode) -> bool:
    return 0 < inode.length <= FIRST_BYTES_MAX and bool(inode.layout.chains)


class FirstBytes:
    """Safe to use from several threads. `valid_s`: how long before its open a file may be read; 0: nothing is read."""

    def __init__(
        self,
        data: DataCalls,
        pool: MemoryPool,
        table: InodeTable,
        changes: ChangeLog,
        clock: Clock,
        store: Store,
        valid_s: float,
    ) -> None:
        self._data = data
        self._pool = pool
        self._table = table
        self._changes = changes
        self._clock = clock
        self._store = store
        self._valid_s = valid_s
        self._lock = threading.Lock()  # of the books; never held while the kernel is told something
        self._giving = threading.Lock()  # taken before it
        self._known: dict[int, m.Inode] = {}
        self._turn = InTurn()
        self._kept: dict[int, tuple[Early, float]] = {}  # by inode; the last is until when
        self._dropped = 0
        self._together = TOGETHER_MIN
        self._ahead = self._used = 0  # of the last request: files that nobody had opened yet, and has since

    def told(self, inode: m.Inode) -> None:
        """The kernel has been given these attributes: it may open the file next."""
        if _is_small(inode):
            self.listed((inode,))

    def listed(self, inodes: Iterable[m.Inode]) -> None:
        """These are what follows, in this order."""
        if self._valid_s:
            with self._lock:
                for inode in inodes:
                    if _is_small(inode):
                        self._know(inode)

    def _know(self, inode: m.Inode) -> None:
        if len(self._turn) >= KNOWN_MAX:
            self._known.clear()
            self._turn = InTurn()
        self._known[inode.id] = inode
        self._turn.add(inode.id)

    def begin(self, request: Request) -> Early | None:
        """At the open of a file that is not open here, before meta is asked; None: nothing should be read."""
        with self._lock:
            inode = self._known.pop(request.nodeid, None)
            following = self._turn.opened(request.nodeid, self._together - 1)
            kept, until_s = self._kept.pop(request.nodeid, (None, 0.0))
            if kept is not None:
                self._used += 1
                if self._clock.monotonic_s() < until_s and kept.dropped == self._dropped:
                    return kept
            if inode is None or not self._may_be_read(inode):
                return None
            mark, dropped = self._changes.mark(), self._dropped
            together = [inode, *self._follow(following, len(request.landing_view) - inode.length)]
        if len(together) > 1:
            return self._read(request, together, mark, dropped)
        into = request.landing_slice(inode.length)
        finish = self._data.begin_first(FileLayout.of(inode.id, inode.layout), into)
        return _UnderWay(inode, mark, dropped, request, self._pool, finish) if finish is not None else None

    def _may_be_read(self, inode: m.Inode) -> bool:
        table = self._table
        return (
            inode.length <= inode.layout.chunk_size
            and not table.may_have_pages(inode.id)
            and table.get(inode.id) is None
        )

    def _follow(self, following: list[int], room: int) -> list[m.Inode]:
        """Which of them are to be read, too."""
        if not following:
            return []
        self._together = max(TOGETHER_MIN, self._together // 2) if self._used * 2 < self._ahead else self._together * 2
        self._together = min(self._together, TOGETHER_MAX)
        found: list[m.Inode] = []
        for each in following:
            inode = self._known.get(each)
            if inode is not None and each not in self._kept and self._may_be_read(inode) and inode.length <= room:
                room -= inode.length
                found.append(inode)
        self._ahead, self._used = len(found), 0
        return found

    def _read(self, request: Request, inodes: list[m.Inode], mark: int, dropped: int) -> Early | None:
        """All in one request; the first is the one that is opened."""
        until_s = self._clock.monotonic_s() + self._valid_s
        spans: list[ReadSpan] = []
        end = 0
        for inode in inodes:
            into = request.landing.slice(end, inode.length)
            spans.append(ReadSpan(FileLayout.of(inode.id, inode.layout), 0, into))
            end += inode.length
        try:
            left = self._data.read_once(spans)
        except FfsError:
            left = range(len(spans))
        if tainted(request.landing_slice(end)):
            request.renew_landing(self._pool)
            return None
        with self._lock:
            for place, (inode, span) in enumerate(zip(inodes, spans, strict=True)):
                if place and place not in left:
                    self._kept[inode.id] = Early(inode, mark, dropped, bytes(view_of(span.into))), until_s
            while len(self._kept) > KEPT_MAX:
                del self._kept[next(iter(self._kept))]
        return Early(inodes[0], mark, dropped, request.landing_view[: inodes[0].length]) if 0 not in left else None

    def give(self, early: Early, live: LiveInode, inode: m.Inode) -> bool:
        """Meta said what the file is like: whether the kernel has all of its bytes now, and may keep them.

        Called under `live.lock`. What the kernel may have from elsewhere is never written over.
        """
        data, table = early.data, self._table
        if data is None or stamp_of(early.inode) != stamp_of(inode) or table.kernel_attributes_differ(inode):
            return False
        if live.handles > 1 or table.may_have_pages(inode.id) or self._changes.since(inode.id, early.mark):
            return False
        with self._giving:  # so that who has pages dropped comes before this, and counts, or after it
            return early.dropped == self._dropped and self._store(protocol.encode_store(inode.id, len(data)), data)

    def drop(self) -> None:
        """Before the kernel is told to drop pages."""
        with self._giving, self._lock:
            self._dropped += 1
            self._kept.clear()
