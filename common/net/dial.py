"""Opening a connection: which door to try, and the handshake. Blocking, with a deadline."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net import frame
from fireflyfs.common.net.api import Address
from fireflyfs.common.net.frame import Hello, LinkKind, Welcome
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.link_choice import LinkChoice
from fireflyfs.common.net.rdma.adapters import adapters
from fireflyfs.common.net.rdma.attach import attach
from fireflyfs.common.net.rdma.client import ClientEnd
from fireflyfs.common.net.server import SOCKET_BUFFER_BYTES, tune_tcp


@dataclass(slots=True)
class Dialed:
    """An open connection after its handshake; the socket is in blocking mode without a timeout."""

    sock: socket.socket
    welcome: Welcome
    name: str
    rdma: ClientEnd | None = None

    @property
    def shares(self) -> bool:
        """Whether the server reaches registered memory by itself."""
        return self.welcome.link == LinkKind.SHM or self.rdma is not None

    @property
    def link(self) -> str:
        """How payload travels: rdma, shm or tcp."""
        if self.rdma is not None:
            return "rdma"
        return "shm" if self.welcome.link == LinkKind.SHM else "tcp"

    def close(self) -> None:
        if self.rdma is not None:
            self.rdma.close()
        self.sock.close()


def split_tcp(address: str) -> tuple[str, int]:
    """ "host:port" or "[v6]:port". Raises CONFIG."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise error(Code.CONFIG, f"{address!r} is not host:port")
    return host.strip("[]"), int(port)


def dial(identity: Identity, address: Address, timeout_s: float) -> Dialed:
    """Connect by the best way that `identity.link` allows.

    Raises UNAVAILABLE, TIMEOUT, what the server says, or CONFIG for a server that no demanded link can ever reach.
    """
    end_s = time.monotonic() + timeout_s
    link = identity.link
    shares_host = bool(address.unix and address.host_id and address.host_id == identity.host_id)
    if shares_host and link.tries_shm:
        try:
            return _unix(identity, address.unix, end_s)
        except FfsError as exc:
            # The path may belong to another mount namespace; what a server refuses in words is final.
            if exc.code not in (Code.UNAVAILABLE, Code.TIMEOUT) or not address.tcp or link is LinkChoice.SHM:
                raise
    if link is LinkChoice.SHM:
        why = "it is on another host, or has no unix_path"
        raise error(Code.CONFIG, f"{address.tcp} shares no memory with us: {why}; link auto would take tcp or rdma")
    if not address.tcp:
        raise error(Code.UNAVAILABLE, f"no door of {address} can be reached from here with link {link.value}")
    return _tcp(identity, address.tcp, end_s)


def _unix(identity: Identity, path: str, end_s: float) -> Dialed:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_left_s(end_s))
        sock.connect(path)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        return _greet(sock, identity, LinkKind.TCP | LinkKind.SHM, path, end_s)
    except OSError as exc:
        sock.close()
        raise _lost(exc, path) from exc
    except BaseException:
        sock.close()
        raise


def _tcp(identity: Identity, address: str, end_s: float) -> Dialed:
    host, port = split_tcp(address)
    try:
        sock = socket.create_connection((host, port), timeout=_left_s(end_s))
    except OSError as exc:
        raise _lost(exc, address) from exc
    try:
        tune_tcp(sock)
        links = LinkKind.TCP
        if identity.link.tries_rdma and adapters().names:
            links |= LinkKind.RDMA
        dialed = _greet(sock, identity, links, address, end_s)
        why = "one of both ends has no rdma device"
        if dialed.welcome.link == LinkKind.RDMA:
            dialed.rdma, why = attach(sock, identity.cluster_id, address, lambda n: _exactly(sock, n, end_s, address))
        if identity.link is LinkChoice.RDMA and dialed.rdma is None:
            hint = "`ffs rdma check` on both says what is missing, link auto would take tcp"
            raise error(Code.UNAVAILABLE, f"{address} has no rdma link with us: {why}; {hint}")
        sock.settimeout(None)
        return dialed
    except OSError as exc:
        sock.close()
        raise _lost(exc, address) from exc
    except BaseException:
        sock.close()
        raise


def _greet(sock: socket.socket, identity: Identity, links: LinkKind, name: str, end_s: float) -> Dialed:
    sock.settimeout(_left_s(end_s))
    sock.sendall(frame.pack_hello(Hello(identity.cluster_id, identity.client_id, identity.host_id, links)))
    header = frame.parse_header(_exactly(sock, frame.HEADER_BYTES, end_s, name))
    body = _exactly(sock, header.body_len, end_s, name)
    welcome = frame.parse_answer(header, body)
    if welcome.link not in tuple(links):
        raise error(Code.PROTOCOL, f"{name} chose the link {welcome.link!r}, which was not offered")
    sock.settimeout(None)
    return Dialed(sock, welcome, name)


def _exactly(sock: socket.socket, length: int, end_s: float, name: str) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        sock.settimeout(_left_s(end_s))
        part = sock.recv(length - len(parts))
        if not part:
            raise error(Code.UNAVAILABLE, f"{name} closed the connection in the handshake")
        parts += part
    return bytes(parts)


def _left_s(end_s: float) -> float:
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("deadline passed")
    return left_s


def _lost(exc: OSError, name: str) -> FfsError:
    if isinstance(exc, TimeoutError):
        return error(Code.TIMEOUT, f"{name} did not answer in time")
    return error(Code.UNAVAILABLE, f"{name} cannot be reached: {exc.strerror or exc}")


def timeval(seconds: float) -> bytes:
    """A `struct timeval` for SO_RCVTIMEO; never zero, which would mean forever."""
    micros = max(int(seconds * 1e6), 1)
    return struct.pack("ll", micros // 1_000_000, micros % 1_000_000)
