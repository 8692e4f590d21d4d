"""Frames of one connection as a byte stream over SEND and RECV; looks like a non-blocking socket to who moves frames.

A message is 8 bytes of header (wire.py) and a part of the stream. It is copied into a registered buffer and sent from
there; what is received is copied to where it belongs, and its buffer posted again.
"""

from __future__ import annotations

import asyncio
import functools
import mmap
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from fireflyfs.common.errors import FfsError
from fireflyfs.common.net.frame import Buffer
from fireflyfs.common.net.rdma.credits import RECEIVE_BYTES, WINDOW, Credits
from fireflyfs.common.net.rdma.plan import Verb, Work
from fireflyfs.common.net.rdma.receiving import Receives
from fireflyfs.common.net.rdma.sending import Operation
from fireflyfs.common.net.rdma.verbs import Domain
from fireflyfs.common.net.rdma.wire import MESSAGE_HEADER, MESSAGE_HEADER_BYTES, parse_message

SIGNAL_EVERY: Final = WINDOW // 4  # messages: of those that are sent from, so few may wait for a completion


class SendBuffers:
    """Registered buffers that one connection sends from."""

    def __init__(self, domain: Domain) -> None:
        """Raises OSError."""
        self.view = memoryview(mmap.mmap(-1, WINDOW * RECEIVE_BYTES))
        self._region = domain.register(self.view, remote=False)
        self.address = self._region.address
        self.lkey = self._region.lkey
        self.free = list(range(WINDOW))

    def close(self) -> None:
        self._region.close()


