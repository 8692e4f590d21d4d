"""What stands in `3fs-virt/iovs`: links that register regions and rings, each of one application. No I/O but opening.

An application is a process. What it has registered goes when it does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import stat
from dataclasses import dataclass
from typing import Final

from fireflyfs.client.usrbio import layout, names

LINKS_MAX: Final = 4096  # each keeps a descriptor open: never more than half of those that the process may have
LINKS_OF_USER_MAX: Final = 1024  # but root's: nobody shall use up all
RINGS_OF_APPLICATION_MAX: Final = 256  # each has threads in an agent
_MEMORY = re.compile(rb"/dev/shm/[^/\0]+\Z")


@dataclass(eq=False)
class Link:
    """`fd` is of the memory, owned by the table; `pid` is the application's."""

    number: int
    name: bytes
    target: bytes
    id: bytes
    ring: bool
    uid: int
    gid: int
    pid: int
    fd: int
    born_ns: int
    agent: object = None  # who serves the ring


def application_of(pid: int) -> int:
    """The process that a thread belongs to. OSError ESRCH where it cannot be seen from here."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Tgid:"):
                    return int(line[5:])
    except OSError:
        pass
    raise OSError(errno.ESRCH, f"process {pid} cannot be seen from the mount")


def open_memory(target: bytes, pid: int, uid: int, groups: list[int]) -> int:
    """A descriptor of the shared memory that `target` names where process `pid` is, which may be a container.

    OSError: EINVAL for anything but memory in /dev/shm, EACCES where the user may not read and write it.
    """
    if not _MEMORY.match(target) or target.endswith((b"/.", b"/..")):
        raise OSError(errno.EINVAL, f"{target!r} is no shared memory: /dev/shm/NAME is")
    try:
        found = os.open(b"/proc/%d/root%s" % (pid, target), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:  # a mount of an ordinary user, who sees what others have in the same place
        found = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        state = os.fstat(found)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, f"{target!r} is no memory")
        shift = 6 if uid == state.st_uid else 3 if state.st_gid in groups else 0
        if uid and state.st_mode >> shift & 0o6 != 0o6:
            raise OSError(errno.EACCES, f"user {uid} may not read and write {target!r}")
        return os.open(f"/proc/self/fd/{found}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(found)


class Links:
    """The table. Not safe to use from several threads: its owner has the lock."""

    def __init__(self) -> None:
        self._by_name: dict[bytes, Link] = {}
        self._by_number: dict[int, Link] = {}
        self._by_id: dict[bytes, Link] = {}
        self._next = 1
        self._links_max = min(LINKS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    def __len__(self) -> int:
        return len(self._by_name)

    def make(self, name: bytes, target: bytes, pid: int, uid: int, groups: list[int], now_ns: int) -> Link:
        """OSError as `names.parse` and `open_memory`; EEXIST, ENOSPC; EINVAL for memory that holds no ring."""
        parsed = names.parse(os.fsdecode(name))
        if name in self._by_name or parsed.id in self._by_id:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if len(self._by_name) >= self._links_max:
            raise OSError(errno.ENOSPC, f"{self._links_max} regions and rings are registered")
        if uid and sum(link.uid == uid for link in self._by_number.values()) >= LINKS_OF_USER_MAX:
            raise OSError(errno.ENOSPC, f"user {uid} has {LINKS_OF_USER_MAX} regions and rings")
        if parsed.ring and sum(link.ring for link in self.of(pid)) >= RINGS_OF_APPLICATION_MAX:
            raise OSError(errno.ENOSPC, f"process {pid} has {RINGS_OF_APPLICATION_MAX} rings")
        fd = open_memory(target, pid, uid, groups)
        try:
            size = os.fstat(fd).st_size
            if not size:
                raise OSError(errno.EINVAL, "memory of no bytes")
            if parsed.ring:
                layout.parse_header(os.pread(fd, layout.HEADER.size, 0), size)
        except BaseException:
            os.close(fd)
            raise
        gid = groups[0] if groups else 0
        link = Link(self._next, name, target, parsed.id, parsed.ring, uid, gid, pid, fd, now_ns)
        self._next += 1
        self._by_name[name] = link
        self._by_number[link.number] = link
        self._by_id[link.id] = link
        return link

    def remove(self, link: Link) -> None:
        del self._by_name[link.name], self._by_number[link.number], self._by_id[link.id]
        with contextlib.suppress(OSError):
            os.close(link.fd)

    def named(self, name: bytes) -> Link | None:
        return self._by_name.get(name)

    def numbered(self, number: int) -> Link | None:
        return self._by_number.get(number)

    def identified(self, id_: bytes) -> Link | None:
        return self._by_id.get(id_)

    def of(self, pid: int) -> list[Link]:
        return [link for link in self._by_number.values() if link.pid == pid]

    def all(self) -> list[Link]:
        return list(self._by_number.values())
