"""What the mount remembers of inodes that are not open here, so that meta need not be asked: bounded, and for a moment.

Safe to use from several threads: each call is one step on one dictionary, or under the lock.
"""

from __future__ import annotations

import threading
from enum import Enum
from typing import Final

from fireflyfs.proto import meta_pb2 as m

KNOWN_MAX: Final = 32_768
REMOVED_MAX: Final = 16_384

CAPABILITY_NAME: Final = b"security.capability"
ACL_NAME: Final = b"system.posix_acl_access"
DEFAULT_ACL_NAME: Final = b"system.posix_acl_default"
_XATTRS, _ACL, _DEFAULT_ACL, _CAPABILITY = 1, 2, 4, 8
_BIT: Final = {CAPABILITY_NAME: _CAPABILITY, ACL_NAME: _ACL, DEFAULT_ACL_NAME: _DEFAULT_ACL}


class Known(Enum):
    ABSENT = 0
    PRESENT = 1
    UNKNOWN = 2  # there are attributes, or nothing is known: ask


class XattrKnowledge:
    """Which extended attributes an inode has, from meta's last word, for `valid_s`.

    The kernel asks for security.capability before writes, and for ACLs before it lets anybody in: nearly always there
    is none.
    """

    def __init__(self, valid_s: float) -> None:
        self._valid_s = valid_s
        self._known: dict[int, tuple[float, int]] = {}

    def learn(self, inode: m.Inode, now_s: float) -> None:
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        bits = 0
        if inode.xattrs:
            bits = _XATTRS | (_CAPABILITY if inode.capability else 0)
        if inode.acl:
            bits |= _ACL
        if inode.default_acl:
            bits |= _DEFAULT_ACL
        self._known[inode.id] = (now_s + self._valid_s, bits)

    def forget(self, nodeid: int) -> None:
        self._known.pop(nodeid, None)

    def look(self, nodeid: int, name: bytes, now_s: float) -> Known:
        """Whether the inode has the attribute `name`; an empty name: whether it has any."""
        until_s, bits = self._known.get(nodeid, (0.0, 0))
        if now_s >= until_s:
            return Known.UNKNOWN
        if not name:
            return Known.UNKNOWN if bits else Known.ABSENT
        bit = _BIT.get(name)
        if bit is not None:
            return Known.PRESENT if bits & bit else Known.ABSENT
        return Known.UNKNOWN if bits & _XATTRS else Known.ABSENT


class RemovedInodes:
    """Inodes whose last name was removed here, as they were then: the kernel may hold them open without telling us
    (directories, special files, O_PATH), and meta does not know them any more. An entry goes when the kernel forgets
    the inode, or for a newer one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._removed: dict[int, m.Inode] = {}

    def __len__(self) -> int:
        return len(self._removed)

    def add(self, inode: m.Inode) -> None:
        with self._lock:
            if len(self._removed) >= REMOVED_MAX:
                del self._removed[next(iter(self._removed))]
            self._removed[inode.id] = inode

    def get(self, nodeid: int) -> m.Inode | None:
        return self._removed.get(nodeid)

    def forget(self, nodeid: int) -> None:
        if nodeid in self._removed:
            with self._lock:
                self._removed.pop(nodeid, None)
