"""Inodes that are open here, handles, and what the kernel was told.

A node id is the inode's id, and ids are never used twice: so no table of looked-up inodes is kept, and FORGET only
drops what we remember about the kernel's caches. Memory is bounded by the handles that are open.
"""

from __future__ import annotations

import threading
from typing import Final, NamedTuple

from fireflyfs.client.inode_state import UNKNOWN_VERSION, Limit
from fireflyfs.client.striping import FileLayout
from fireflyfs.common.errors import Code, error
from fireflyfs.fuse.listing import Budget, Listing
from fireflyfs.fuse.protocol import Attributes
from fireflyfs.proto import meta_pb2 as m

TOLD_MAX: Final = 131_072
CHANGED_MAX: Final = 1024
DAY_NS: Final = 24 * 3600 * 10**9
BLOCK_BYTES: Final = 512  # the unit of st_blocks
IO_BLOCK_BYTES: Final = 128 * 1024  # what programs should read and write at once


class Stamp(NamedTuple):
    """Two equal stamps of an inode: its bytes have not changed between them. The mtime alone does not say so: programs
    may set it back."""

    mtime_ns: int
    length: int
    truncate_version: int
    ctime_ns: int


def stamp_of(inode: m.Inode) -> Stamp:
    return Stamp(inode.mtime_ns, inode.length, inode.truncate_version, inode.ctime_ns)


class LiveInode:
    """A file with open handles here. Fields are changed under `lock`.

    `inode` is what meta said last, `checked_s` when. `written_end` is the largest end written here that meta does not
    know (-1: none), `mtime_ns` the time of the last such write (0: none), `atime_ns` that of a read; `unsure`: a
    truncation elsewhere may have cut off some of these writes and not others, which only storage knows. `sessions` are
    what meta holds for us: one is there while we have unrecorded writes, or while the file is removed but open, or may
    be soon: `leaving` counts the requests under way that remove a name of it.
    """

    __slots__ = (
        "atime_ns",
        "checked_s",
        "created_here",
        "errors_seen",
        "file",
        "handles",
        "id",
        "inode",
        "leaving",
        "limit",
        "lock",
        "mtime_ns",
        "sessions",
        "unsure",
        "writers",
        "written_end",
    )

    def __init__(self, inode: m.Inode, now_s: float) -> None:
        self.id: int = inode.id
        self.lock = threading.RLock()
        self.inode = inode
        self.limit = Limit()
        self.file = FileLayout.of(inode.id, inode.layout)
        self.checked_s = now_s
        self.handles = 0
        self.writers = 0
        self.leaving = 0
        self.sessions: list[bytes] = []
        self.written_end = -1
        self.mtime_ns = 0
        self.unsure = False
        self.atime_ns = 0
        self.created_here = False
        self.errors_seen = 0  # of write-behind: what the length takes into account

    @property
    def length(self) -> int:
        """Bytes, as programs on this mount must see it."""
        return max(self.inode.length, self.written_end)

    def learn(self, inode: m.Inode, now_s: float) -> None:
        """What meta says now. A truncation elsewhere makes our unrecorded length void."""
        if inode.truncate_version > self.inode.truncate_version:
            self.written_end = -1
            self.unsure = self.mtime_ns != 0
        elif inode.truncate_version < self.inode.truncate_version or inode.length < self.inode.length:
            return  # an older answer that came late: without a truncation the length only grows
        self.inode = inode
        self.checked_s = now_s

    def atime_is_old(self, now_ns: int) -> bool:
        """Whether a read at `now_ns` says anything new by its time: as relatime of mount(8)."""
        atime_ns = max(self.inode.atime_ns, self.atime_ns)
        others_ns = max(self.inode.mtime_ns, self.inode.ctime_ns, self.mtime_ns)
        return atime_ns <= others_ns or now_ns - atime_ns >= DAY_NS

    def hint(self) -> m.LengthHint | None:
        """What to tell meta of the length: None when there is nothing to tell."""
        if self.unsure or (self.mtime_ns and self.written_end < 0):
            return m.LengthHint(length=max(0, self.written_end), truncate_version=UNKNOWN_VERSION)
        if self.written_end < 0:
            return None
        return m.LengthHint(length=self.written_end, truncate_version=self.inode.truncate_version)


