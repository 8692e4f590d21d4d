"""A blocking connection whose peer reads slowly, or not at all."""

from __future__ import annotations

import socket
import time

from fireflyfs.common.errors import Code
from fireflyfs.common.limits import DEADLINE_S_MAX
from fireflyfs.common.net import frame
from fireflyfs.common.net.api import Call, Slice
from fireflyfs.common.net.busy_poll import Waiters
from fireflyfs.common.net.dial import Dialed
from fireflyfs.common.net.exchange import Exchange, Pending
from fireflyfs.common.net.frame import LinkKind, Welcome
from fireflyfs.common.net.memory import SharedPool


def test_a_request_that_was_sent_in_part_ends_its_connection() -> None:
    """Memory of the next request is to be registered when the socket is full: what came after would be taken for the
    rest of the first one."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    welcome = Welcome(1, LinkKind.SHM, 16, 1 << 20)
    exchange = Exchange(Dialed(ours, welcome, "peer"), None, Waiters(0.0))
    memory = SharedPool().allocate(4096)
    try:
        now_s = time.monotonic()
        large = Pending(Call(1, bytes(200_000), deadline_s=0.2), now_s)
        names_memory = Pending(Call(1, b"", out=(Slice(memory, 0, 10),), deadline_s=0.2), now_s)
        exchange.send([large, names_memory])
        assert exchange.broken is not None
        assert exchange.broken.code is Code.TIMEOUT
        for pending in (large, names_memory):
            assert pending.outcome is exchange.broken
        assert ours.fileno() == -1
    finally:
        exchange.close()
        theirs.close()
        memory.close()


def test_a_deadline_beyond_all_bounds_is_the_longest_there_is() -> None:
    ours, theirs = socket.socketpair()
    exchange = Exchange(Dialed(ours, Welcome(1, LinkKind.TCP, 16, 1 << 20), "peer"), None, Waiters(0.0))
    try:
        pending = Pending(Call(1, b"", deadline_s=float("inf")), time.monotonic())
        exchange.send([pending])
        assert pending.outcome is None  # it is on its way
        assert frame.parse_header(memoryview(theirs.recv(4096))).deadline_ms == DEADLINE_S_MAX * 1000
    finally:
        exchange.close()
        theirs.close()
