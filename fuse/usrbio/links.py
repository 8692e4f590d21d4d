"""What stands in `3fs-virt/iovs`: links that register regions and rings, each of one application.

An application is a process. What it has registered goes when it does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from dataclasses import dataclass
from typing import Final

from fireflyfs.client.usrbio import layout, names

LINKS_MAX: Final = 4096  # each keeps a descriptor open: never more than half of those that the process may have
LINKS_OF_USER_MAX: Final = 1024  # but root's: nobody shall use up all
BYTES_MAX: Final = 64 << 40  # of regions, which an agent maps: half of its addresses, should it have all of them
BYTES_OF_USER_MAX: Final = 16 << 40  # but root's
BYTES_OF_APPLICATION_MAX: Final = 4 << 40
RINGS_OF_APPLICATION_MAX: Final = 256  # each has threads in an agent


@dataclass(eq=False)
class Link:
    """`fd` is of the memory, owned by the table, `nbytes` what it has when it is registered: what comes to it later is
    not used. `pid` is the application's."""

    number: int
    name: bytes
    target: bytes
    id: bytes
    ring: bool
    uid: int
    gid: int
    pid: int
    fd: int
    nbytes: int
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

    def check(self, name: bytes, pid: int, uid: int) -> names.LinkName:
        """What a new link would be. OSError as `names.parse`; EEXIST, ENOSPC."""
        parsed = names.parse(os.fsdecode(name))
        if name in self._by_name or parsed.id in self._by_id:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if len(self._by_name) >= self._links_max:
            raise OSError(errno.ENOSPC, f"{self._links_max} regions and rings are registered")
        if uid and sum(link.uid == uid for link in self._by_number.values()) >= LINKS_OF_USER_MAX:
            raise OSError(errno.ENOSPC, f"user {uid} has {LINKS_OF_USER_MAX} regions and rings")
        if parsed.ring and sum(link.ring for link in self.of(pid)) >= RINGS_OF_APPLICATION_MAX:
            raise OSError(errno.ENOSPC, f"process {pid} has {RINGS_OF_APPLICATION_MAX} rings")
        return parsed

    def add(self, name: bytes, target: bytes, fd: int, pid: int, uid: int, gid: int, now_ns: int) -> Link:
        """`fd` is the table's from now on, unless it raises: OSError as `check`, EINVAL for memory that holds no ring,
        ENOSPC where regions have too many bytes."""
        parsed = self.check(name, pid, uid)
        nbytes = os.fstat(fd).st_size
        if not nbytes:
            raise OSError(errno.EINVAL, "memory of no bytes")
        if parsed.ring:
            layout.parse_header(os.pread(fd, layout.HEADER.size, 0), nbytes)
        else:
            self._check_bytes(nbytes, pid, uid)
        link = Link(self._next, name, target, parsed.id, parsed.ring, uid, gid, pid, fd, nbytes, now_ns)
        self._next += 1
        self._by_name[name] = link
        self._by_number[link.number] = link
        self._by_id[link.id] = link
        return link

    def _check_bytes(self, nbytes: int, pid: int, uid: int) -> None:
        """Agents map regions as a whole, and memory in /dev/shm may have any length and no bytes."""
        regions = [link for link in self._by_number.values() if not link.ring]
        for whose, most, known in (
            (f"process {pid}", BYTES_OF_APPLICATION_MAX, [link for link in regions if link.pid == pid]),
            (f"user {uid}", BYTES_OF_USER_MAX if uid else BYTES_MAX, [link for link in regions if link.uid == uid]),
            ("this mount", BYTES_MAX, regions),
        ):
            if nbytes + sum(link.nbytes for link in known) > most:
                raise OSError(errno.ENOSPC, f"{nbytes} bytes more, and regions of {whose} have over {most} bytes")

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