class FileHandle:
    """One open(2) of a file. `errors_seen`: how many errors of write-behind it has told, or were there before it."""

    __slots__ = ("errors_seen", "fh", "flags", "live", "writes")

    def __init__(self, fh: int, live: LiveInode, flags: int, writes: bool) -> None:
        self.fh = fh
        self.live = live
        self.flags = flags
        self.writes = writes
        self.errors_seen = 0


class DirHandle:
    """One opendir(3). A position in the listing is 0 and 1 for `.` and `..`, then 2 + the entry's number."""

    __slots__ = ("fh", "listing", "lock", "nodeid")

    def __init__(self, fh: int, nodeid: int, budget: Budget) -> None:
        self.fh = fh
        self.nodeid = nodeid
        self.lock = threading.Lock()
        self.listing = Listing(nodeid, budget)


class Handles:
    """Numbers for what is open, bounded. Safe to use from several threads."""

    def __init__(self, handles_max: int) -> None:
        self._lock = threading.Lock()
        self._next = 1
        self._handles_max = handles_max
        self._files: dict[int, FileHandle] = {}
        self._dirs: dict[int, DirHandle] = {}
        self._listed = Budget()

    def __len__(self) -> int:
        return len(self._files) + len(self._dirs)

    def _number(self) -> int:
        if len(self) >= self._handles_max:
            raise error(Code.OVERLOADED, f"{self._handles_max} files are open on this mount")
        self._next += 1
        return self._next

    def add_file(self, live: LiveInode, flags: int, writes: bool) -> FileHandle:
        with self._lock:
            handle = FileHandle(self._number(), live, flags, writes)
            self._files[handle.fh] = handle
            return handle

    def add_dir(self, nodeid: int) -> DirHandle:
        with self._lock:
            handle = DirHandle(self._number(), nodeid, self._listed)
            self._dirs[handle.fh] = handle
            return handle

    def file(self, fh: int) -> FileHandle:
        try:
            return self._files[fh]
        except KeyError:
            raise error(Code.BAD_HANDLE, f"no open file {fh}") from None

    def file_or_none(self, fh: int) -> FileHandle | None:
        return self._files.get(fh)

    def dir(self, fh: int) -> DirHandle:
        try:
            return self._dirs[fh]
        except KeyError:
            raise error(Code.BAD_HANDLE, f"no open directory {fh}") from None

    def pop_file(self, fh: int) -> FileHandle | None:
        with self._lock:
            return self._files.pop(fh, None)

    def pop_dir(self, fh: int) -> None:
        with self._lock:
            handle = self._dirs.pop(fh, None)
        if handle is not None:
            with handle.lock:
                handle.listing.close()

    def open_files(self) -> list[FileHandle]:
        with self._lock:
            return list(self._files.values())


class ChangedDirectories:
    """Directories that were changed here a moment ago, as meta's answer to the change described them.

    The kernel forgets a directory's attributes with every name that it makes or removes in it, and asks for them
    before the next one: this spares asking meta again. Each answer is given once, within `valid_s` of the change.
    """

    def __init__(self, valid_s: float) -> None:
        self._valid_s = valid_s
        self._lock = threading.Lock()
        self._changed: dict[int, tuple[float, m.Inode]] = {}

    def learn(self, inode: m.Inode, now_s: float) -> None:
        """`inode` with id 0 says nothing. Of two answers the one with the later change counts."""
        if not inode.id:
            return
        with self._lock:
            known = self._changed.get(inode.id)
            if known is not None and known[1].ctime_ns > inode.ctime_ns:
                return
            if len(self._changed) >= CHANGED_MAX:
                self._changed.clear()
            self._changed[inode.id] = (now_s, inode)

    def take(self, nodeid: int, now_s: float) -> tuple[m.Inode, float] | None:
        """The attributes, and for how many seconds they may still be trusted."""
        if nodeid not in self._changed:
            return None
        with self._lock:
            since_s, inode = self._changed.pop(nodeid, (0.0, None))
        left_s = since_s + self._valid_s - now_s
        return (inode, left_s) if inode is not None and left_s > 0 else None

    def forget(self, nodeid: int) -> None:
        if nodeid in self._changed:
            with self._lock:
                self._changed.pop(nodeid, None)

    def clear(self) -> None:
        with self._lock:
            self._changed.clear()


