"""Chunks copied between chains without passing through a client: the target's head reads the source's replicas."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import crc32c as crc32c_module
import numpy as np

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import CHUNK_BYTES_MAX, COPY_BYTES_MAX, COPY_PIECES_MAX, MiB
from fireflyfs.common.net.api import Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.storage_wire import READ_IO, READ_RESULT, UpdateKind
from fireflyfs.storage.core import target
from fireflyfs.storage.engine.interface import ChunkKey, Extent
from fireflyfs.storage.service.locks import Gate
from fireflyfs.storage.service.reading import Reader
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.wire import Item

COPIES_MAX: Final = 64  # requests at a time
COPIED_BYTES_MAX: Final = 64 * MiB  # of all of them, in memory
ASK_S: Final = 5.0  # for one replica's answer
log = logging.getLogger(__name__)


def checked_bytes(request: storage_pb2.CopyChunksRequest) -> int:
    """How much the request copies. Raises INVALID and TOO_LARGE."""
    size = request.chunk_size
    if not 0 < size <= CHUNK_BYTES_MAX or size & (size - 1):
        raise error(Code.INVALID, f"a chunk size of {size} bytes")
    if not 0 < len(request.pieces) <= COPY_PIECES_MAX:
        raise error(Code.INVALID, f"{len(request.pieces)} pieces to copy, 1 to {COPY_PIECES_MAX} are taken")
    total = 0
    for piece in request.pieces:
        if not piece.length or piece.target_offset + piece.length > size:
            raise error(Code.INVALID, f"{piece.length} bytes at {piece.target_offset} of a chunk of {size} bytes")
        if piece.source_offset + piece.length > CHUNK_BYTES_MAX:
            raise error(Code.INVALID, f"{piece.length} bytes at {piece.source_offset} are in no chunk")
        total += piece.length
    if total > COPY_BYTES_MAX:
        raise error(Code.TOO_LARGE, f"{total} bytes to copy, at most {COPY_BYTES_MAX}")
    return total


class Copier:
    """Reads what is to be copied; `gate` bounds it."""

    def __init__(self, replicas: Replicas, reader: Reader) -> None:
        self._replicas = replicas
        self._reader = reader
        self.gate = Gate(COPIES_MAX, COPIED_BYTES_MAX)

    async def items(self, request: storage_pb2.CopyChunksRequest, deadline_s: float) -> list[Item]:
        """Updates of this chain's chunks that carry the sources' bytes, each chunk once. Raises FfsError."""
        views = [memoryview(bytearray(piece.length)) for piece in request.pieces]
        work = [self._read(piece, view, deadline_s) for piece, view in zip(request.pieces, views, strict=True)]
        # All are waited for, so that none is left running behind an error.
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        items: dict[ChunkKey, Item] = {}
        for piece, view in zip(request.pieces, views, strict=True):
            key = ChunkKey(piece.target.inode, piece.target.index)
            item = items.get(key)
            if item is None:
                item = items[key] = Item(key, UpdateKind.WRITE, 0, request.chunk_size, 0)
            item.extents.append(Extent(piece.target_offset, view, crc32c_module.crc32c(view)))
        self._replicas.count("bytes_copied", sum(map(len, views)))
        return list(items.values())

    async def _read(self, piece: storage_pb2.CopyPiece, view: memoryview, deadline_s: float) -> None:
        """Fill `view`, from a replica of this worker if there is one that serves, else from others in turn."""
        key = ChunkKey(piece.source.inode, piece.source.index)
        routing = self._replicas.routing
        chain = routing.chain(piece.source_chain)
        if not chain.serving:
            raise error(Code.TARGET_OFFLINE, f"no replica of chain {chain.chain_id} serves now")
        last: FfsError | None = None
        for target_id in sorted(chain.serving, key=lambda each: each not in self._replicas.targets):
            local = self._replicas.targets.get(target_id)
            try:
                if local is None:
                    await self._ask(chain.version, target_id, piece, view)
                    return
                if local.chain is None or local.chain.chain_id != chain.chain_id:
                    raise error(Code.TARGET_OFFLINE)
                if not target.may_serve(local.state, local.public):
                    raise error(Code.TARGET_OFFLINE)
                await self._reader.read(local, key, piece.source_offset, view, deadline_s)
                return
            except FfsError as exc:
                if exc.code is Code.CHUNK_NOT_FOUND:
                    return  # a hole: zeros, as the memory is
                log.info("chunk %d.%d cannot be copied from target %d: %s", *key, target_id, exc.message)
                last = exc
        assert last is not None
        raise last

    async def _ask(self, chain_version: int, target_id: int, piece: storage_pb2.CopyPiece, view: memoryview) -> None:
        source = piece.source
        row = (source.inode, source.index, piece.source_chain, chain_version, piece.source_offset, piece.length)
        call = Call(Method.STORAGE_READ, np.array([row], READ_IO).tobytes(), into=[view], deadline_s=ASK_S)
        reply = await self._replicas.link.call(self._replicas.routing.address(target_id), call)
        if len(reply.body) != READ_RESULT.itemsize:
            raise error(Code.PROTOCOL, f"an answer of {len(reply.body)} bytes to one read")
        status, length, _, crc, _ = np.frombuffer(reply.body, READ_RESULT).tolist()[0]
        if status:
            raise error(status, f"target {target_id} cannot read chunk {source.inode}.{source.index}")
        if crc32c_module.crc32c(view[:length]) != crc:
            raise error(
                Code.CHECKSUM, f"what target {target_id} sent of chunk {source.inode}.{source.index} is damaged"
            )
        view[length:] = bytes(len(view) - length)