class Messages:
    """One connection's. `submit` posts work requests, `reap` takes what has completed, where nobody else does.

    Messages are taken in two steps, because a callback may end any connection: `arrived` only keeps them, `settle`
    calls those who wait.
    """

    def __init__(
        self,
        credits: Credits,
        message_bytes_max: int,
        buffers: SendBuffers,
        receives: Receives,
        submit: Callable[[Sequence[Operation]], object],
    ) -> None:
        self.failed: FfsError | None = None  # what ended the connection
        self.reap: Callable[[], int] | None = None
        self._credits = credits
        self._message_bytes = min(message_bytes_max, RECEIVE_BYTES)
        self._buffers = buffers
        self._receives = receives
        self._submit = submit
        self._unsignalled = 0
        self._inbox: deque[tuple[int, memoryview]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readable: Callable[[], None] | None = None
        self._writable: Callable[[], None] | None = None

    @property
    def pending(self) -> bool:
        """Whether something can be received."""
        return bool(self._inbox)

    def take(self) -> int:
        """Take what has completed, where nobody else does; returns how much."""
        count = self.reap() if self.reap is not None else 0
        if count:
            self._tell()  # there may be a buffer or a credit for it again
        return count

    def look(self) -> bool:
        """Whether something can be received, after taking what has come."""
        if not self._inbox:
            self.take()
        return bool(self._inbox)

    # Sending

    @property
    def _ready(self) -> bool:
        return bool(self._buffers.free) and self._credits.room > 0

    def send(self, data: Buffer, _flags: int = 0) -> int:
        """What `sendmsg` does with one piece; most answers are one, and shorter than a message."""
        length = len(data)
        if not 0 < length <= self._message_bytes - MESSAGE_HEADER_BYTES or not self._ready or self.failed is not None:
            return self.sendmsg((data,))
        number = self._buffers.free.pop()
        at = number * RECEIVE_BYTES + MESSAGE_HEADER_BYTES
        self._buffers.view[at : at + length] = data
        self._submit((self._message(number, MESSAGE_HEADER_BYTES + length),))
        self._check()
        return length

    def sendmsg(self, pieces: Sequence[Buffer], _ancillary: object = (), _flags: int = 0) -> int:
        """Bytes that were taken. Raises BlockingIOError for none, or what ended the connection."""
        self._check()
        if not self._ready and self.take():
            self._check()
        rest = deque(memoryview(piece) for piece in pieces if len(piece))
        view, operations, total = self._buffers.view, [], 0
        while rest and self._ready:
            number = self._buffers.free.pop()
            begin = number * RECEIVE_BYTES
            at, end = begin + MESSAGE_HEADER_BYTES, begin + self._message_bytes
            while rest and at < end:
                piece = rest[0][: end - at]
                view[at : at + len(piece)] = piece
                at += len(piece)
                if len(piece) == len(rest[0]):
                    rest.popleft()
                else:
                    rest[0] = rest[0][len(piece) :]
            operations.append(self._message(number, at - begin))
            total += at - begin - MESSAGE_HEADER_BYTES
        if not operations:
            raise BlockingIOError
        self._submit(operations)
        self._check()
        return total

    def _message(self, number: int, length: int) -> Operation:
        begin = number * RECEIVE_BYTES
        MESSAGE_HEADER.pack_into(self._buffers.view, begin, self._credits.sends(), length - MESSAGE_HEADER_BYTES)
        self._unsignalled = (self._unsignalled + 1) % SIGNAL_EVERY
        local = (self._buffers.address + begin, length, self._buffers.lkey)
        finish = functools.partial(self._sent, number)
        return Operation([Work(Verb.SEND, 0, 0, length, (local,))], finish, signalled=not self._unsignalled)

    def _sent(self, number: int, _exc: FfsError | None) -> None:
        self._buffers.free.append(number)

    def _tell(self) -> None:
        """Say what the peer may send, where it may soon run out and no frame says so."""
        if self._credits.due and self._buffers.free and self.failed is None:
            self._submit([self._message(self._buffers.free.pop(), MESSAGE_HEADER_BYTES)])

    # Receiving

    def arrived(self, number: int, length: int) -> None:
        """A message of `length` bytes lies in receive buffer `number`. Raises PROTOCOL: the buffer is the caller's."""
        view = self._receives.view(number)[:length]
        told, body = parse_message(view)
        self._credits.received(told)
        if len(body):
            self._inbox.append((number, body))
        else:
            self._post_again(number)

    def _post_again(self, number: int) -> None:
        self._receives.post(number)
        self._credits.posted_again()

    def recv_into(self, sink: memoryview, _count: int = 0, _flags: int = 0) -> int:
        return self.recvmsg_into((sink,))[0]

    def recvmsg_into(self, sinks: Sequence[memoryview], _ancillary: int = 0, _flags: int = 0) -> tuple[int]:
        """(bytes,) that were copied. Raises BlockingIOError for none, or what ended the connection."""
        inbox = self._inbox
        if not inbox:
            self._check()
            if self.take():
                self._check()
            if not inbox:
                raise BlockingIOError
        total = 0
        for sink in sinks:
            at = 0
            while at < len(sink) and inbox:
                number, body = inbox[0]
                part = body[: len(sink) - at]
                sink[at : at + len(part)] = part
                at += len(part)
                if len(part) == len(body):
                    inbox.popleft()
                    self._post_again(number)
                else:
                    inbox[0] = number, body[len(part) :]
            total += at
            if not inbox:
                break
        self._tell()
        return (total,)

    def _check(self) -> None:
        if self.failed is not None:
            raise self.failed

    # On a loop

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Callbacks come on this loop."""
        self._loop = loop

    def on_readable(self, callback: Callable[[], None] | None) -> None:
        self._readable = callback
        if callback is not None and self._inbox:
            self._soon()

    def on_writable(self, callback: Callable[[], None] | None) -> None:
        self._writable = callback
        if callback is not None and self._ready:
            self._soon()

    def _soon(self) -> None:
        if self._loop is not None:
            self._loop.call_soon(self.settle)

    def settle(self) -> None:
        """After completions: tell the peer, and call who waits for bytes or for room."""
        if self.failed is not None:
            return
        self._tell()
        if self._writable is not None and self._ready:
            self._writable()
        if self._readable is not None and self._inbox:
            self._readable()
            if self._readable is not None and self._inbox:
                self._soon()

    def close(self) -> None:
        """After the queue pair: buffers that hold unread messages take others."""
        self._readable = self._writable = self.reap = None
        self._submit = _nowhere
        while self._inbox:
            self._receives.post(self._inbox.popleft()[0])


def _nowhere(_: Sequence[Operation]) -> None:
    """What is sent after the end."""
