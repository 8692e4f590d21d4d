"""Requests to storage packed, and answers unpacked. Pure: no link, no routing, no waiting.

An `UpdateRequest` is what one STORAGE_WRITE carries: distinct chunks of one chain, each changed by extents.
`plan_write` makes them from spans of files, within the bounds of one request; extents of one chunk that do not fit into
one request come in a later round, so that they are applied in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from fireflyfs.client.striping import FileLayout, chunk_pieces
from fireflyfs.common.errors import Code, error
from fireflyfs.common.limits import CHUNK_EXTENTS_MAX, FRAME_DATA_BYTES_MAX, FRAME_SEGMENTS_MAX, UPDATE_ITEMS_MAX, MiB
from fireflyfs.common.net.api import Piece, Slice
from fireflyfs.proto.storage_wire import (
    EXTENT,
    NAMED_TAIL,
    READ_RESULT,
    UPDATE_HEADER,
    UPDATE_ITEM,
    UPDATE_NAME,
    UPDATE_RESULT,
    UpdateFlag,
    UpdateKind,
)

WRITE_REQUEST_BYTES_MAX = 16 * MiB  # of one request, except for a single larger chunk

_ZEROS = memoryview(bytes(64 * 1024))


def view_of(piece: Piece) -> memoryview:
    """The bytes of a piece."""
    return piece.view if isinstance(piece, Slice) else piece


def part_of(piece: Piece, start: int, length: int) -> Piece:
    """Bytes [start, start + length) of a piece, on the same memory."""
    if isinstance(piece, Slice):
        return Slice(piece.memory, piece.offset + start, length)
    return piece[start : start + length]


def length_of(piece: Piece) -> int:
    return piece.length if isinstance(piece, Slice) else len(piece)


def fill_zeros(view: memoryview) -> None:
    """Make all of `view` zero bytes."""
    total = len(view)
    step = len(_ZEROS)
    if total <= step:
        view[:] = _ZEROS[:total]
        return
    for start in range(0, total, step):
        end = min(start + step, total)
        view[start:end] = _ZEROS[: end - start]


@dataclass(frozen=True, slots=True)
class WriteSpan:
    """`data` belongs at `offset` of the file."""

    file: FileLayout
    offset: int
    data: Piece


@dataclass(slots=True)
class ChunkUpdate:
    """One item of an update request: what becomes of one chunk, and which spans it came from."""

    inode: int
    index: int
    chunk_size: int
    kind: UpdateKind = UpdateKind.WRITE
    length: int = 0
    extents: list[tuple[int, int, Piece]] = field(default_factory=list)  # (offset in the chunk, length, data)
    nbytes: int = 0
    spans: list[int] = field(default_factory=list)
    name: tuple[bytes, int] | None = None  # of a block of the KV cache: its key, and when it expires


@dataclass(slots=True)
class UpdateRequest:
    """Distinct chunks of one chain, changed together."""

    chain_id: int
    items: list[ChunkUpdate]
    nbytes: int
    extents: int
    capacity_bytes: int = 0  # of the namespace of its blocks, on this chain

    def pieces(self) -> list[Piece]:
        return [piece for item in self.items for _, _, piece in item.extents]


def plan_write(spans: Sequence[WriteSpan]) -> list[list[UpdateRequest]]:
    """Rounds of requests: all requests of a round may run at once, a round starts after the one before it."""
    rounds: list[dict[tuple[int, int], tuple[int, ChunkUpdate]]] = [{}]
    latest: dict[tuple[int, int], int] = {}  # chunk to the last round that has it
    for place, span in enumerate(spans):
        file = span.file
        whole = length_of(span.data)
        for piece in chunk_pieces(span.offset, whole, file.chunk_size):
            key = (file.inode, piece.chunk)
            turn = latest.get(key, 0)
            entry = rounds[turn].get(key)
            if entry is not None and (
                len(entry[1].extents) >= CHUNK_EXTENTS_MAX or entry[1].nbytes + piece.length > FRAME_DATA_BYTES_MAX
            ):
                turn += 1
                if turn == len(rounds):
                    rounds.append({})
                entry = None
            if entry is None:
                entry = (file.chain_of(piece.chunk), ChunkUpdate(file.inode, piece.chunk, file.chunk_size))
                rounds[turn][key] = entry
                latest[key] = turn
            item = entry[1]
            data = span.data if piece.length == whole else part_of(span.data, piece.start, piece.length)
            item.extents.append((piece.offset, piece.length, data))
            item.nbytes += piece.length
            item.spans.append(place)
    return [pack_rounds(turn.values()) for turn in rounds if turn]


def pack_rounds(items: Iterable[tuple[int, ChunkUpdate]]) -> list[UpdateRequest]:
    """Chunks grouped by chain into requests within the bounds."""
    open_requests: dict[int, UpdateRequest] = {}
    done: list[UpdateRequest] = []
    for chain_id, item in items:
        request = open_requests.get(chain_id)
        if request is not None and (
            request.nbytes + item.nbytes > WRITE_REQUEST_BYTES_MAX
            or len(request.items) >= UPDATE_ITEMS_MAX
            or request.extents + len(item.extents) > FRAME_SEGMENTS_MAX
        ):
            done.append(request)
            request = None
        if request is None:
            request = open_requests[chain_id] = UpdateRequest(chain_id, [], 0, 0)
        request.items.append(item)
        request.nbytes += item.nbytes
        request.extents += len(item.extents)
    return done + list(open_requests.values())


def pack_update(request: UpdateRequest, client_id: bytes, channel: int, sequence: int) -> bytearray:
    """The body of STORAGE_WRITE, with chain version 0: `stamp` sets it. Computes the extents' checksums."""
    item_count = len(request.items)
    extents_at = UPDATE_HEADER.itemsize + item_count * UPDATE_ITEM.itemsize
    names_at = extents_at + request.extents * EXTENT.itemsize
    names = [item.name for item in request.items if item.name is not None]
    body = bytearray(names_at + (item_count * UPDATE_NAME.itemsize + NAMED_TAIL.itemsize if names else 0))
    header = np.frombuffer(body, UPDATE_HEADER, 1)
    header["chain_id"] = request.chain_id
    header["client_id"] = np.void(client_id)
    header["sequence"] = sequence
    header["channel"] = channel
    header["items"] = item_count
    header["extents"] = request.extents
    items = np.frombuffer(body, UPDATE_ITEM, item_count, UPDATE_HEADER.itemsize)
    items["inode"] = [item.inode for item in request.items]
    items["index"] = [item.index for item in request.items]
    items["kind"] = [item.kind for item in request.items]
    items["extents"] = [len(item.extents) for item in request.items]
    items["chunk_size"] = [item.chunk_size for item in request.items]
    items["length"] = [item.length for item in request.items]
    if request.extents:
        extents = np.frombuffer(body, EXTENT, request.extents, extents_at)
        extents["offset"] = [offset for item in request.items for offset, _, _ in item.extents]
        extents["length"] = [length for item in request.items for _, length, _ in item.extents]
        extents["crc32c"] = [crc32c(view_of(data)) for item in request.items for _, _, data in item.extents]
    if names:  # all of a request's items have one, or none has
        header["flags"] = UpdateFlag.NAMED
        table = np.frombuffer(body, UPDATE_NAME, item_count, names_at)
        table["key_length"] = [len(key) for key, _ in names]
        table["expires_unix_s"] = [expires_unix_s for _, expires_unix_s in names]
        table["key"] = np.array([key for key, _ in names], "S64").view("V64")
        body[-NAMED_TAIL.itemsize :] = request.capacity_bytes.to_bytes(NAMED_TAIL.itemsize, "little")
    return body


def stamp(body: bytearray, chain_version: int) -> None:
    """Set the chain version of a packed update."""
    body[4:8] = chain_version.to_bytes(4, "little")


def update_results(body: bytes | memoryview, count: int) -> npt.NDArray[np.void]:
    """UPDATE_RESULT[count]. Raises PROTOCOL for a body of another size."""
    if len(body) != count * UPDATE_RESULT.itemsize:
        raise error(Code.PROTOCOL, f"an update of {count} chunks was answered with {len(body)} bytes")
    return np.frombuffer(body, UPDATE_RESULT)


def read_results(body: bytes | memoryview, count: int) -> npt.NDArray[np.void]:
    """READ_RESULT[count]. Raises PROTOCOL for a body of another size."""
    if len(body) != count * READ_RESULT.itemsize:
        raise error(Code.PROTOCOL, f"a read of {count} pieces was answered with {len(body)} bytes")
    return np.frombuffer(body, READ_RESULT)
