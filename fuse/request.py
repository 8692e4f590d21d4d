"""One request as an operation sees it. Each service thread has one and fills it anew for every request."""

from __future__ import annotations

from collections.abc import Sequence

from fireflyfs.common.net.api import Memory, Slice
from fireflyfs.fuse.segments import Segment

# What an operation returns: the message after the header, in pieces; None for requests that get no reply.
Reply = bytes | Sequence[bytes | memoryview] | None


class Request:
    """Fields of fuse_in_header, and the message in `body`. `body` is valid until the reply is sent.

    `segment` holds the whole request, `body` starts at `body_position` in it. `landing` is memory of the thread's
    own for what READ returns, valid until the next request. `after_reply` is run when the kernel has its answer: for
    notifications about pages that the kernel keeps locked until then.
    """

    __slots__ = (
        "after_reply",
        "body",
        "body_position",
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

    def __init__(self, segment: Segment, landing: Memory) -> None:
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

    def landing_slice(self, length: int) -> Slice:
        return self.landing.slice(0, length)
