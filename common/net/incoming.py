"""The receiving half of a blocking connection: heads into a buffer of ours, payload to where it belongs.

A receive ends at the earliest deadline of what is waited for; a short wait does not sleep (busy_poll.py).
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import KiB
from fireflyfs.common.net.busy_poll import TAKEN_S, Waiters, Worthwhile, yield_processor
from fireflyfs.common.net.dial import timeval
from fireflyfs.common.net.pending import Pending
from fireflyfs.common.net.rdma.client import ClientEnd
from fireflyfs.common.net.scatter import advance, fill

IOV_MAX: Final = 512
INPUT_BYTES: Final = 64 * KiB
SMALL_READ_BYTES: Final = 4 * KiB  # where payload follows: what is read here is copied once more
# Of an answer's payload: so much must be there before the kernel wakes us, and is received while the caches have it.
WAKE_BYTES: Final = 128 * KiB
DEADLINE_SLACK: Final = 0.1  # how far a socket's timeout may be from what is left, before it is set anew
# Of a batch, a server that hangs is waited for until its deadline, and the others' answers have come by then: they are
# taken after it, where they are there, and for no longer than this while they flow.
LATE_S: Final = 0.1
FLOWS_S: Final = 0.01
# As plain numbers: combining the enum's members costs microseconds each time.
_WAITALL: Final = int(socket.MSG_WAITALL)
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)


class Incoming:
    """Used by one thread at a time. `view[begin:]` is what has been received and not taken, from `need` on."""

    def __init__(self, sock: socket.socket, name: str, waiters: Waiters, waited_for: Mapping[int, Pending]) -> None:
        self.begin = 0
        self.earliest_s = 0.0  # nothing that is waited for has a deadline before this
        self._sock = sock
        self._receive: Callable[..., int] = sock.recv_into
        self._name = name
        self._waiters = waiters
        self._waited_for = waited_for
        self._worthwhile = Worthwhile()
        self._scratch = bytearray(INPUT_BYTES)
        self.view = memoryview(self._scratch)
        self._end = 0
        self._timeout_s = 0.0
        self._late_at_s = self._late_until_s = 0.0  # a deadline that has passed, and until when answers still count
        self._wakes_at = 1
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)
        # Who sleeps in recv on a Unix socket is woken also when the peer has taken what was sent, for nothing.
        self._polls = sock.family == socket.AF_UNIX
        self._how = _DONTWAIT if self._polls else 0

    def need(self, count: int, payload_bytes: int) -> None:
        """Have `count` bytes from `begin` on, where `payload_bytes` are to come in all answers that are waited for.

        Raises TIMEOUT, UNAVAILABLE or OSError.
        """
        if self._end - self.begin >= count:
            return
        if self.begin == self._end:
            self.begin = self._end = 0
        if self.begin + count > len(self._scratch):
            left = bytes(self.view[self.begin : self._end])
            if count > len(self._scratch):
                self._scratch = bytearray(count)
                self.view = memoryview(self._scratch)
            self.view[: len(left)] = left
            self.begin, self._end = 0, len(left)
        # Payload after the head goes to its place, so read little beyond the head where much of it is to come.
        room = len(self._scratch) if payload_bytes < INPUT_BYTES else self.begin + max(count, SMALL_READ_BYTES)
        waiters = self._waiters
        if self.begin == self._end and waiters.wait_s and waiters.alone and self._worthwhile:
            self._look_again(room)
        while self._end - self.begin < count:
            self._arm()
            if self._polls:
                self._poller.poll(self._timeout_s * 1000)
            try:
                got = self._receive(self.view[self._end : room], 0, self._how)
            except BlockingIOError:
                continue
            if not got:
                raise error(Code.UNAVAILABLE, f"{self._name} closed the connection")
            self._end += got

    def land(self, sinks: deque[memoryview], left: int) -> None:
        """Fill the sinks, `left` bytes in all: what was read with a head is copied, the rest is received in place."""
        taken = fill(sinks, self.view[self.begin : self._end])
        self.begin += taken
        left -= taken
        while sinks:
            self._arm()
            much = left >= WAKE_BYTES and not self._waiters.many_processors
            self._wake_at(WAKE_BYTES if much else 1)
            if much:
                self._poller.poll(self._timeout_s * 1000)
            how = _DONTWAIT if much else _WAITALL
            try:
                if len(sinks) == 1:
                    count = self._sock.recv_into(sinks[0], 0, how)
                else:
                    count = self._sock.recvmsg_into(list(itertools.islice(sinks, IOV_MAX)), 0, how)[0]
            except BlockingIOError:
                continue  # the deadline is checked by _arm
            if not count:
                raise error(Code.UNAVAILABLE, f"{self._name} closed the connection inside an answer")
            left -= count
            advance(sinks, count)
        self._wake_at(1)

    def _wake_at(self, count: int) -> None:
        """Have poll end when `count` bytes are there (or the kernel cannot hold more, or nothing more comes)."""
        if count != self._wakes_at:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._wakes_at = count

    def _look_again(self, room: int) -> None:
        """Receive without sleeping, if an answer comes soon."""
        view = self.view[self._end : room]
        receive, waiters = self._receive, self._waiters
        now_s = time.perf_counter()
        end_s = now_s + waiters.wait_s
        while now_s < end_s:
            if not waiters.alone:
                return
            try:
                got = receive(view, 0, _DONTWAIT)
            except BlockingIOError:
                yield_processor()
                before_s, now_s = now_s, time.perf_counter()
                if now_s - before_s > TAKEN_S:
                    self._worthwhile.give_up()
                    return
                continue
            self._end += got  # none: the connection is closed, as the next receive finds out
            self._worthwhile.note(True)
            return
        self._worthwhile.note(False)

    def _arm(self) -> None:
        """Let the next receive end at the earliest deadline. Raises TIMEOUT when it has passed."""
        left_s = self._left_s()
        if not left_s * (1 - DEADLINE_SLACK) <= self._timeout_s <= left_s * (1 + DEADLINE_SLACK):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(left_s))
            self._timeout_s = left_s

    def _left_s(self) -> float:
        """Until the earliest deadline. Raises TIMEOUT when it has passed and nothing has come."""
        now_s = time.monotonic()
        left_s = self.earliest_s - now_s
        if left_s <= 0:  # of a call that may have been answered meanwhile
            self.earliest_s = min([pending.deadline_s for pending in self._waited_for.values()], default=now_s + 1.0)
            left_s = self.earliest_s - now_s
            if left_s <= 0:
                return self._late_s(now_s)
        return left_s

    def _late_s(self, now_s: float) -> float:
        """How long an answer may still come that is there after its deadline. Raises TIMEOUT when none is."""
        flows = self._late_at_s == self.earliest_s
        if not flows:
            self._late_at_s, self._late_until_s = self.earliest_s, now_s + LATE_S
        if now_s >= self._late_until_s or not self._comes(FLOWS_S if flows else 0.0):
            raise error(Code.TIMEOUT, f"{self._name} did not answer in time")
        return max(self._late_until_s - time.monotonic(), 0.001)

    def _comes(self, within_s: float) -> bool:
        return bool(self._poller.poll(within_s * 1000))


class MessagesIncoming(Incoming):
    """The same where messages of an rdma connection carry the answers."""

    def __init__(
        self, sock: socket.socket, name: str, waiters: Waiters, waited_for: Mapping[int, Pending], end: ClientEnd
    ) -> None:
        super().__init__(sock, name, waiters, waited_for)
        self._rdma = end
        self._receive = end.messages.recv_into

    def _comes(self, within_s: float) -> bool:
        return self._rdma.messages.look() or (within_s > 0 and self._rdma.wait(self._sock, within_s))

    def _arm(self) -> None:
        """Have something to receive, or raise TIMEOUT at the earliest deadline."""
        left_s = self._left_s()
        if not self._rdma.messages.pending:
            self._rdma.wait(self._sock, left_s)

    def land(self, sinks: deque[memoryview], left: int) -> None:
        self.begin += fill(sinks, self.view[self.begin : self._end])
        while sinks:
            self._arm()
            with contextlib.suppress(BlockingIOError):
                advance(sinks, self._rdma.messages.recvmsg_into(sinks)[0])
