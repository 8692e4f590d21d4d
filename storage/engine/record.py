"""The record of one version of a chunk, as RocksDB holds it. docs/format/chunk_store.md has the byte picture.

A record is self-contained: where the bytes are (size class and block), how they are checked (a CRC32C for each unit),
what lies over them (deltas that are not in the block yet), and whose update it was. It carries format, length of its
parts and a CRC32C over itself. Keys:

    c inode index           committed version
    p inode index           pending version
    d inode index id        bytes of a delta that a record names by id (those of a patch are in a block instead)
    u epoch inode index     the committed record that a commit in `epoch` replaced; empty: the chunk did not exist
    q inode index n         a damaged record, after its reason; n 0: the chunk is damaged now
    w client channel        a writer's newest request: see writers.py
    m name                  about the whole store
Integers in keys are big-endian, 64 bits, so that keys sort as (inode, index).
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import Any, NamedTuple

from crc32c import crc32c

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.storage.engine.deltas import NO_DELTAS, PATCH, REF_BYTES, Deltas, place_of
from fireflyfs.storage.engine.interface import CacheName, ChunkKey, Version, Writer
from fireflyfs.storage.engine.newest import Parsed

RECORD_FORMAT = 1
NAMED_FORMAT = 2  # of records with a name: the newest that this release reads
BLOCK_SHIFT_MIN = 12  # 4 KiB
BLOCK_SHIFT_MAX = 26  # 64 MiB
FLAG_REMOVED = 1
FLAG_DAMAGED = 2  # the bytes are lost: never read, whatever is in the block
FLAG_NAMED = 4  # a block of the KV cache: key, expiry and length of the key stand before the checksum
PARSED_RECORDS_MAX = 2048  # kept in both forms: under 2 KiB each with chunks of 1 MiB, 32 KiB with chunks of 64 MiB

_HEADER = struct.Struct("<BBBBIIIIIHHQQQII16s")
_KEY = struct.Struct(">QQ")
_CRC = struct.Struct("<I")
_CONTENT = struct.Struct("<II")  # at byte 8: length, crc32c
_NAME_END = struct.Struct("<IB")  # expires_unix_s, bytes of the key before it
HEADER_BYTES = _HEADER.size
_FLAGS_AT = 1
_EPOCH_AT = 36
_CHAIN_VERSION_AT = 52

COMMITTED, PENDING, DELTA, UNDO, QUARANTINE, META, WRITERS = b"c", b"p", b"d", b"u", b"q", b"m", b"w"


class Record(NamedTuple):
    """One version of a chunk. Sizes and offsets in bytes."""

    flags: int
    block_shift: int  # log2 of the block's size; 0: no block (length is 0)
    unit_shift: int  # log2 of the bytes under one checksum
    chunk_size: int
    length: int
    crc: int  # of bytes [0, length), deltas applied
    written: int  # highest end ever written in the block: only bytes from there on may be appended in place
    block: int  # number within its size class
    version: int
    epoch: int  # of the store when it was committed; 0 while pending
    sequence: int
    chain_version: int
    channel: int
    client_id: bytes
    crcs: array[int]  # of each unit, deltas applied; the last unit may be short. Shared: never changed in place
    deltas: Deltas
    name: CacheName | None = None  # of a block of the KV cache

    @property
    def removed(self) -> bool:
        return bool(self.flags & FLAG_REMOVED)

    @property
    def damaged(self) -> bool:
        return bool(self.flags & FLAG_DAMAGED)

    @property
    def block_place(self) -> tuple[int, int]:
        """(block shift, block); shift 0 where there is none."""
        return self.block_shift, self.block

    def to_version(self) -> Version:
        writer = Writer(self.client_id, self.channel, self.sequence)
        return Version(
            self.version, self.chain_version, self.length, self.crc, writer, self.removed, self.damaged, self.name
        )


_FLAGS_FIELD, _EPOCH_FIELD, _CHAIN_VERSION_FIELD = map(Record._fields.index, ("flags", "epoch", "chain_version"))
_parsed: Parsed[Record] = Parsed(PARSED_RECORDS_MAX)


def unit_shift_of(chunk_size: int) -> int:
    """4 KiB units for chunks to 128 KiB, 8 KiB to 512 KiB, 16 KiB above: a record stays near 300 bytes to 1 MiB."""
    if chunk_size <= 128 * KiB:
        return 12
    return 13 if chunk_size < MiB else 14


def block_shift_of(length: int) -> int:
    """The smallest class whose block holds `length` bytes; 0 for none."""
    return max(BLOCK_SHIFT_MIN, (length - 1).bit_length()) if length else 0


def pack(record: Record) -> bytes:
    name = record.name
    flags = record.flags & ~FLAG_NAMED if name is None else record.flags | FLAG_NAMED
    head = _HEADER.pack(
        RECORD_FORMAT if name is None else NAMED_FORMAT, flags, record.block_shift, record.unit_shift,
        record.chunk_size, record.length, record.crc, record.written, record.block,
        len(record.crcs), len(record.deltas),
        record.version, record.epoch, record.sequence, record.chain_version, record.channel, record.client_id,
    )  # fmt: skip
    body = head + _little_endian(record.crcs).tobytes() + record.deltas.packed
    if name is not None:
        body += name.key + _NAME_END.pack(name.expires_unix_s, len(name.key))
    raw = body + _CRC.pack(crc32c(body))
    _parsed.put(raw, record)
    return raw


def check(raw: bytes) -> None:
    """Raises VERSION_MISMATCH for a newer format and CHECKSUM for a damaged record."""
    if len(raw) < HEADER_BYTES + 4:
        raise error(Code.CHECKSUM, f"a chunk record of {len(raw)} bytes is too short")
    if not RECORD_FORMAT <= raw[0] <= NAMED_FORMAT:
        raise error(
            Code.VERSION_MISMATCH,
            f"chunk record has format {raw[0]}, this release reads {RECORD_FORMAT} to {NAMED_FORMAT}",
        )
    if crc32c(memoryview(raw)[:-4]) != _CRC.unpack_from(raw, len(raw) - 4)[0]:
        raise error(Code.CHECKSUM, "a chunk record does not match its checksum")


def _little_endian(crcs: array[int]) -> array[int]:
    """crcs with their bytes in stored order, which is this host's nearly everywhere."""
    if sys.byteorder == "big":
        crcs = crcs[:]
        crcs.byteswap()
    return crcs


