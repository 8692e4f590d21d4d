"""The client's end: it exposes memory and sends messages. The server does all the moving of payload."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import select
import socket
import struct
import weakref
from collections.abc import Callable
from typing import Final

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import MiB
from fireflyfs.common.net.frame import HEADER_BYTES, MESSAGE_BYTES_MAX, parse_answer, parse_header
from fireflyfs.common.net.memory import SharedMemory
from fireflyfs.common.net.rdma.adapters import (
    Adapters,
    ClientMemory,
    parameters,
)
from fireflyfs.common.net.rdma.choice import Choice
from fireflyfs.common.net.rdma.credits import WINDOW, send_completions
from fireflyfs.common.net.rdma.endpoint import Endpoint, Posted
from fireflyfs.common.net.rdma.messages import Messages
from fireflyfs.common.net.rdma.queues import Completions
from fireflyfs.common.net.rdma.sending import SendQueue
from fireflyfs.common.net.rdma.wire import PROBE_BYTES, Exposed, Parameters, pack_expose, pack_probe

log = logging.getLogger(__name__)

IN_FLIGHT_BYTES_MAX: Final = MiB  # never reached: a client sends messages only, and those are counted by their buffers
LAST_WORDS_BYTES_MAX: Final = HEADER_BYTES + MESSAGE_BYTES_MAX


class ClientEnd:
    """One connection's end, and what was exposed through it. Used by one thread at a time.

    When `close` returns, the server can reach nothing of ours through this connection any more.
    """

    def __init__(self, adapters: Adapters, choice: Choice, cluster_id: str) -> None:
        """Raises OSError."""
        self._adapters = adapters
        self._choice = choice
        self._memory: ClientMemory = adapters.client(choice.device, cluster_id)
        device, receives = self._memory.device, self._memory.enter()
        try:
            completions = Completions(device, send_completions(WINDOW) + receives.depth, watched=True)
        except BaseException:
            receives.leave()
            raise
        queue = SendQueue(WINDOW, IN_FLIGHT_BYTES_MAX)
        self._endpoint = Endpoint(self._memory.domain, completions, receives, queue, 1, remote=True, posted=Posted())
        self.messages: Messages  # once connected
        self._shown: set[int] = set()
        self._closed = False
        self._watched_by: asyncio.AbstractEventLoop | None = None
        self._poller: select.poll | None = None
        self._armed = False  # the next completion is told of, or was and nobody has read it
        self.mine: Parameters = parameters(self._endpoint.pair, choice, device)
        adapters.count(choice.device, 1)
        self._token = object()
        # Dropped without `close`: the queue pair must go all the same.
        self._finalizer = weakref.finalize(self, _end, self._endpoint)

    @property
    def device(self) -> str:
        return self._choice.device

    def connect(self, theirs: Parameters) -> None:
        """Raises OSError."""
        self.messages = self._endpoint.connect(self._choice, self.mine, theirs)
        self.messages.reap = self._endpoint.reap

    def begin_probe(self) -> tuple[bytes, ProbeMemory]:
        """The PROBE frame, and the memory that the server reads and writes for it. Raises OSError."""
        probe = ProbeMemory(self._memory)
        return pack_probe(probe.address, probe.rkey), probe

    # Memory

    def expose(self, memory: SharedMemory) -> bytes | None:
        """The EXPOSE frame for memory; None when it cannot be registered: it has to travel another way."""
        try:
            region = self._memory.expose(memory, self._token)
        except OSError as exc:
            if not memory.closed:
                log.warning("%s of shared memory cannot be registered with %s: %s", memory.length, self.device, exc)
            return None
        self._shown.add(memory.region)
        return pack_expose(Exposed(memory.region, region.rkey, memory.length, region.address))

    def withdraw(self, number: int) -> None:
        self._shown.discard(number)
        self._memory.release(number, self._token)

    # Messages, in a thread

    def wait(self, sock: socket.socket, timeout_s: float) -> bool:
        """Until something has come or gone; False: not in time. Raises what ended the connection, or the server's
        last words on its socket."""
        endpoint, messages = self._endpoint, self.messages
        if messages.take():
            return True
        if endpoint.failed is not None:
            raise self._why(sock, endpoint.failed)
        if self._poller is None:
            self._poller = select.poll()
            self._poller.register(endpoint.completions.fd, select.POLLIN)
            self._poller.register(sock, select.POLLIN)
        if not self._armed:
            self._armed = True
            endpoint.completions.rearm()  # before looking once more, or one could be missed
            if messages.take():
                return True
        ready = [fd for fd, _ in self._poller.poll(timeout_s * 1000)]
        if endpoint.completions.fd in ready:
            endpoint.completions.take_event()
            self._armed = False
        if messages.take() or messages.pending:
            return True
        if sock.fileno() in ready:
            raise self._why(sock, error(Code.UNAVAILABLE, "the connection was reset"))
        return bool(ready)

    def _why(self, sock: socket.socket, exc: FfsError) -> FfsError:
        """The server's words on the socket, if it has said any; else what we know."""
        try:
            return last_words(sock.recv(LAST_WORDS_BYTES_MAX, socket.MSG_DONTWAIT), str(sock.getpeername()[0]))
        except OSError:
            return exc

    @property
    def stale(self) -> bool:
        """Whether it has failed, or something came unasked, while it was idle."""
        self.messages.take()
        return self._endpoint.failed is not None or self.messages.pending

    # Messages, on a loop

    def watch(self, loop: asyncio.AbstractEventLoop, lost: Callable[[FfsError], None]) -> Messages:
        """Callbacks come on the loop, `lost` once when the connection fails."""
        endpoint, messages = self._endpoint, self.messages
        messages.watch(loop)

        def settle() -> None:
            if endpoint.failed is not None and not endpoint.closed:
                lost(endpoint.failed)
            else:
                messages.settle()

        def woken() -> None:
            try:
                endpoint.completions.take_event()
                endpoint.completions.rearm()
            except OSError as exc:
                endpoint.fail(error(Code.UNAVAILABLE, str(exc)))
            endpoint.reap()
            settle()

        self._watched_by = loop
        loop.add_reader(endpoint.completions.fd, woken)
        loop.call_soon(woken)  # what came before is not told of
        return messages

    # The end

    def abandon(self) -> None:
        """In a forked child: all of it is the parent's. Takes no lock, for nobody here would give it back."""
        self._closed = True
        self._finalizer.detach()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._finalizer.detach()
        if self._watched_by is not None:
            self._watched_by.remove_reader(self._endpoint.completions.fd)
        _end(self._endpoint)
        for number in list(self._shown):
            self.withdraw(number)
        self._adapters.count(self._choice.device, -1)


