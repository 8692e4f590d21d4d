"""Keys and stored form of mgmtd's records. `docs/format/mgmtd_records.md` has the byte picture."""

from __future__ import annotations

import struct

import crc32c

from fireflyfs.common.errors import Code, error

MAGIC = b"FFMG"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<4sHHII")  # magic, format version, 0, payload bytes, CRC32C of the payload

# Every key of mgmtd. All begin with this prefix, so that a store may be shared with others.
PREFIX = b"mgmtd/"
CLUSTER = PREFIX + b"cluster"  # ClusterInfo: the cluster id, written once
VERSION = PREFIX + b"version"  # ClusterInfo.routing_version: none above it was ever published
NODES = PREFIX + b"node/"  # + node id, u32 big-endian: NodeInfo, as NodeRecord.durable says
TARGETS = PREFIX + b"target/"  # + target id, u64: TargetInfo
CHAINS = PREFIX + b"chain/"  # + chain id, u32: ChainInfo
TABLES = PREFIX + b"table/"  # + table id, u32: ChainTableInfo, newest version
CONFIGS = PREFIX + b"config/"  # + node type, u8, + version, u64: ConfigInfo


def node_key(node_id: int) -> bytes:
    return NODES + struct.pack(">I", node_id)


def target_key(target_id: int) -> bytes:
    return TARGETS + struct.pack(">Q", target_id)


def chain_key(chain_id: int) -> bytes:
    return CHAINS + struct.pack(">I", chain_id)


def table_key(table_id: int) -> bytes:
    return TABLES + struct.pack(">I", table_id)


def config_key(node_type: int, version: int) -> bytes:
    return CONFIGS + struct.pack(">BQ", node_type, version)


def end_of(prefix: bytes) -> bytes:
    """The first key behind all keys that begin with `prefix`."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def pack(payload: bytes) -> bytes:
    """`payload` (a protobuf message) as a stored value."""
    return _HEADER.pack(MAGIC, FORMAT_VERSION, 0, len(payload), crc32c.crc32c(payload)) + payload


def unpack(key: bytes, value: bytes) -> bytes:
    """The payload. Raises VERSION_MISMATCH for a newer format, CHECKSUM for anything that is not what was stored."""
    if len(value) < _HEADER.size:
        raise error(Code.CHECKSUM, f"record {key!r} has {len(value)} bytes, fewer than its header")
    magic, version, _, length, checksum = _HEADER.unpack_from(value)
    if magic != MAGIC:
        raise error(Code.CHECKSUM, f"record {key!r} does not begin with {MAGIC!r}")
    if version > FORMAT_VERSION:
        raise error(
            Code.VERSION_MISMATCH,
            f"record {key!r} has format version {version}; this release reads up to {FORMAT_VERSION}",
        )
    payload = value[_HEADER.size :]
    if len(payload) != length or crc32c.crc32c(payload) != checksum:
        raise error(Code.CHECKSUM, f"record {key!r} does not match its length and checksum")
    return payload
