"""One request as an operation sees it. Each service thread has one and fills it anew for every request."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence

from fireflyfs.common.net.api import Memory, MemoryPool, Slice
from fireflyfs.fuse import protocol
from fireflyfs.fuse.segments import Segment

# What an operation returns: the message after the header, in pieces; None for requests that get no reply.
Reply = bytes | Sequence[bytes | memoryview] | None


log = logging.getLogger(__name__)


class Later:
    """An answer that is given after the operation has returned, by any thread, once.

    The kernel takes it only through the device that the request came from, which this keeps open.
    """

    __slots__ = ("_fd", "_unique")

    def __init__(self, fd: int, unique: int) -> None:
        self._fd = os.dup(fd)
        self._unique = unique

    def answer(self, error: int = 0) -> None:
        """Success without a message, or an errno."""
        try:
            os.write(self._fd, protocol.reply_header(self._unique, 0, error))
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENODEV):
                log.error("cannot answer the kernel: %s", exc)
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
        self.segment = segment
        self.body_position = 0
        self.body = memoryview(b"")
        self.landing = landing
        self.landing_view = landing.view
        self.after_reply: bytes | None = None

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
