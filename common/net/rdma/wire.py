"""The rdma frames' bodies, packed and parsed; touches no device. Byte pictures: docs/format/data_link.md."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import REGION_BYTES_MAX, MiB
from fireflyfs.common.net.frame import INLINE, MESSAGE_BYTES_MAX, Buffer, Kind, pack_frame
from fireflyfs.common.net.rdma.credits import RECEIVE_BYTES, WINDOW, WINDOW_MIN

PROBE_BYTES: Final = 32  # read by the server, and as many written behind them
MESSAGE_HEADER: Final = struct.Struct("<II")  # messages that the peer may have sent in all, bytes that follow
MESSAGE_HEADER_BYTES: Final = 8
_PARAMETERS: Final = struct.Struct("<II16sHBBBxHI")
_EXPOSE: Final = struct.Struct("<IIQQ")
_PROBE: Final = struct.Struct("<QI")
_MTUS: Final = range(1, 6)
_READS_MAX: Final = 255
_RECEIVE_BYTES: Final = range(512, MiB + 1)


class Parameters(NamedTuple):
    """One end of a reliable connection, as the other needs to know it."""

    queue_pair: int  # 24 bits
    first_packet: int  # 24 bits
    gid: str  # eight groups of four hexadecimal digits
    lid: int
    mtu: int  # 1: 256 bytes ... 5: 4096
    reads_out: int  # READs that this end has in flight at most
    reads_in: int  # READs that it answers at once
    receives: int = WINDOW  # messages that it takes before it has granted any
    receive_bytes: int = RECEIVE_BYTES  # the longest of them


class Exposed(NamedTuple):
    """A region of the client that the server may READ and WRITE."""

    region: int
    rkey: int
    length: int
    address: int


def pack_parameters(mine: Parameters) -> bytes:
    gid = bytes.fromhex(mine.gid.replace(":", ""))
    body = _PARAMETERS.pack(
        mine.queue_pair, mine.first_packet, gid, mine.lid, mine.mtu,
        min(mine.reads_out, _READS_MAX), min(mine.reads_in, _READS_MAX), mine.receives, mine.receive_bytes,
    )  # fmt: skip
    return pack_frame(Kind.CONNECT, body)


def parse_parameters(body: Buffer) -> Parameters:
    """Raises PROTOCOL."""
    if len(body) != _PARAMETERS.size:
        raise error(Code.PROTOCOL, f"CONNECT of {len(body)} bytes, {_PARAMETERS.size} needed")
    queue_pair, first_packet, raw, lid, mtu, reads_out, reads_in, receives, receive_bytes = _PARAMETERS.unpack(body)
    if queue_pair >> 24 or first_packet >> 24 or mtu not in _MTUS:
        raise error(Code.PROTOCOL, f"CONNECT with queue pair {queue_pair}, packet {first_packet}, MTU {mtu}")
    if not reads_out and not reads_in:
        raise error(Code.PROTOCOL, "CONNECT of an end that can neither begin nor answer a READ")
    if receives < WINDOW_MIN or receive_bytes not in _RECEIVE_BYTES:
        raise error(Code.PROTOCOL, f"CONNECT of an end with {receives} buffers of {receive_bytes} bytes")
    digits = raw.hex()
    gid = ":".join(digits[i : i + 4] for i in range(0, 32, 4))
    reads_out, reads_in = max(reads_out, 1), max(reads_in, 1)
    return Parameters(queue_pair, first_packet, gid, lid, mtu, reads_out, reads_in, receives, receive_bytes)


def pack_refusal(kind: Kind, code: int, message: str) -> bytes:
    """The answer to CONNECT or PROBE that says why not: the connection goes on without rdma."""
    return pack_frame(kind, message.encode("utf-8", "replace")[:MESSAGE_BYTES_MAX], status=code)


def pack_expose(exposed: Exposed) -> bytes:
    return pack_frame(Kind.EXPOSE, _EXPOSE.pack(exposed.region, exposed.rkey, exposed.length, exposed.address))


def parse_expose(body: Buffer) -> Exposed:
    """Raises PROTOCOL or TOO_LARGE."""
    if len(body) != _EXPOSE.size:
        raise error(Code.PROTOCOL, f"EXPOSE of {len(body)} bytes, {_EXPOSE.size} needed")
    exposed = Exposed(*_EXPOSE.unpack(body))
    if exposed.region == INLINE:
        raise error(Code.PROTOCOL, "the inline number cannot be registered")
    if exposed.length > REGION_BYTES_MAX:
        raise error(Code.TOO_LARGE, f"region is {exposed.length}, over the limit of {REGION_BYTES_MAX}")
    if not exposed.length or exposed.address + exposed.length > 1 << 64:
        raise error(Code.PROTOCOL, f"region of {exposed.length} bytes at {exposed.address:#x}")
    return exposed


def pack_probe(address: int, rkey: int) -> bytes:
    return pack_frame(Kind.PROBE, _PROBE.pack(address, rkey))


def parse_probe(body: Buffer) -> tuple[int, int]:
    """(address, rkey) of 2 * PROBE_BYTES bytes. Raises PROTOCOL."""
    if len(body) != _PROBE.size:
        raise error(Code.PROTOCOL, f"PROBE of {len(body)} bytes, {_PROBE.size} needed")
    address, rkey = _PROBE.unpack(body)
    if address + 2 * PROBE_BYTES > 1 << 64:
        raise error(Code.PROTOCOL, f"a probe at {address:#x}")
    return address, rkey


def parse_message(message: memoryview) -> tuple[int, memoryview]:
    """(messages granted in all, the part of the stream that it carries). Raises PROTOCOL."""
    if len(message) < MESSAGE_HEADER_BYTES:
        raise error(Code.PROTOCOL, f"a message of {len(message)} bytes, {MESSAGE_HEADER_BYTES} needed")
    granted, length = MESSAGE_HEADER.unpack_from(message)
    if length != len(message) - MESSAGE_HEADER_BYTES:
        raise error(Code.PROTOCOL, f"a message of {len(message)} bytes says that {length} follow its header")
    return granted, message[MESSAGE_HEADER_BYTES:]
