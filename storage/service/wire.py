"""Packed requests of the data link as objects, and back; what makes no sense is refused before anything is done."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import (
    CACHE_KEY_BYTES_MAX,
    CACHE_KEY_BYTES_MIN,
    CHUNK_BYTES_MAX,
    CHUNK_EXTENTS_MAX,
    FRAME_SEGMENTS_MAX,
    READ_ITEMS_MAX,
    UPDATE_ITEMS_MAX,
)
from fireflyfs.proto.storage_wire import (
    EXTENT,
    NAMED_TAIL,
    READ_IO,
    READ_RESULT,
    UPDATE_HEADER,
    UPDATE_ITEM,
    UPDATE_NAME,
    UPDATE_RESULT,
    UpdateFlag,
    UpdateKind,
)
from fireflyfs.storage.engine.interface import CacheName, ChunkKey, Extent, Writer

_HEADER = struct.Struct("<II16sQIIII")
_ITEM = struct.Struct("<QQQHHIIIQ")
_EXTENT = struct.Struct("<IIII")
_RESULT = struct.Struct("<IIQII")
_ARRAYS = (UPDATE_HEADER, UPDATE_ITEM, EXTENT, UPDATE_RESULT)
assert [packed.size for packed in (_HEADER, _ITEM, _EXTENT, _RESULT)] == [array.itemsize for array in _ARRAYS]
_EMPTY = memoryview(b"")


class Result(NamedTuple):
    """What becomes of one chunk of an update: the fields of UPDATE_RESULT."""

    code: Code
    chain_version: int
    version: int
    length: int
    crc32c: int


def failed(code: Code) -> Result:
    return Result(code, 0, 0, 0, 0)


@dataclass(slots=True)
class Item:
    """One chunk of an update. `extents` carry the data once it was pulled."""

    key: ChunkKey
    kind: UpdateKind
    version: int
    chunk_size: int
    length: int
    crc32c: int = 0
    extents: list[Extent] = field(default_factory=list)
    base: int = 0  # a forwarded REPLACE: the committed version that it takes the place of
    whole: bool = False  # forwarded as the whole stored pending content, whatever `extents` say
    seen: tuple[int, Writer] | None = None  # at the head: only over this committed version of this writer
    name: CacheName | None = None  # of a block of the KV cache


@dataclass(slots=True)
class UpdateRequest:
    """One STORAGE_WRITE or STORAGE_UPDATE."""

    chain_id: int
    chain_version: int
    writer: Writer
    flags: int
    items: list[Item]
    data_bytes: int = 0
    capacity_bytes: int = 0  # of the namespace of its blocks, on this chain; 0: not bounded

    def attach(self, pieces: Sequence[memoryview]) -> None:
        """Give each extent its pulled data, in order."""
        place = 0
        for item in self.items:
            for number, extent in enumerate(item.extents):
                item.extents[number] = Extent(extent.offset, pieces[place], extent.crc32c)
                place += 1


def decode_update(body: memoryview, pull_lengths: Sequence[int], *, from_client: bool) -> UpdateRequest:
    """Raises PROTOCOL and TOO_LARGE. The extents have no data yet: see `attach`."""
    if len(body) < _HEADER.size:
        raise error(Code.PROTOCOL, f"an update of {len(body)} bytes has no header")
    chain_id, chain_version, client_id, sequence, channel, n_items, n_extents, flags = _HEADER.unpack_from(body)
    if n_items > UPDATE_ITEMS_MAX or n_extents > FRAME_SEGMENTS_MAX:
        raise error(Code.TOO_LARGE, f"{n_items} chunks in {n_extents} extents; at most {UPDATE_ITEMS_MAX} chunks")
    extents_at = _HEADER.size + n_items * _ITEM.size
    names_at = extents_at + n_extents * _EXTENT.size
    expected = names_at
    if flags & UpdateFlag.NAMED:
        expected += n_items * UPDATE_NAME.itemsize + NAMED_TAIL.itemsize
    if len(body) != expected:
        raise error(Code.PROTOCOL, f"an update of {len(body)} bytes, its counts say {expected}")
    if len(pull_lengths) != n_extents:
        raise error(Code.PROTOCOL, f"{len(pull_lengths)} pieces of data for {n_extents} extents")
    rows = _ITEM.iter_unpack(body[_HEADER.size : extents_at])
    extents = list(_EXTENT.iter_unpack(body[extents_at:names_at]))
    names: Iterable[CacheName | None] = itertools.repeat(None, n_items)
    capacity_bytes = 0
    if flags & UpdateFlag.NAMED:
        names = _names(body, n_items, names_at)
        capacity_bytes = int.from_bytes(body[-NAMED_TAIL.itemsize :], "little")
    items: list[Item] = []
    place = 0
    # Few rows as a rule: for those, struct costs less than numpy.
    for (inode, index, version, kind, count, chunk_size, length, crc32c, base), name in zip(rows, names, strict=True):
        mine = extents[place : place + count]
        if len(mine) != count:
            raise error(Code.PROTOCOL, "the items name more extents than there are")
        lengths = pull_lengths[place : place + count]
        place += count
        if kind not in _KINDS:
            raise error(Code.PROTOCOL, f"unknown kind of update {kind}")
        if from_client and (version or kind in (UpdateKind.REPLACE, UpdateKind.DAMAGED)):
            raise error(Code.PROTOCOL, "a client's update has no version and replaces no whole chunk")
        _check_item(kind, count, chunk_size, length, mine, lengths)
        if (kind == UpdateKind.PUT and name is None) or (name is not None and kind not in _MAY_BE_NAMED):
            raise error(Code.PROTOCOL, f"an update of kind {kind} {'with' if name else 'without'} a name")
        data = [Extent(offset, _EMPTY, crc) for offset, _, crc, _ in mine]
        key = ChunkKey(inode, index)
        items.append(Item(key, _KINDS[kind], version, chunk_size, length, crc32c, data, base, False, None, name))
    if place != n_extents:
        raise error(Code.PROTOCOL, f"the items name {place} of {n_extents} extents")
    if len(items) > 1 and len({item.key for item in items}) != len(items):
        raise error(Code.PROTOCOL, "an update names a chunk twice")
    writer = Writer(client_id, channel, sequence)
    return UpdateRequest(chain_id, chain_version, writer, flags, items, sum(pull_lengths), capacity_bytes)


_KINDS = {int(kind): kind for kind in UpdateKind}
_CODES = {int(code): code for code in Code}
_MAY_BE_NAMED = frozenset({UpdateKind.PUT, UpdateKind.REPLACE, UpdateKind.DAMAGED})


def _names(body: memoryview, count: int, at: int) -> list[CacheName | None]:
    names: list[CacheName | None] = []
    for length, expires_unix_s, key in np.frombuffer(body, UPDATE_NAME, count, at).tolist():
        if length and not CACHE_KEY_BYTES_MIN <= length <= CACHE_KEY_BYTES_MAX:
            raise error(
                Code.PROTOCOL, f"a key of {length} bytes, {CACHE_KEY_BYTES_MIN} to {CACHE_KEY_BYTES_MAX} are taken"
            )
        names.append(CacheName(key[:length], expires_unix_s) if length else None)
    return names


def _check_item(
    kind: int,
    count: int,
    chunk_size: int,
    length: int,
    extents: Sequence[tuple[int, int, int, int]],
    pulled: Sequence[int],
) -> None:
    if not 0 < chunk_size <= CHUNK_BYTES_MAX or chunk_size & (chunk_size - 1):
        raise error(Code.PROTOCOL, f"a chunk size of {chunk_size} bytes")
    if count > CHUNK_EXTENTS_MAX:
        raise error(Code.TOO_LARGE, f"{count} extents in one chunk, at most {CHUNK_EXTENTS_MAX}")
    for (offset, size, _, _), there in zip(extents, pulled, strict=True):
        if size != there:
            raise error(Code.PROTOCOL, f"an extent of {size} bytes with {there} bytes of data")
        if size == 0 or offset + size > chunk_size:
            raise error(Code.PROTOCOL, f"an extent [{offset}, {offset + size}) in a chunk of {chunk_size} bytes")
    if kind == UpdateKind.WRITE:
        good = count >= 1
    elif kind == UpdateKind.PUT:
        ends = itertools.accumulate(size for _, size, _, _ in extents)
        begins = [offset for offset, _, _, _ in extents]
        good = count >= 1 and begins == [0, *list(ends)[:-1]]
    elif kind == UpdateKind.REPLACE:
        good = (count == 0 and length == 0) or (count == 1 and extents[0][0] == 0 and extents[0][1] == length)
    else:
        good = count == 0 and length <= chunk_size
    if not good:
        raise error(Code.PROTOCOL, f"extents that do not fit an update of kind {kind}")


def encode_update(
    chain_id: int,
    chain_version: int,
    writer: Writer,
    flags: int,
    items: Sequence[Item],
    capacity_bytes: int = 0,
) -> tuple[bytes, list[memoryview]]:
    """Body and data of an update to a successor. The data is that of the items: nothing is copied."""
    names = b""
    if any(item.name is not None for item in items):
        flags |= UpdateFlag.NAMED
        named = [item.name or CacheName(b"", 0) for item in items]
        table = np.zeros(len(items), UPDATE_NAME)
        table["key_length"] = [len(name.key) for name in named]
        table["expires_unix_s"] = [name.expires_unix_s for name in named]
        table["key"] = np.array([name.key for name in named], "S64").view("V64")
        names = table.tobytes() + capacity_bytes.to_bytes(NAMED_TAIL.itemsize, "little")
    else:
        flags &= ~UpdateFlag.NAMED
    rows = [
        _ITEM.pack(
            *item.key,
            item.version,
            item.kind,
            len(item.extents),
            item.chunk_size,
            item.length,
            item.crc32c,
            item.base,
        )
        for item in items
    ]
    pieces = [extent.data for item in items for extent in item.extents]
    extents = [
        _EXTENT.pack(extent.offset, len(extent.data), extent.crc32c, 0) for item in items for extent in item.extents
    ]
    header = _HEADER.pack(
        chain_id,
        chain_version,
        writer.client_id,
        writer.sequence,
        writer.channel,
        len(items),
        len(pieces),
        flags,
    )
    return b"".join([header, *rows, *extents, names]), pieces


def encode_results(results: Iterable[Result]) -> bytes:
    return b"".join([_RESULT.pack(*result) for result in results])


def decode_results(body: bytes | memoryview, count: int) -> list[Result]:
    """Raises PROTOCOL."""
    if len(body) != count * _RESULT.size:
        raise error(Code.PROTOCOL, f"an answer of {len(body)} bytes for {count} chunks")
    return [
        Result(_CODES.get(code, Code.INTERNAL), chain_version, version, length, crc)
        for code, chain_version, version, length, crc in _RESULT.iter_unpack(body)
    ]


def decode_reads(body: memoryview, push_lengths: Sequence[int]) -> list[tuple[int, int, int, int, int, int]]:
    """(inode, index, chain id, chain version, offset, length) of each read. Raises PROTOCOL and TOO_LARGE."""
    count, rest = divmod(len(body), READ_IO.itemsize)
    if rest or count != len(push_lengths):
        raise error(Code.PROTOCOL, f"{len(body)} bytes of reads for {len(push_lengths)} pieces of memory")
    if count > READ_ITEMS_MAX:
        raise error(Code.TOO_LARGE, f"{count} reads, at most {READ_ITEMS_MAX}")
    reads: list[tuple[int, int, int, int, int, int]] = np.frombuffer(body, READ_IO, count).tolist()
    return reads


def encode_reads(results: Sequence[tuple[int, int, int, int, int]]) -> bytes:
    """Rows of (status, length, version, crc32c, chunk length)."""
    return np.array(results, READ_RESULT).tobytes()
