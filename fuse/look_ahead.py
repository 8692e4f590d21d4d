"""Names that will probably be looked up next, asked for many at a time.

The kernel looks every name up by itself, and again when its time is up; a program that goes through a directory by
names that it knows (git, rsync, a loader of samples) pays a round trip for each. After some look-ups in one directory
the next entries in name order are listed with their attributes, and each answers one look-up, for as long as the kernel
might have kept it. How many are listed grows while they are used, as with readahead of a file.

What was renamed here is known under its new name: the kernel keeps the old one's time, and asks again soon.

What this mount changes itself is taken out when meta has answered (`forget`, `forget_name`), also from an answer that
is on its way meanwhile (`change_log.py`); what is open here is never answered from here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import FfsError
from fireflyfs.fuse.backend import MetaCalls
from fireflyfs.fuse.change_log import ChangeLog
from fireflyfs.fuse.inodes import InodeTable
from fireflyfs.proto import meta_pb2 as m
from fireflyfs.proto.common_pb2 import Caller

MISSES: Final = 8  # look-ups that meta was asked for, until a page is
PAGE_MIN: Final = 64
PAGE_MAX: Final = 512
USED_PART: Final = 16  # pages grow while one of so many entries is used
ENTRIES_MAX: Final = 8192
DIRECTORIES_MAX: Final = 256

Name = tuple[int, bytes]  # directory, name


class Asked(NamedTuple):
    """When meta was asked: by the change log, and by the clock."""

    mark: int
    at_s: float


class _Directory:
    """What was looked up and listed in one directory since `since_s`."""

    __slots__ = ("after", "ends", "last", "listed", "misses", "page", "rising", "since_s", "used")

    def __init__(self, now_s: float) -> None:
        self.since_s = now_s
        self.misses = 0
        self.last = b""
        self.rising = 0  # misses in a row that came in name order
        self.page = PAGE_MIN
        self.listed = 0
        self.used = 0
        self.after = b""  # where the next page begins
        self.ends = 0  # times that the end of the directory was reached


class LookAhead:
    """Safe to use from several threads. `valid_s`: how long an entry may be told after it was asked for; 0: never."""

    def __init__(
        self,
        meta: MetaCalls,
        caller: Caller,
        table: InodeTable,
        changes: ChangeLog,
        clock: Clock,
        valid_s: float,
        listed: Callable[[Iterable[m.Inode]], None] = lambda _: None,
    ) -> None:
        self._changes = changes
        self._meta = meta
        self._caller = caller  # the kernel has checked that the directory may be searched
        self._table = table
        self._clock = clock
        self._valid_s = valid_s
        self._listed = listed
        self._lock = threading.Lock()
        self._entries: dict[Name, tuple[m.Inode, float]] = {}
        self._names: dict[int, Name] = {}  # by inode: of `_entries`
        self._directories: dict[int, _Directory] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, nodeid: int, name: bytes) -> tuple[m.Inode, float] | None:
        """The entry, and when it was asked for. It is given once."""
        found = self._entries.pop((nodeid, name), None)
        if found is None:
            return None
        inode, asked_s = found
        self._names.pop(inode.id, None)
        if self._clock.monotonic_s() >= asked_s + self._valid_s or self._table.get(inode.id) is not None:
            return None
        directory = self._directories.get(nodeid)
        if directory is not None:
            directory.used += 1
        return found

    def forget(self, inode_id: int) -> None:
        """The inode was changed here: after meta has said so."""
        self._changes.note(inode_id)
        self.drop(inode_id)

    def drop(self, inode_id: int) -> None:
        """The kernel has it from elsewhere."""
        name = self._names.pop(inode_id, None)
        if name is not None:
            self._entries.pop(name, None)

    def forget_name(self, nodeid: int, name: bytes) -> None:
        """The name was changed here."""
        self._changes.note((nodeid, name))
        found = self._entries.pop((nodeid, name), None)
        if found is not None:
            self._names.pop(found[0].id, None)

    def missed(self, nodeid: int, name: bytes) -> None:
        """Meta was asked for a name, and it is there. Perhaps others are asked for next."""
        if not self._valid_s:
            return
        now_s = self._clock.monotonic_s()
        directory = self._directories.get(nodeid)
        if directory is None or now_s - directory.since_s > self._valid_s:
            if len(self._directories) >= DIRECTORIES_MAX:
                self._directories.clear()
            directory = self._directories[nodeid] = _Directory(now_s)
        directory.misses += 1
        directory.rising = directory.rising + 1 if name > directory.last else 0
        directory.last = name
        if directory.misses % MISSES == 0 and directory.ends < 2:
            if directory.rising >= MISSES - 1 or not directory.after:
                directory.after = name
            self._fetch(nodeid, directory)

    def _fetch(self, nodeid: int, directory: _Directory) -> None:
        if directory.used * USED_PART >= directory.listed > 0:
            directory.page = min(directory.page * 2, PAGE_MAX)
        asked = self.asking()
        try:
            page = self._meta.list(
                m.ListRequest(
                    caller=self._caller,
                    at=m.PathAt(dir=nodeid),
                    after=directory.after,
                    limit=directory.page,
                    attributes=True,
                )
            )
        except FfsError:
            return  # whoever looks up is told what is wrong
        with self._lock:
            for entry in page.entries:
                name = (nodeid, entry.name)
                if not self._changes.since(name, asked.mark):
                    self._keep(name, entry.attributes, asked)
        self._listed(entry.attributes for entry in page.entries)
        directory.since_s = asked.at_s
        directory.listed += len(page.entries)
        if page.more and page.entries:
            directory.after = page.entries[-1].name
        else:
            directory.after = b""
            directory.ends += 1

    def asking(self) -> Asked:
        """Before a question whose answer may be kept."""
        return Asked(self._changes.mark(), self._clock.monotonic_s())

    def renamed(self, nodeid: int, name: bytes, inode: m.Inode, asked: Asked) -> None:
        """The inode was given this name here; called after `forget_name` of both names."""
        if self._valid_s:
            with self._lock:
                self.drop(inode.id)
                self._keep((nodeid, name), inode, asked)
        self._changes.note(inode.id)

    def _keep(self, name: Name, inode: m.Inode, asked: Asked) -> None:
        if self._changes.since(inode.id, asked.mark):
            return
        if not inode.id or (inode.nlink > 1 and not inode.mode & 0o040000) or self._table.get(inode.id) is not None:
            return
        if len(self._entries) >= ENTRIES_MAX:
            self._entries.clear()
            self._names.clear()
        self._entries[name] = (inode, asked.at_s)
        self._names[inode.id] = name