class InodeTable:
    """Live inodes, and what the kernel's caches hold. Safe to use from several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._live: dict[int, LiveInode] = {}
        self._told: dict[int, Stamp] = {}  # the attributes that the kernel has
        self._cached: dict[int, Stamp] = {}  # the bytes that the kernel's page cache has

    def get(self, nodeid: int) -> LiveInode | None:
        return self._live.get(nodeid)

    def __len__(self) -> int:
        return len(self._live)

    def all(self) -> list[LiveInode]:
        with self.lock:
            return list(self._live.values())

    def enter(self, inode: m.Inode, now_s: float) -> LiveInode:
        """The live inode, with one handle more."""
        with self.lock:
            live = self._live.get(inode.id)
            if live is None:
                live = self._live[inode.id] = LiveInode(inode, now_s)
            live.handles += 1
            return live

    def hold(self, nodeid: int) -> LiveInode | None:
        """The same for one that may be live; the caller calls `leave` later."""
        with self.lock:
            live = self._live.get(nodeid)
            if live is not None:
                live.handles += 1
            return live

    def leave(self, live: LiveInode) -> bool:
        """One handle fewer. True: it was the last, and the inode is not live any more."""
        with self.lock:
            live.handles -= 1
            if live.handles:
                return False
            del self._live[live.id]
            return True

    def told(self, inode: m.Inode) -> None:
        """The kernel was given these attributes."""
        if len(self._told) >= TOLD_MAX:
            self._told.clear()  # costs an invalidation more at the next open of each
        self._told[inode.id] = stamp_of(inode)

    def kernel_attributes_differ(self, inode: m.Inode) -> bool:
        """In what programs go by when they read and write."""
        told = self._told.get(inode.id)
        return told is None or told[:3] != stamp_of(inode)[:3]

    def opened(self, inode: m.Inode) -> bool:
        """Whether the kernel's pages are still the file's bytes; from now on they are those of `inode`."""
        stamp = stamp_of(inode)
        if self._cached.get(inode.id) == stamp:
            return True
        if len(self._cached) >= TOLD_MAX:
            self._cached.clear()
        self._cached[inode.id] = stamp
        return False

    def may_have_pages(self, nodeid: int) -> bool:
        """Whether the kernel was given bytes of this file, these or older ones."""
        return nodeid in self._cached

    def pages_are(self, inode: m.Inode) -> None:
        self._cached[inode.id] = stamp_of(inode)

    def pages_stay(self, inode: m.Inode) -> None:
        """The inode was changed here, but not its bytes."""
        stamp = stamp_of(inode)
        cached = self._cached.get(inode.id)
        if cached is not None and cached[:3] == stamp[:3]:
            self._cached[inode.id] = stamp

    def pages_unknown(self, nodeid: int) -> None:
        self._cached.pop(nodeid, None)

    def forget(self, nodeid: int) -> None:
        self._told.pop(nodeid, None)
        self._cached.pop(nodeid, None)


def attributes_of(inode: m.Inode, live: LiveInode | None) -> Attributes:
    """As the kernel wants them, with what was written here and meta does not know yet."""
    length, atime_ns, mtime_ns, ctime_ns = inode.length, inode.atime_ns, inode.mtime_ns, inode.ctime_ns
    if live is not None and live.inode.truncate_version == inode.truncate_version:
        length = max(length, live.written_end)
        if live.mtime_ns:
            mtime_ns = max(mtime_ns, live.mtime_ns)
            ctime_ns = max(ctime_ns, live.mtime_ns)
        atime_ns = max(atime_ns, live.atime_ns)
    return Attributes(
        inode.id,
        length,
        -(-length // BLOCK_BYTES),
        atime_ns,
        mtime_ns,
        ctime_ns,
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.rdev,
        IO_BLOCK_BYTES,
    )