def unpack(raw: bytes) -> Record:
    """The record in raw. Raises as `check`."""
    record = _parsed.get(raw)
    if record is None:
        check(raw)
        record = _parse(raw)
        _parsed.put(raw, record)
    return record


def _parse(raw: bytes) -> Record:
    (
        _, flags, block_shift, unit_shift, chunk_size, length, crc, written, block, crc_count, delta_count,
        version, epoch, sequence, chain_version, channel, client_id,
    ) = _HEADER.unpack_from(raw)  # fmt: skip
    name = name_of(raw)
    name_bytes = _NAME_END.size + len(name.key) if name is not None else 0
    if len(raw) != HEADER_BYTES + 4 * crc_count + REF_BYTES * delta_count + name_bytes + 4:
        raise error(Code.CHECKSUM, "a chunk record has the wrong length")
    end = HEADER_BYTES + 4 * crc_count
    crcs = _little_endian(array("I", raw[HEADER_BYTES:end]))
    deltas = Deltas.unpack(raw[end : end + REF_BYTES * delta_count])
    return Record(
        flags, block_shift, unit_shift, chunk_size, length, crc, written, block,
        version, epoch, sequence, chain_version, channel, client_id, crcs, deltas, name,
    )  # fmt: skip


def stamp(raw: bytes, *, epoch: int | None = None, chain_version: int | None = None, flags: int | None = None) -> bytes:
    """raw with another epoch, chain version or flags, and the checksum to match; nothing else is parsed."""
    changed = bytearray(raw)
    if flags is not None:
        changed[_FLAGS_AT] = flags
    if epoch is not None:
        struct.pack_into("<Q", changed, _EPOCH_AT, epoch)
    if chain_version is not None:
        struct.pack_into("<I", changed, _CHAIN_VERSION_AT, chain_version)
    _CRC.pack_into(changed, len(raw) - 4, crc32c(memoryview(changed)[:-4]))
    stamped = bytes(changed)
    record = _parsed.get(raw)
    if record is not None:
        fields: list[Any] = list(record)  # `_replace` takes three times as long
        for place, value in ((_FLAGS_FIELD, flags), (_EPOCH_FIELD, epoch), (_CHAIN_VERSION_FIELD, chain_version)):
            if value is not None:
                fields[place] = value
        _parsed.put(stamped, Record._make(fields))
    return stamped


def block_of(raw: bytes) -> tuple[int, int]:
    """(block shift, block) of a record without parsing the rest; for the scan at open."""
    return raw[2], int.from_bytes(raw[20:24], "little")


def name_of(raw: bytes) -> CacheName | None:
    """The name of a record that was checked, without parsing the rest; None: of a file's chunk."""
    if not raw[_FLAGS_AT] & FLAG_NAMED:
        return None
    expires_unix_s, length = _NAME_END.unpack_from(raw, len(raw) - 4 - _NAME_END.size)
    end = len(raw) - 4 - _NAME_END.size
    return CacheName(raw[end - length : end], expires_unix_s)


def content_of(raw: bytes) -> tuple[int, int]:
    """(bytes, CRC32C) of the chunk that a record describes, without parsing the rest."""
    length, crc = _CONTENT.unpack_from(raw, 8)
    return length, crc


def is_damaged(raw: bytes) -> bool:
    return bool(raw[_FLAGS_AT] & FLAG_DAMAGED)


def has_deltas(raw: bytes) -> bool:
    return raw[26:28] != b"\0\0"


def blocks_of(raw: bytes) -> list[tuple[int, int]]:
    """Every block that a record names: its own, and those of its patches."""
    own = block_of(raw)
    places = [own] if own[0] else []
    if has_deltas(raw):
        places += [ref.place for ref in unpack(raw).deltas if ref.place is not None]
    return places


def chunk_key(prefix: bytes, key: ChunkKey) -> bytes:
    return prefix + _KEY.pack(*key)


def key_of(raw_key: bytes, at: int = 1) -> ChunkKey:
    """The chunk named in a stored key, whose 16 bytes start at `at`."""
    return ChunkKey(*_KEY.unpack_from(raw_key, at))


def dead_deltas(key: ChunkKey, old: Record, new: Record | None) -> tuple[list[tuple[int, int]], list[bytes]]:
    """What `old` names and `new` does not: the blocks of patches, and the keys of logged deltas."""
    gone = old.deltas.gone_from(new.deltas if new is not None else NO_DELTAS)
    patches = [place_of(name) for name in gone if name & PATCH]
    return patches, [delta_key(key, name) for name in gone if not name & PATCH]


def delta_key(key: ChunkKey, delta_id: int) -> bytes:
    return DELTA + _KEY.pack(*key) + delta_id.to_bytes(8, "big")


def undo_key(epoch: int, key: ChunkKey) -> bytes:
    return UNDO + epoch.to_bytes(8, "big") + _KEY.pack(*key)
