"""The client's part of the rdma handshake, on a tcp connection that has been welcomed: queue pairs, then a probe.

Until the probe has moved bytes both ways nothing depends on rdma; whatever fails before leaves a plain tcp connection.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from fireflyfs.common.errors import Code, error
from fireflyfs.common.net import frame
from fireflyfs.common.net.frame import HEADER_BYTES, Kind
from fireflyfs.common.net.rdma.adapters import adapters
from fireflyfs.common.net.rdma.client import ClientEnd
from fireflyfs.common.net.rdma.wire import pack_parameters, parse_parameters

log = logging.getLogger(__name__)


def attach(
    sock: socket.socket, cluster_id: str, name: str, receive: Callable[[int], bytes]
) -> tuple[ClientEnd | None, str]:
    """The connection's queue pair, or None and why there is none. Raises FfsError or OSError when the socket fails."""
    end, why = _open(sock, cluster_id)
    if end is None:
        log.debug("%s: no rdma: %s", name, why)
        return None, why
    try:
        why = _handshake(sock, end, name, receive)
    except BaseException:
        end.close()
        raise
    if why:
        log.warning("%s: rdma through %s does not work, tcp carries the payload: %s", name, end.device, why)
        end.close()
        return None, why
    return end, ""


def _open(sock: socket.socket, cluster_id: str) -> tuple[ClientEnd | None, str]:
    choice = adapters().choose(sock.getsockname()[0])
    if choice is None:
        return None, "no port is active"
    try:
        return ClientEnd(adapters(), choice, cluster_id), ""
    except OSError as exc:
        return None, str(exc)


def _handshake(sock: socket.socket, end: ClientEnd, name: str, receive: Callable[[int], bytes]) -> str:
    """Returns why it does not work, or nothing."""
    sock.sendall(pack_parameters(end.mine))
    why, body = _answer(Kind.CONNECT, name, receive)
    if why:
        return why
    try:
        end.connect(parse_parameters(body))
        question, probe = end.begin_probe()
    except OSError as exc:
        return str(exc)
    try:
        sock.sendall(question)
        why, _ = _answer(Kind.PROBE, name, receive)
        return why or ("" if probe.moved else "the probe's bytes did not come back")
    finally:
        probe.close()


def _answer(kind: Kind, name: str, receive: Callable[[int], bytes]) -> tuple[str, bytes]:
    header = frame.parse_header(receive(HEADER_BYTES))
    body = receive(header.body_len)
    if header.kind == Kind.REFUSE:
        frame.parse_answer(header, body)
    if header.kind != kind:
        raise error(Code.PROTOCOL, f"{name} sent a frame of kind {header.kind} where {kind.name} belongs")
    if header.status:
        return body.decode("utf-8", "replace") or f"refused with {header.status}", b""
    return "", body
