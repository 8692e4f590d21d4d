"""One client at the link server: its handshake, its requests within bounds, and their answers."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import ClientId
from fireflyfs.common.limits import CONNECTION_DATA_BYTES_MAX, CONNECTION_REQUESTS_MAX, DEADLINE_S_MAX, MiB
from fireflyfs.common.net import frame
from fireflyfs.common.net.api import Peer
from fireflyfs.common.net.counting import Counts
from fireflyfs.common.net.frame import Buffer, Header, Kind, LinkKind
from fireflyfs.common.net.rdma.doorway import RdmaDoorway
from fireflyfs.common.net.rdma.server import ServerEnd
from fireflyfs.common.net.regions import RegionTable
from fireflyfs.common.net.request import Request
from fireflyfs.common.net.stream import Stream

if TYPE_CHECKING:
    from fireflyfs.common.net.server import LinkServer

log = logging.getLogger(__name__)

HANDSHAKE_S_MAX: Final = 10.0
IDLE_S_MAX: Final = 900.0  # a connection without requests
STALL_S_MAX: Final = 60.0  # a peer that does not take its answers, or stops inside a frame
QUEUED_BYTES_MAX: Final = 2 * MiB  # answers that the peer has not taken: it is not read until it has


class Connection(Stream):
    """One client at the server."""

    def __init__(self, server: LinkServer, sock: socket.socket, *, unix: bool, name: str) -> None:
        super().__init__(server.loop, sock, takes_fds=unix)
        self.server = server
        self.regions = RegionTable()
        self.peer = Peer(ClientId(bytes(16)), name)
        self.greeted = False
        self._unix = unix
        self._shares = False
        self._requests_max = CONNECTION_REQUESTS_MAX
        self._requests = 0
        self._payload_bytes = 0
        self._landing: Request | None = None
        self.counts = Counts()
        self.doorway: RdmaDoorway | None = None  # of a connection that was welcomed to rdma

    @property
    def mover(self) -> ServerEnd | None:
        """Moves payload by rdma; None where it travels another way."""
        return self.doorway.end if self.doorway is not None else None

    @property
    def link(self) -> str:
        """How payload travels: rdma, shm or tcp."""
        if self.mover is not None:
            return "rdma"
        return "shm" if self._shares else "tcp"

    @property
    def in_flight(self) -> int:
        return self._requests

    # Stream

    def on_frame(self, header: Header, table: memoryview, body: memoryview) -> Sequence[memoryview] | None:
        if header.kind == Kind.REQUEST and self.greeted:
            return self._request(header, table, body)
        if not self.greeted:
            if header.kind != Kind.HELLO:
                raise error(Code.PROTOCOL, f"expected HELLO, got a frame of kind {header.kind}")
            self._hello(body)
        elif header.kind == Kind.REGISTER and self._shares:
            region, length = frame.parse_region(body)
            if not self.fds:
                raise error(Code.PROTOCOL, "REGISTER without a file descriptor")
            fd = self.fds.popleft()
            try:
                self.regions.register(region, length, fd)
            finally:
                os.close(fd)
        elif header.kind == Kind.WITHDRAW and self._shares:
            self.regions.withdraw(frame.parse_region(body)[0])
        elif self.doorway is None or not self.doorway.on_frame(header, body):
            raise error(Code.PROTOCOL, f"a frame of kind {header.kind} has no place here")
        return ()

    def on_data(self) -> None:
        request = self._landing
        self._landing = None
        if request is not None:
            self.server.dispatch(request)

    def on_nonsense(self, exc: FfsError) -> None:
        if exc.code is Code.UNAVAILABLE:
            self.close(exc)
            return
        self.server.refused += 1
        log.warning("%s: refused: %s", self.peer.name, exc.message)
        self.say_last([frame.pack_refuse(int(exc.code), exc.message)])

    def on_closed(self, exc: FfsError) -> None:
        landing = self._landing
        self._landing = None
        link = self.link  # as it was
        if landing is not None:
            landing.answered = True
            landing.release()
        self.regions.clear()
        if self.doorway is not None:
            self.doorway.close(exc)
        self.server.forget(self, link)

    # Ours

    def _hello(self, body: memoryview) -> None:
        hello = frame.parse_hello(body)
        identity = self.server.identity
        links = LinkKind.TCP
        if self._unix and hello.host_id and hello.host_id == identity.host_id:
            links |= LinkKind.SHM
        if self.server.rdma is not None and not self._unix:
            links |= LinkKind.RDMA
        welcome = frame.choose(hello, identity.cluster_id, links)
        self._shares = welcome.link == LinkKind.SHM
        if welcome.link == LinkKind.RDMA and self.server.rdma is not None:
            self.doorway = RdmaDoorway(self, self.server.rdma)
        self._requests_max = welcome.requests_max
        self.peer = Peer(ClientId(hello.client_id), self.peer.name)
        self.greeted = True
        self.send([frame.pack_welcome(welcome)])

    def _request(self, header: Header, table: memoryview, body: memoryview) -> Sequence[memoryview] | None:
        out, into, payload = frame.parse_segments(header, table) if len(table) else ([], [], 0)
        if self._requests and (
            self._requests >= self._requests_max
            or self._payload_bytes + payload > CONNECTION_DATA_BYTES_MAX
            or self.queued_bytes > QUEUED_BYTES_MAX
        ):
            return None
        deadline_s = self.loop.time() + min(header.deadline_ms / 1000, DEADLINE_S_MAX)
        request = Request(self, header, out, into, payload, bytes(body), deadline_s)
        self._requests += 1
        self._payload_bytes += payload
        self.counts.requests += 1
        if out:
            self.counts.bytes_out += sum(segment[1] for segment in out)
        if header.data_len:
            self._landing = request
            request.inline = request.take_buffer(header.data_len)
            return (request.inline,)
        self.server.dispatch(request)
        return ()

    def answer(self, request: Request, buffers: Sequence[Buffer], beside_bytes: int = 0) -> None:
        """Queue an answer; the request counts against the bounds until it has left."""
        if request.payload_bytes or self.queued_bytes or request.holds_registered:
            # Held until it has left: with rdma its buffers are still what transfers go to or come from.

            def left() -> None:
                request.release()
                self._done(request.payload_bytes)

            self.send(buffers, left, beside_bytes=beside_bytes)
        else:
            self.send(buffers)
            self._done(0)

    def _done(self, payload: int) -> None:
        self._requests -= 1
        self._payload_bytes -= payload
        if self.paused:
            self.resume()

    def overdue(self, now_s: float) -> str:
        """Why this connection should be closed, or nothing."""
        idle_s = now_s - self.moved_at_s
        if not self.greeted:
            return "no HELLO" if idle_s > HANDSHAKE_S_MAX else ""
        if (self.queued_bytes or self._landing is not None) and idle_s > STALL_S_MAX:
            return "stalled"
        return "idle" if not self._requests and idle_s > IDLE_S_MAX else ""
