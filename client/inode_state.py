"""What this client knows of inodes it has open: the length that others may not see yet, and what to tell meta.

All handles of one inode share one `InodeState`, so a program that writes through one handle reads it back through
another. The table is weak: a state lives as long as a handle does.
"""

from __future__ import annotations

import threading
import weakref

from fireflyfs.client.striping import FileLayout
from fireflyfs.common.limits import FILE_BYTES_MAX
from fireflyfs.proto import meta_pb2

UNKNOWN_VERSION = (1 << 64) - 1  # in a hint: no truncate version of a file is this one
LIMIT_TRUSTED_S = 30.0  # how long a writer believes what meta said of quotas: one may have been set since


class Limit:
    """How long a file may get under its quotas, as meta said last: `Inode.end_max` of proto/meta.proto."""

    __slots__ = ("_end_max", "_told_s")

    def __init__(self) -> None:
        self._end_max = 0
        self._told_s = float("-inf")

    def learn(self, inode: meta_pb2.Inode, now_s: float) -> None:
        """From an answer to Open for writing, Sync, SetAttr or Append; others say nothing of it."""
        self._end_max = inode.end_max if inode.HasField("end_max") else FILE_BYTES_MAX
        self._told_s = now_s

    def allows(self, end: int, now_s: float) -> bool:
        """Whether the file may grow to `end` without asking meta first."""
        return end <= self._end_max and not self.is_old(now_s)

    def is_old(self, now_s: float) -> bool:
        return now_s - self._told_s >= LIMIT_TRUSTED_S

    def trusted(self, now_s: float) -> tuple[int, float]:
        """(how long the file may get, for how many seconds from now that may be believed)."""
        return self._end_max, self._told_s + LIMIT_TRUSTED_S - now_s


class InodeState:
    """One open inode. Safe to use from several threads."""

    __slots__ = (
        "__weakref__",
        "_inode",
        "_lock",
        "_mtime_ns",
        "_torn",
        "_unsure",
        "_unsynced_end",
        "_written_end",
        "appending",
        "file",
        "limit",
    )

    def __init__(self, inode: meta_pb2.Inode) -> None:
        self.file = FileLayout.of(inode.id, inode.layout)
        self._lock = threading.Lock()
        self._inode = inode
        self.limit = Limit()
        self.appending = threading.Lock()  # from where bytes are placed until they count: meta keeps clients apart
        self._written_end = 0  # largest end written here since the truncate version that we know
        self._unsynced_end = -1  # the same since meta was told; -1: meta knows all
        self._mtime_ns = 0  # of the last write that meta does not know of; 0: none
        self._unsure = False  # meta does not know of all our writes, and which a truncation cut off only storage knows
        self._torn = False  # a write failed that meta does not know of, and what is stored of it only storage knows

    @property
    def inode(self) -> meta_pb2.Inode:
        """What meta said last. Not to be changed."""
        return self._inode

    @property
    def length(self) -> int:
        """Bytes of the file as this client must see it: what meta said, or more when we wrote more."""
        return max(self._inode.length, self._written_end)

    @property
    def dirty(self) -> bool:
        """Whether meta does not know of all our writes yet."""
        return self._mtime_ns != 0

    @property
    def unsure(self) -> bool:
        """Whether a truncation may or may not have cut off writes of ours: `length` is right again after a report."""
        return self._unsure

    @property
    def truncate_version(self) -> int:
        """The one that a write which begins now is made under."""
        return self._inode.truncate_version

    def learn(self, inode: meta_pb2.Inode) -> None:
        """Meta's newest answer. After a truncation, by whomever, what we wrote before says nothing about the length."""
        with self._lock:
            if inode.truncate_version < self._inode.truncate_version:
                return  # an answer that was overtaken
            if inode.truncate_version > self._inode.truncate_version:
                self._written_end = 0
                self._unsynced_end = -1
                self._unsure = self._mtime_ns != 0
            elif inode.length < self._inode.length:
                return  # for one truncate version the length only grows
            self._inode = inode

    def wrote(self, end: int, now_ns: int, truncate_version: int) -> None:
        """Bytes up to `end` are stored; `truncate_version` is ours from before they were sent."""
        with self._lock:
            self._mtime_ns = now_ns
            if truncate_version != self._inode.truncate_version:
                self._unsure = True
                return
            self._written_end = max(self._written_end, end)
            self._unsynced_end = max(self._unsynced_end, end)

    def torn(self, now_ns: int) -> None:
        """A write failed, any part of which may be stored: the next report has meta ask storage for the length."""
        with self._lock:
            self._mtime_ns = now_ns
            self._torn = True

    def report(self) -> tuple[meta_pb2.LengthHint | None, meta_pb2.Timestamp | None]:
        """What meta must be told: the length hint and the time of the last write; None where there is nothing."""
        with self._lock:
            hint = None
            if self._unsure or self._torn or (self._mtime_ns and self._unsynced_end < 0):
                # Written in part, or truncated since: only storage knows the length. No version matches this one.
                hint = meta_pb2.LengthHint(length=max(0, self._unsynced_end), truncate_version=UNKNOWN_VERSION)
            elif self._unsynced_end >= 0:
                hint = meta_pb2.LengthHint(length=self._unsynced_end, truncate_version=self._inode.truncate_version)
            return hint, meta_pb2.Timestamp(ns=self._mtime_ns) if self._mtime_ns else None

    def reported(
        self, hint: meta_pb2.LengthHint | None, mtime: meta_pb2.Timestamp | None, inode: meta_pb2.Inode
    ) -> None:
        """Meta took a report and answered with `inode`."""
        with self._lock:
            if hint is not None and self._unsynced_end == hint.length:
                self._unsynced_end = -1
            if mtime is not None and self._mtime_ns == mtime.ns:
                self._mtime_ns = 0
                self._unsynced_end = -1
                self._unsure = self._torn = False
        self.learn(inode)


class InodeTable:
    """States of all inodes that are open in this client."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: weakref.WeakValueDictionary[int, InodeState] = weakref.WeakValueDictionary()

    def learn(self, inode: meta_pb2.Inode) -> InodeState:
        """The state of an inode that was just opened, with what meta said of it."""
        with self._lock:
            state = self._states.get(inode.id)
            if state is None:
                state = self._states[inode.id] = InodeState(inode)
                return state
        state.learn(inode)
        return state

    def get(self, inode_id: int) -> InodeState | None:
        return self._states.get(inode_id)

    def length_of(self, inode: meta_pb2.Inode) -> int:
        """`inode.length`, or more where a handle of ours wrote more."""
        state = self._states.get(inode.id)
        if state is None or state.inode.truncate_version != inode.truncate_version:
            return inode.length
        return max(inode.length, state.length)
