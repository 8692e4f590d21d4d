"""Frames of the data link, packed and parsed; touches no socket. Byte pictures: docs/format/data_link.md.

Every length is checked here against common/limits.py, before anyone allocates memory for it. What makes no sense
raises FfsError: PROTOCOL, TOO_LARGE, WRONG_CLUSTER or VERSION_MISMATCH; the connection cannot be used afterwards.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from fireflyfs.common import limits
from fireflyfs.common.errors import Code, FfsError, error

Buffer = bytes | bytearray | memoryview
Segment = tuple[int, int, int]  # (region, length, offset): bytes [offset, offset + length) of a region, or inline bytes

MAGIC: Final = 0xF5FF  # bytes ff f5
PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1
HEADER: Final = struct.Struct("<HBBHHIIHHIII")
HEADER_BYTES: Final = 32
SEGMENT: Final = struct.Struct("<IIQ")
SEGMENT_BYTES: Final = 16
INLINE: Final = 0xFFFFFFFF  # region number of bytes that travel on the socket
NAME_BYTES_MAX: Final = 255  # cluster id, host id
MESSAGE_BYTES_MAX: Final = 4096  # text of a failure
REQUEST_ID_MASK: Final = 0xFFFFFFFF
_REQUEST: Final = 4  # Kind.REQUEST and Kind.REPLY as plain numbers, for the paths of every frame
_REPLY: Final = 5
_HELLO: Final = struct.Struct("<HHI16sIQBB")
_WELCOME: Final = struct.Struct("<HHIQ")
_REGION: Final = struct.Struct("<IIQ")


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    REQUEST = 4
    REPLY = 5
    REGISTER = 6  # with one file descriptor, on a Unix socket
    WITHDRAW = 7
    CONNECT = 8  # rdma: one end's queue pair, or why there is none (common/net/rdma/wire.py)
    PROBE = 9  # rdma: bytes to move before anything depends on it
    EXPOSE = 10  # rdma: memory that the server may read and write


class LinkKind(IntFlag):
    """Ways to move bytes, as offered in HELLO and chosen in WELCOME."""

    TCP = 1  # inline: bytes follow the frame, whatever the socket is
    SHM = 2  # regions by memfd
    RDMA = 4  # regions by address and key; frames in messages of a queue pair


class Header(NamedTuple):
    """The fixed 32 bytes, checked. `n_out` and `n_into` count segments; in a reply `n_into` counts pushed lengths."""

    kind: int
    method: int
    request_id: int
    body_len: int
    n_out: int
    n_into: int
    data_len: int
    status: int
    deadline_ms: int
    flags: int = 0
    version: int = PROTOCOL_MAX

    @property
    def table_bytes(self) -> int:
        """Bytes of the segment table (requests) or of the pushed lengths (replies) between header and body."""
        if self.kind == _REQUEST:
            return SEGMENT_BYTES * (self.n_out + self.n_into)
        return 4 * self.n_into if self.kind == _REPLY else 0


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client says first."""

    cluster_id: str
    client_id: bytes
    host_id: str
    links: LinkKind
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX
    requests_max: int = limits.CONNECTION_REQUESTS_MAX
    data_bytes_max: int = limits.CONNECTION_DATA_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the server answers: the version and link chosen, and what it will hold for this connection."""

    version: int
    link: LinkKind
    requests_max: int
    data_bytes_max: int


def _protocol(text: str) -> FfsError:
    return error(Code.PROTOCOL, text)


def _too_large(what: str, value: int, limit: int) -> FfsError:
    return error(Code.TOO_LARGE, f"{what} is {value}, over the limit of {limit}")


_KINDS: Final = frozenset(int(kind) for kind in Kind)
_LINKS: Final = int(LinkKind.TCP | LinkKind.SHM | LinkKind.RDMA)


def check_magic(buffer: Buffer, offset: int) -> None:
    """Whether the two bytes at `offset` begin a frame. Raises PROTOCOL."""
    magic = int.from_bytes(buffer[offset : offset + 2], "little")
    if magic != MAGIC:
        raise _protocol(f"frame starts with {magic:#06x}, not {MAGIC:#06x}: not a FireflyFS data link")


def parse_header(buffer: Buffer, offset: int = 0) -> Header:
    """The 32 bytes at `offset`. Raises PROTOCOL, VERSION_MISMATCH or TOO_LARGE."""
    magic, version, kind, method, flags, request_id, body_len, n_out, n_into, data_len, status, deadline_ms = (
        HEADER.unpack_from(buffer, offset)
    )
    if magic != MAGIC:
        check_magic(buffer, offset)
    if kind not in _KINDS:
        raise _protocol(f"unknown frame kind {kind}")
    # A HELLO states its range in its body, so that an old server can refuse a new client in words.
    if not PROTOCOL_MIN <= version <= PROTOCOL_MAX and kind != Kind.HELLO and kind != Kind.REFUSE:
        raise error(
            Code.VERSION_MISMATCH, f"frame of protocol {version}; this release speaks {PROTOCOL_MIN} to {PROTOCOL_MAX}"
        )
    if body_len > limits.FRAME_BODY_BYTES_MAX:
        raise _too_large("body_len", body_len, limits.FRAME_BODY_BYTES_MAX)
    if data_len > limits.FRAME_DATA_BYTES_MAX:
        raise _too_large("data_len", data_len, limits.FRAME_DATA_BYTES_MAX)
    if n_out + n_into > limits.FRAME_SEGMENTS_MAX:
        raise _too_large("segment count", n_out + n_into, limits.FRAME_SEGMENTS_MAX)
    if kind in (_REQUEST, _REPLY):
        if kind == _REPLY and n_out:
            raise _protocol("a reply has no out pieces")
    elif data_len or n_out or n_into:
        raise _protocol(f"frame of kind {kind} cannot carry data")
    elif body_len > 2048 + MESSAGE_BYTES_MAX:
        raise _too_large("body_len of a handshake frame", body_len, 2048 + MESSAGE_BYTES_MAX)
    return Header(kind, method, request_id, body_len, n_out, n_into, data_len, status, deadline_ms, flags, version)


def _pack(
    kind: int,
    body_len: int,
    *,
    method: int = 0,
    request_id: int = 0,
    n_out: int = 0,
    n_into: int = 0,
    data_len: int = 0,
    status: int = 0,
    deadline_ms: int = 0,
) -> bytes:
    return HEADER.pack(
        MAGIC, PROTOCOL_MAX, kind, method, 0, request_id, body_len, n_out, n_into, data_len, status, deadline_ms
    )


def parse_segments(header: Header, table: Buffer) -> tuple[list[Segment], list[Segment], int]:
    """The out and into segments of a request and the sum of their lengths. Raises PROTOCOL or TOO_LARGE."""
    rows: list[Segment] = list(SEGMENT.iter_unpack(table))
    total = 0
    inline = 0
    n_out = header.n_out
    for index, (region, length, offset) in enumerate(rows):
        total += length
        if region == INLINE:
            if offset:
                raise _protocol(f"inline segment {index} has offset {offset}")
            if index < n_out:
                inline += length
    if total > limits.FRAME_DATA_BYTES_MAX:
        raise _too_large("payload of one request", total, limits.FRAME_DATA_BYTES_MAX)
    if inline != header.data_len:
        raise _protocol(f"data_len is {header.data_len}, inline out segments hold {inline}")
    return rows[:n_out], rows[n_out:], total


@functools.lru_cache(maxsize=256)
def _table(count: int) -> struct.Struct:
    return struct.Struct("<" + "IIQ" * count)


def deadline_ms(deadline_s: float) -> int:
    """A deadline as requests carry it; one beyond all bounds is the longest there is."""
    return max(int(min(deadline_s, limits.DEADLINE_S_MAX) * 1000), 1)


def pack_request(
    method: int, request_id: int, out: Sequence[Segment], into: Sequence[Segment], body_len: int, deadline_ms: int
) -> bytes:
    """Header and segment table; body and inline data follow. Raises TOO_LARGE."""
    n_out, n_into = len(out), len(into)
    if n_out + n_into > limits.FRAME_SEGMENTS_MAX:
        raise _too_large("segment count", n_out + n_into, limits.FRAME_SEGMENTS_MAX)
    if body_len > limits.FRAME_BODY_BYTES_MAX:
        raise _too_large("body_len", body_len, limits.FRAME_BODY_BYTES_MAX)
    flat: list[int] = []
    total = inline = 0
    for segment in out:
        flat += segment
        total += segment[1]
        if segment[0] == INLINE:
            inline += segment[1]
    for segment in into:
        flat += segment
        total += segment[1]
    if total > limits.FRAME_DATA_BYTES_MAX:
        raise _too_large("payload of one request", total, limits.FRAME_DATA_BYTES_MAX)
    head = HEADER.pack(
        MAGIC, PROTOCOL_MAX, _REQUEST, method, 0, request_id, body_len, n_out, n_into, inline, 0, deadline_ms
    )  # fmt: skip
    return head + _table(n_out + n_into).pack(*flat) if flat else head


def pack_reply(request_id: int, pushed: Sequence[int], body_len: int, data_len: int) -> bytes:
    """Header and pushed lengths of a success; body and inline data follow. Raises TOO_LARGE for an over-long body."""
    if body_len > limits.FRAME_BODY_BYTES_MAX:
        raise _too_large("body_len", body_len, limits.FRAME_BODY_BYTES_MAX)
    head = HEADER.pack(MAGIC, PROTOCOL_MAX, _REPLY, 0, 0, request_id, body_len, 0, len(pushed), data_len, 0, 0)
    return head + struct.pack(f"<{len(pushed)}I", *pushed) if pushed else head


def pack_failure(request_id: int, code: int, message: str) -> bytes:
    """A whole reply that says why not."""
    text = message.encode("utf-8", "replace")[:MESSAGE_BYTES_MAX]
    return _pack(Kind.REPLY, len(text), request_id=request_id, status=code) + text


def parse_pushed(header: Header, table: Buffer, rooms: Sequence[int]) -> tuple[int, ...]:
    """Pushed lengths of a reply, none longer than the room that was offered. Raises PROTOCOL."""
    pushed: tuple[int, ...] = struct.unpack(f"<{header.n_into}I", table)
    if len(pushed) > len(rooms):
        raise _protocol(f"reply pushed {len(pushed)} pieces, {len(rooms)} were offered")
    for index, length in enumerate(pushed):
        if length > rooms[index]:
            raise _protocol(f"reply pushed {length} bytes into piece {index} of {rooms[index]}")
    return pushed


def pack_hello(hello: Hello) -> bytes:
    cluster, host = hello.cluster_id.encode(), hello.host_id.encode()
    if len(cluster) > NAME_BYTES_MAX or len(host) > NAME_BYTES_MAX:
        raise _too_large("cluster or host id", max(len(cluster), len(host)), NAME_BYTES_MAX)
    fixed = _HELLO.pack(
        hello.protocol_min, hello.protocol_max, int(hello.links), hello.client_id, hello.requests_max,
        hello.data_bytes_max, len(cluster), len(host),
    )  # fmt: skip
    return _pack(Kind.HELLO, len(fixed) + len(cluster) + len(host)) + fixed + cluster + host


def parse_hello(body: Buffer) -> Hello:
    """Raises PROTOCOL."""
    if len(body) < _HELLO.size:
        raise _protocol(f"HELLO of {len(body)} bytes, {_HELLO.size} needed")
    low, high, links, client_id, requests_max, data_max, cluster_len, host_len = _HELLO.unpack_from(body)
    if len(body) < _HELLO.size + cluster_len + host_len:
        raise _protocol("HELLO is shorter than the names in it")
    names = bytes(body[_HELLO.size :])
    try:
        cluster = names[:cluster_len].decode()
        host = names[cluster_len : cluster_len + host_len].decode()
    except UnicodeDecodeError as exc:
        raise _protocol("a name in HELLO is not UTF-8") from exc
    # Links that this release does not know are offers it does not take.
    known = LinkKind(links & _LINKS)
    return Hello(cluster, client_id, host, known, low, high, requests_max, data_max)


def choose(hello: Hello, cluster_id: str, links: LinkKind) -> Welcome:
    """The server's answer to HELLO. Raises VERSION_MISMATCH, WRONG_CLUSTER or PROTOCOL (no link in common)."""
    if hello.protocol_min > PROTOCOL_MAX or hello.protocol_max < PROTOCOL_MIN:
        raise error(
            Code.VERSION_MISMATCH,
            f"client speaks protocol {hello.protocol_min} to {hello.protocol_max}, "
            f"server {PROTOCOL_MIN} to {PROTOCOL_MAX}",
        )
    if hello.cluster_id != cluster_id:
        raise error(Code.WRONG_CLUSTER, f"client is of cluster {hello.cluster_id!r}, server of {cluster_id!r}")
    common = hello.links & links
    if not common:
        raise _protocol("client and server have no link in common")
    return Welcome(
        min(hello.protocol_max, PROTOCOL_MAX),
        next(link for link in (LinkKind.SHM, LinkKind.RDMA, LinkKind.TCP) if link in common),
        min(max(hello.requests_max, 1), limits.CONNECTION_REQUESTS_MAX),
        limits.CONNECTION_DATA_BYTES_MAX,
    )


