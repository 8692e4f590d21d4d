"""The server's door of the data link: one event loop over all connections, tcp and Unix.

Requests are handed to handlers in the order in which they arrive; answers leave in any order. A connection holds at
most `requests_max` requests and `data_bytes_max` bytes of payload: beyond that it is not read until answers have left,
so that a client that sends too much waits in its own socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.ids import ClientId
from fireflyfs.common.limits import CONNECTION_DATA_BYTES_MAX, CONNECTION_REQUESTS_MAX, DEADLINE_S_MAX, MiB
from fireflyfs.common.net import frame
from fireflyfs.common.net.api import Handler, Peer, ServerRequest
from fireflyfs.common.net.buffers import BufferPool
from fireflyfs.common.net.frame import Buffer, Header, Kind, LinkKind
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.methods import Method
from fireflyfs.common.net.rdma.adapters import adapters
from fireflyfs.common.net.rdma.doorway import RdmaDoorway
from fireflyfs.common.net.rdma.server import RdmaServer, ServerEnd
from fireflyfs.common.net.rdma.settings import LinkChoice
from fireflyfs.common.net.regions import RegionTable
from fireflyfs.common.net.request import Request
from fireflyfs.common.net.stream import Stream

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 4096
HANDSHAKE_S_MAX: Final = 10.0
IDLE_S_MAX: Final = 900.0  # a connection without requests
STALL_S_MAX: Final = 60.0  # a peer that does not take its answers, or stops inside a frame
SWEEP_S: Final = 2.0
QUEUED_BYTES_MAX: Final = 2 * MiB  # answers that the peer has not taken: it is not read until it has
SOCKET_BUFFER_BYTES: Final = 4 * MiB
BACKLOG: Final = 512


@dataclass(slots=True)
class LinkStats:
    """Counts since the start."""

    connections: int = 0
    refused: int = 0
    requests: int = 0
    failures: int = 0
    pulled_bytes: int = 0  # by PING


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
        self.doorway: RdmaDoorway | None = None  # of a connection that was welcomed to rdma

    @property
    def mover(self) -> ServerEnd | None:
        """Moves payload by rdma; None where it travels another way."""
        return self.doorway.end if self.doorway is not None else None

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
        self.server.stats.refused += 1
        log.warning("%s: refused: %s", self.peer.name, exc.message)
        self.send([frame.pack_refuse(int(exc.code), exc.message)])
        self.close_after_send()

    def on_closed(self, exc: FfsError) -> None:
        landing = self._landing
        self._landing = None
        if landing is not None:
            landing.answered = True
            landing.release()
        self.regions.clear()
        if self.doorway is not None:
            self.doorway.close(exc)
        self.server.forget(self)

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
        self.server.stats.requests += 1
        if header.data_len:
            self._landing = request
            request.inline = request.take_buffer(header.data_len)
            return (request.inline,)
        self.server.dispatch(request)
        return ()

    def answer(self, request: Request, buffers: Sequence[Buffer]) -> None:
        """Queue an answer; the request counts against the bounds until it has left."""
        if request.payload_bytes or self.queued_bytes or request.holds_registered:
            # Held until it has left: with rdma its buffers are still what transfers go to or come from.

            def left() -> None:
                request.release()
                self._done(request.payload_bytes)

            self.send(buffers, left)
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


class LinkServer:
    """Serves `handlers` on `host:port` (0: any) and, with `unix_path`, on a Unix socket with shared memory."""

    def __init__(
        self,
        identity: Identity,
        handlers: Mapping[int, Handler],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        unix_path: str = "",
    ) -> None:
        self.identity = identity
        self.handlers: dict[int, Handler] = {int(Method.PING): self._ping, **handlers}
        self.buffers = BufferPool()
        self.stats = LinkStats()
        self.loop: asyncio.AbstractEventLoop
        self.tcp = ""
        self.unix = ""
        self._host = host
        self._port = port
        self._unix_path = unix_path
        self._listeners: list[socket.socket] = []
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        ours = adapters()
        offered = ours.settings.link in (LinkChoice.AUTO, LinkChoice.RDMA) and ours.names
        self.rdma: RdmaServer | None = RdmaServer(ours) if offered else None

    async def start(self) -> None:
        """Raises OSError when a door cannot be opened."""
        self.loop = asyncio.get_running_loop()
        infos = await self.loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        family, _, _, _, where = infos[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            self._listen(listener, unix=False)
        except BaseException:
            listener.close()
            raise
        host, port = listener.getsockname()[:2]
        self.tcp = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if self._unix_path:
            try:
                self._listen(self._bind_unix(self._unix_path), unix=True)
            except BaseException:
                await self.stop(0)
                raise
            self.unix = self._unix_path
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def _bind_unix(self, path: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A socket left by a process that died; any other file is not ours to remove.
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    os.unlink(path)
            listener.bind(path)
        except BaseException:
            listener.close()
            raise
        return listener

    def _listen(self, listener: socket.socket, *, unix: bool) -> None:
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._listeners.append(listener)
        self.loop.add_reader(listener.fileno(), self._accept, listener, unix)

    def _accept(self, listener: socket.socket, unix: bool) -> None:
        for _ in range(BACKLOG):
            try:
                sock, where = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:  # out of file descriptors: the backlog keeps them until some are free
                log.warning("cannot accept a connection: %s", exc)
                self.loop.remove_reader(listener.fileno())
                self.loop.call_later(SWEEP_S, self._listen_again, listener, unix)
                return
            if len(self._connections) >= CONNECTIONS_MAX:
                self.stats.refused += 1
                sock.setblocking(False)
                with contextlib.suppress(OSError):
                    sock.send(frame.pack_refuse(Code.OVERLOADED, f"server holds {CONNECTIONS_MAX} connections"))
                sock.close()
                continue
            try:
                name = self._tune(sock, where, unix)
            except OSError:
                sock.close()
                continue
            connection = Connection(self, sock, unix=unix, name=name)
            self._connections.add(connection)
            self.stats.connections += 1
            connection.start()

    def _listen_again(self, listener: socket.socket, unix: bool) -> None:
        if listener.fileno() >= 0:
            self.loop.add_reader(listener.fileno(), self._accept, listener, unix)

    @staticmethod
    def _tune(sock: socket.socket, where: object, unix: bool) -> str:
        if unix:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            pid, _, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return f"shm pid {pid}"
        tune_tcp(sock)
        return f"tcp {where[0]}:{where[1]}" if isinstance(where, tuple) else "tcp"

    def _sweep(self) -> None:
        now_s = self.loop.time()
        for connection in list(self._connections):
            why = connection.overdue(now_s)
            if why:
                log.info("%s: closed: %s", connection.peer.name, why)
                connection.close(error(Code.TIMEOUT, f"closed by the server: {why}"))
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def forget(self, connection: Connection) -> None:
        self._connections.discard(connection)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Take no new connection, let requests that run finish for `grace_s`, then close everything."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for listener in self._listeners:
            self.loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()
        if self.unix:
            with contextlib.suppress(OSError):
                os.unlink(self.unix)
        if self._tasks and grace_s > 0:
            await asyncio.wait(set(self._tasks), timeout=grace_s)
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=max(grace_s, 0.1))
        for connection in list(self._connections):
            connection.close(error(Code.UNAVAILABLE, "server stops"))
        if self.rdma is not None:
            self.rdma.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run to the end, or until the server stops."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Requests

    def dispatch(self, request: Request) -> None:
        """Run the handler; whatever it does, the request is answered."""
        handler = self.handlers.get(request.method)
        if handler is None:
            request.fail(Code.UNKNOWN_METHOD, f"no method {request.method:#06x} here")
            return
        try:
            pending = handler(request)
        except Exception as exc:
            self._failed(request, exc)
            return
        if pending is not None:
            self.spawn(self._finish(request, pending))
        elif not request.answered:
            self._unanswered(request)

    async def _finish(self, request: Request, pending: Awaitable[None]) -> None:
        try:
            await pending
        except asyncio.CancelledError:
            if not request.answered:
                request.fail(Code.UNAVAILABLE, "server stops")
            raise
        except Exception as exc:
            self._failed(request, exc)
        else:
            if not request.answered:
                self._unanswered(request)

    def _failed(self, request: Request, exc: Exception) -> None:
        self.stats.failures += 1
        if not isinstance(exc, FfsError):
            log.error("method %#06x of %s failed", request.method, request.peer.name, exc_info=exc)
        if request.answered:
            return
        if isinstance(exc, FfsError):
            request.fail(exc.code, exc.message)
        else:
            request.fail(Code.INTERNAL, f"{type(exc).__name__}: {exc}")

    def _unanswered(self, request: Request) -> None:
        self.stats.failures += 1
        log.error("method %#06x was not answered by its handler", request.method)
        request.fail(Code.INTERNAL, "the handler did not answer")

    async def _ping(self, request: ServerRequest) -> None:
        self.stats.pulled_bytes += sum(map(len, await request.pull()))
        lengths = request.push_lengths
        for view in request.push_views() if lengths else ():
            view[:] = bytes(len(view))
        request.reply(request.body, lengths)


def tune_tcp(sock: socket.socket) -> None:
    """No delay for small frames; a peer that is gone is noticed within half a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
