"""What a mount and its agents say to each other: JSON, one object a datagram, with at most one descriptor.

Both ends are ours, and few messages are sent: for a ring, a region or a file once, not for an I/O.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Any, Final

MESSAGE_BYTES_MAX: Final = 128 * 1024

Message = dict[str, Any]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that keep the borders of messages."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MESSAGE_BYTES_MAX)
    return ours, theirs


def send(sock: socket.socket, message: Message, fd: int = -1) -> None:
    """Raises OSError when the other end is gone."""
    data = json.dumps(message, separators=(",", ":")).encode()
    socket.send_fds(sock, [data], [fd] if fd >= 0 else [], socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[Message, int] | None:
    """The next message and its descriptor (the caller's; -1: none). None: the other end is gone."""
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(sock, MESSAGE_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return None
        if not data:
            return None
        for extra in fds[1:]:
            with contextlib.suppress(OSError):
                os.close(extra)
        message = json.loads(data)
        if isinstance(message, dict):
            return message, fds[0] if fds else -1