def pack_welcome(welcome: Welcome) -> bytes:
    body = _WELCOME.pack(welcome.version, int(welcome.link), welcome.requests_max, welcome.data_bytes_max)
    return _pack(Kind.WELCOME, len(body)) + body


def pack_frame(kind: Kind, body: bytes, status: int = 0) -> bytes:
    """A frame of a header and a body, without data."""
    return _pack(kind, len(body), status=status) + body


def pack_refuse(code: int, message: str) -> bytes:
    text = message.encode("utf-8", "replace")[:MESSAGE_BYTES_MAX]
    return _pack(Kind.REFUSE, len(text), status=code) + text


def parse_answer(header: Header, body: Buffer) -> Welcome:
    """The server's answer to our HELLO; a REFUSE raises the error that it names."""
    if header.kind == Kind.REFUSE:
        raise error(header.status or Code.PROTOCOL, bytes(body).decode("utf-8", "replace"))
    if header.kind != Kind.WELCOME or len(body) < _WELCOME.size:
        raise _protocol(f"expected WELCOME, got a frame of kind {header.kind} and {len(body)} bytes")
    version, link, requests_max, data_max = _WELCOME.unpack_from(body)
    if link not in (LinkKind.TCP, LinkKind.SHM, LinkKind.RDMA):
        raise _protocol(f"server chose unknown link {link}")
    if not PROTOCOL_MIN <= version <= PROTOCOL_MAX:
        raise error(Code.VERSION_MISMATCH, f"server chose protocol {version}")
    return Welcome(version, LinkKind(link), max(requests_max, 1), data_max)


def pack_register(region: int, length: int) -> bytes:
    """To be sent with one memfd of at least `length` bytes, sealed against shrinking."""
    return _pack(Kind.REGISTER, _REGION.size) + _REGION.pack(region, 0, length)


def pack_withdraw(region: int) -> bytes:
    return _pack(Kind.WITHDRAW, _REGION.size) + _REGION.pack(region, 0, 0)


def parse_region(body: Buffer) -> tuple[int, int]:
    """(region, length) of REGISTER or WITHDRAW. Raises PROTOCOL or TOO_LARGE."""
    if len(body) != _REGION.size:
        raise _protocol(f"region frame of {len(body)} bytes, {_REGION.size} needed")
    region, _, length = _REGION.unpack(body)
    if region == INLINE:
        raise _protocol("the inline number cannot be registered")
    if length > limits.REGION_BYTES_MAX:
        raise _too_large("region", length, limits.REGION_BYTES_MAX)
    return region, length
