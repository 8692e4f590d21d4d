"""The server's part of the rdma handshake on one connection, and the frames that come with it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.api import Peer
from fireflyfs.common.net.frame import Header, Kind, pack_frame, parse_region
from fireflyfs.common.net.rdma.server import RdmaServer, ServerEnd
from fireflyfs.common.net.rdma.wire import (
    pack_parameters,
    pack_refusal,
    parse_expose,
    parse_parameters,
    parse_probe,
)

if TYPE_CHECKING:
    from fireflyfs.common.net.connection import Connection

log = logging.getLogger(__name__)


class RdmaDoorway:
    """From WELCOME on: one CONNECT, one PROBE, then regions come and go. `end` is set once the probe has passed."""

    def __init__(self, connection: Connection, server: RdmaServer) -> None:
        self.end: ServerEnd | None = None
        self._connection = connection
        self._server = server
        self._unproved: ServerEnd | None = None
        self._asked = self._probed = False

    def on_frame(self, header: Header, body: memoryview) -> bool:
        """Whether it was one of ours. Raises PROTOCOL or TOO_LARGE: the connection ends."""
        if header.kind == Kind.CONNECT and not self._asked:
            self._asked = True
            self._connect(body)
        elif header.kind == Kind.PROBE and self._unproved is not None and not self._probed:
            self._probed = True
            self._connection.server.spawn(self._probe(self._unproved, *parse_probe(body)))
        elif header.kind == Kind.EXPOSE and self.end is not None:
            self.end.expose(parse_expose(body))
        elif header.kind == Kind.WITHDRAW and self.end is not None:
            self.end.withdraw(parse_region(body)[0])
        else:
            return False
        return True

    def _connect(self, body: memoryview) -> None:
        theirs = parse_parameters(body)
        connection = self._connection
        end: ServerEnd | None = None
        try:
            address = str(connection.sock.getsockname()[0])
            end = self._server.open(connection.loop, address)
            end.connect(theirs)
        except (OSError, FfsError) as exc:
            log.info("%s: no rdma: %s", connection.peer.name, exc)
            if end is not None:
                end.close(error(Code.UNAVAILABLE, str(exc)))
            connection.send([pack_refusal(Kind.CONNECT, int(Code.UNAVAILABLE), str(exc))])
            return
        self._unproved = end
        connection.send([pack_parameters(end.mine)])

    async def _probe(self, end: ServerEnd, address: int, rkey: int) -> None:
        connection = self._connection
        try:
            # A path that does not work must not cost the connection: it goes on as plain tcp.
            await end.probe(address, rkey)
        except FfsError as exc:
            log.info("%s: no rdma: %s", connection.peer.name, exc.message)
            connection.send([pack_refusal(Kind.PROBE, int(Code.UNAVAILABLE), exc.message)])
        else:
            self.end = end
            connection.peer = Peer(connection.peer.client_id, connection.peer.name.replace("tcp ", "rdma ", 1))
            end.on_lost(connection.on_nonsense)
            connection.send([pack_frame(Kind.PROBE, b"")])
            if end.messages is not None:
                try:
                    connection.carry_by(end.messages)
                except FfsError as exc:
                    connection.on_nonsense(exc)

    def close(self, exc: FfsError) -> None:
        if self._unproved is not None:
            self._unproved.close(exc)
