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
from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, Final

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import MiB
from fireflyfs.common.net import frame
from fireflyfs.common.net.api import Handler, ServerRequest
from fireflyfs.common.net.buffers import BufferPool
from fireflyfs.common.net.connection import Connection
from fireflyfs.common.net.counting import Counts, Tally, Traffic
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.methods import Method
from fireflyfs.common.net.rdma.adapters import adapters, check_link
from fireflyfs.common.net.rdma.server import RdmaServer
from fireflyfs.common.net.request import Request
from fireflyfs.common.start_now import start_now

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 4096
SWEEP_S: Final = 2.0
SOCKET_BUFFER_BYTES: Final = 4 * MiB
BACKLOG: Final = 512


class LinkServer:
    """Serves `handlers` on `host:port` (0: any) and, with `unix_path`, on a Unix socket with shared memory.

    `identity.link` says what is offered beside tcp. Raises CONFIG when it demands what this machine does not have.
    """

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
        self.refused = 0  # connections, for nonsense or for their number
        self._ended: dict[str, Counts] = {}  # of closed connections, by link
        self.loop: asyncio.AbstractEventLoop
        self.tcp = ""
        self.unix = ""
        self._host = host
        self._port = port
        self._unix_path = unix_path if identity.link.tries_shm else ""
        self._listeners: list[socket.socket] = []
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        ours = adapters()
        check_link(identity.link)
        self.rdma: RdmaServer | None = RdmaServer(ours) if identity.link.tries_rdma and ours.names else None

    @property
    def rdma_devices(self) -> str:
        """Devices with which the tcp door offers rdma, with commas between; empty: none."""
        return ",".join(self.rdma.adapters.names) if self.rdma is not None else ""

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
                self.refused += 1
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

    def forget(self, connection: Connection, link: str) -> None:
        self._connections.discard(connection)
        self._ended.setdefault(link, Counts()).add(connection.counts)

    def traffic(self) -> list[Traffic]:
        """What came from and went to all clients, by link."""
        tally = Tally()
        for connection in self._connections:
            tally.open("", connection.link, connection.counts, connection.in_flight)
        for link, counts in self._ended.items():
            tally.ended("", link, counts)
        return tally.traffic()

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
            task = start_now(self.loop, self._finish(request, pending))
            if not task.done():
                self._tasks.add(task)
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
        finally:
            task = asyncio.current_task(self.loop)
            if task is not None:
                self._tasks.discard(task)

    def _failed(self, request: Request, exc: Exception) -> None:
        if not isinstance(exc, FfsError):
            log.error("method %#06x of %s failed", request.method, request.peer.name, exc_info=exc)
        if request.answered:
            return
        if isinstance(exc, FfsError):
            request.fail(exc.code, exc.message)
        else:
            request.fail(Code.INTERNAL, f"{type(exc).__name__}: {exc}")

    def _unanswered(self, request: Request) -> None:
        log.error("method %#06x was not answered by its handler", request.method)
        request.fail(Code.INTERNAL, "the handler did not answer")

    async def _ping(self, request: ServerRequest) -> None:
        await request.pull()
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
