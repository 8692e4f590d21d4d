"""Keys and records of the lock tables, all under `L`; the byte pictures stand in docs/format/meta_records.md.

| prefix | rest | value | what |
|---|---|---|---|
| `LH` | inode id, kind, client id, owner | held record | what one owner has locked of one inode |
| `LO` | client id, owner, kind, inode id | mark | the same, to be found by its owner |
| `LW` | inode id, kind, ticket | waiter record | a queued request; a scan gives the queue in its order |
| `LB` | client id, owner, inode id, kind, ticket | mark | the same, to be found by its owner |
| `LG` | client id, request id | mark | a queued request that was granted, until its client has heard of it |
| `LN` | client id | count record | a client that has locked something, or waits for a lock |

Numbers in keys are big-endian: kind 1 byte, the others 8. A request id and a client id have 16 bytes.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import NamedTuple

from fireflyfs.common.errors import Code, error
from fireflyfs.common.lock_spans import Span
from fireflyfs.meta.core.keys import ID_BYTES
from fireflyfs.meta.core.locks import Held, Kind, Owner, Waiter

VERSION = 1
MARK = bytes([VERSION])

_HELD = Struct(">2sQB16sQ")
_QUEUE = Struct(">2sQB")
_WAITER = Struct(">2sQBQ")
_OWNER = Struct(">2s16sQ")
_OWNED = Struct(">2s16sQBQ")
_BLOCKED = Struct(">2s16sQQBQ")

_HELD_VALUE = Struct("<BII")  # version, pid, spans
_SPAN = Struct("<QQB")  # start, end, write
_WAITER_VALUE = Struct("<B16s16sQIQQBq")  # version, request id, client id, owner, pid, start, end, write, since
_COUNT_VALUE = Struct("<BIIq")  # version, spans, waiters, when the last change was made


class Count(NamedTuple):
    """Of one client: locked ranges, queued requests, and when it asked for one last."""

    spans: int
    waiters: int
    changed_ns: int


def held(inode: int, kind: Kind, owner: Owner) -> bytes:
    return _HELD.pack(b"LH", inode, kind, *owner)


def held_of(inode: int, kind: Kind) -> tuple[bytes, bytes]:
    """The range of all owners of an inode."""
    begin = _QUEUE.pack(b"LH", inode, kind)
    return begin, begin + b"\xff" * 25


def owner_of_held(key: bytes) -> Owner:
    return Owner(*_HELD.unpack(key)[3:])


def owned(owner: Owner, kind: Kind, inode: int) -> bytes:
    return _OWNED.pack(b"LO", *owner, kind, inode)


def owned_by_client(client_id: bytes) -> tuple[bytes, bytes]:
    return b"LO" + client_id, b"LO" + client_id + b"\xff" * 18


def unpack_owned(key: bytes) -> tuple[Owner, Kind, int]:
    """(owner, kind, inode)"""
    _, client_id, number, kind, inode = _OWNED.unpack(key)
    return Owner(client_id, number), Kind(kind), inode


def waiter(inode: int, kind: Kind, ticket: int) -> bytes:
    return _WAITER.pack(b"LW", inode, kind, ticket)


def queue(inode: int, kind: Kind) -> tuple[bytes, bytes]:
    begin = _QUEUE.pack(b"LW", inode, kind)
    return begin, begin + b"\xff" * 9


def ticket_of(key: bytes) -> int:
    return int(_WAITER.unpack(key)[3])


def blocked(owner: Owner, inode: int, kind: Kind, ticket: int) -> bytes:
    return _BLOCKED.pack(b"LB", *owner, inode, kind, ticket)


def blocked_of(owner: Owner) -> tuple[bytes, bytes]:
    begin = _OWNER.pack(b"LB", *owner)
    return begin, begin + b"\xff" * 18


def blocked_of_client(client_id: bytes) -> tuple[bytes, bytes]:
    return b"LB" + client_id, b"LB" + client_id + b"\xff" * 26


def unpack_blocked(key: bytes) -> tuple[Owner, int, Kind, int]:
    """(owner, inode, kind, ticket)"""
    _, client_id, number, inode, kind, ticket = _BLOCKED.unpack(key)
    return Owner(client_id, number), inode, Kind(kind), ticket


def granted(client_id: bytes, request_id: bytes) -> bytes:
    return b"LG" + client_id + request_id


def granted_to(client_id: bytes) -> tuple[bytes, bytes]:
    return b"LG" + client_id, b"LG" + client_id + b"\xff" * (ID_BYTES + 1)


def grants(after: bytes) -> tuple[bytes, bytes]:
    """Of all clients behind `after`."""
    return b"LG" + after + b"\xff" * (ID_BYTES + 1) if after else b"LG", b"LH"


def client_of_granted(key: bytes) -> bytes:
    return key[2 : 2 + ID_BYTES]


def request_of_granted(key: bytes) -> bytes:
    return key[2 + ID_BYTES :]


def count(client_id: bytes) -> bytes:
    return b"LN" + client_id


def counts(after: bytes) -> tuple[bytes, bytes]:
    """Of all clients behind `after`."""
    return b"LN" + after + b"\0" if after else b"LN", b"LO"


def client_of_count(key: bytes) -> bytes:
    return key[2:]


def pack_held(value: Held) -> bytes:
    head = _HELD_VALUE.pack(VERSION, value.pid, len(value.spans))
    return head + b"".join([_SPAN.pack(*span) for span in value.spans])


def unpack_held(owner: Owner, data: bytes) -> Held:
    """Raises VERSION_MISMATCH, and IO_ERROR for a record that makes no sense."""
    try:
        version, pid, spans = _HELD_VALUE.unpack_from(data)
        _known(version)
        body = data[_HELD_VALUE.size :]
        if len(body) != spans * _SPAN.size:
            raise struct_error
        return Held(owner, pid, tuple([Span(s, e, bool(w)) for s, e, w in _SPAN.iter_unpack(body)]))
    except struct_error as exc:
        raise error(Code.IO_ERROR, "the stored record of a lock is damaged") from exc


def pack_waiter(value: Waiter) -> bytes:
    return _WAITER_VALUE.pack(
        VERSION, value.request_id, *value.owner, value.pid, *value.span, value.since_ns
    )  # fmt: skip


def unpack_waiter(ticket: int, data: bytes) -> Waiter:
    """Raises VERSION_MISMATCH, and IO_ERROR for a record that makes no sense."""
    try:
        version, request_id, client_id, number, pid, start, end, write, since_ns = _WAITER_VALUE.unpack(data)
    except struct_error as exc:
        raise error(Code.IO_ERROR, "the stored record of a queued lock is damaged") from exc
    _known(version)
    return Waiter(ticket, request_id, Owner(client_id, number), pid, Span(start, end, bool(write)), since_ns)


def pack_count(value: Count) -> bytes:
    return _COUNT_VALUE.pack(VERSION, *value)


def unpack_count(data: bytes) -> Count:
    try:
        version, spans, waiters, changed_ns = _COUNT_VALUE.unpack(data)
    except struct_error as exc:
        raise error(Code.IO_ERROR, "the stored count of a client's locks is damaged") from exc
    _known(version)
    return Count(spans, waiters, changed_ns)


def _known(version: int) -> None:
    if version != VERSION:
        raise error(Code.VERSION_MISMATCH, f"a lock has record version {version}, this release reads version {VERSION}")
