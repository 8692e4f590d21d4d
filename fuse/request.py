"""One request as an operation sees it. Each service thread has one and fills it anew for every request."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence

from fireflyfs.common.net.api import Memory, MemoryPool, Slice
from fireflyfs.fuse import protocol
from fireflyfs.fuse.protocol import IN_HEADER, IN_HEADER_BYTES
from fireflyfs.fuse.segments import Segment

# What an operation returns: the message after the header, in pieces; None for requests that get no reply.
Reply = bytes | Sequence[bytes | memoryview] | None


log = logging.getLogger(__name__)


def answer(fd: int, pieces: Sequence[bytes | memoryview]) -> bool:
    """Give the kernel an answer through the device that the request came from; whether it took it."""
    try:
        os.writev(fd, pieces)
    except OSError as exc:
        # ENOENT: the caller was killed meanwhile; ENODEV: unmounted meanwhile. The next read tells.
        if exc.errno not in (errno.ENOENT, errno.ENODEV):
            log.error("cannot answer the kernel: %s", exc)
        return False
    return True


class Later:
    """An answer that is given after the operation has returned, by any thread, once.

    The kernel takes it only through the device that the request came from, which this keeps open.
    """

    __slots__ = ("_fd", "_unique")

    def __init__(self, fd: int, unique: int) -> None:
        self._fd = os.dup(fd)
        self._unique = unique

    def answer(self, error: int = 0, data: memoryview | None = None) -> None:
        """Success, with data or without, or an errno."""
        pieces: list[bytes | memoryview] = [] if data is None else [data]
        try:
            answer(self._fd, [protocol.reply_header(self._unique, sum(map(len, pieces)), error), *pieces])
        finally:
            os.close(self._fd)


class Request:
    """Fields of fuse_in_header, and the message in `body`. `body` is valid until the reply is sent.

    `fd` is the device it came from. `segment` holds the whole request, `body` starts at `body_position` in it.
    `landing` is memory of the thread's own for what READ returns, valid until the next request. `after_reply` is run
    when the kernel has its answer: for notifications about pages that the kernel keeps locked until then.
    """

    __slots__ = (
        "after_reply",
        "body",
        "body_position",
        "fd",
        "gid",
        "landing",
        "landing_view",
        "length",
        "nodeid",
        "opcode",
        "pid",
        "segment",
        "uid",
        "unique",
    )

    def __init__(self, segment: Segment, landing: Memory, fd: int = -1) -> None:
        self.fd = fd
        self.opcode = 0
        self.unique = 0
        self.nodeid = 0
        self.uid = 0
        self.gid = 0
        self.pid = 0
        self.length = 0  # of all of it
        self.segment = segment
        self.body_position = 0
        self.body = memoryview(b"")
        self.landing = landing
        self.landing_view = landing.view
        self.after_reply: bytes | None = None

    def parse(self, room: memoryview, length: int, fd: int) -> None:
        """It is what `fd` has put at the beginning of `room`."""
        _, self.opcode, self.unique, self.nodeid, self.uid, self.gid, self.pid, _, _ = IN_HEADER.unpack_from(room)
        self.fd = fd
        self.length = length
        self.body = room[IN_HEADER_BYTES:length]

    def later(self) -> Later:
        """The operation returns None, and this is answered some time."""
        return Later(self.fd, self.unique)

    def renew_landing(self, pool: MemoryPool) -> None:
        """Other memory: a server that did not answer in time may still write to what was there."""
        landing = pool.allocate(len(self.landing_view))
        self.landing.close()
        self.landing, self.landing_view = landing, landing.view

    def landing_slice(self, length: int) -> Slice:
        return self.landing.slice(0, length)