def last_words(data: bytes, name: str) -> FfsError:
    """What a server says on the socket of an rdma connection ends it: a refusal, or nothing."""
    if not data:
        return error(Code.UNAVAILABLE, f"{name} closed the connection")
    try:
        header = parse_header(data)
        parse_answer(header, data[HEADER_BYTES : HEADER_BYTES + header.body_len])
    except FfsError as exc:
        return exc
    except struct.error:
        pass
    return error(Code.PROTOCOL, f"{name} sent {len(data)} bytes where a refusal belongs")


class ProbeMemory:
    """A page with random bytes for the server to read, and room to write them into."""

    def __init__(self, memory: ClientMemory) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._nonce = os.urandom(PROBE_BYTES)
        self._page[:PROBE_BYTES] = self._nonce
        self._region = memory.domain.register(memoryview(self._page), remote=True)
        self.address = self._region.address
        self.rkey = self._region.rkey

    @property
    def moved(self) -> bool:
        """Whether the server has read what was there and written the same behind it."""
        return self._page[PROBE_BYTES : 2 * PROBE_BYTES] == self._nonce

    def close(self) -> None:
        self._region.close()


def _end(endpoint: Endpoint) -> None:
    if endpoint.pair.closed:  # in a forked child: all of it is the parent's
        return
    endpoint.end()
    endpoint.reap()  # buffers that messages have taken meanwhile
    endpoint.close(error(Code.UNAVAILABLE, "the connection is closed"))
