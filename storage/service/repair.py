"""Mends a chunk whose bytes do not match, from another replica, without leaving the chain.

The replica holds the chunk's lock all the while, so no later version passes through it. It has nothing pending, so it
knows which bytes it lacks: those of its committed version, with that length and checksum. It takes them from any
replica that serves, whole or in pieces (each replica may have rot in another place), checks version and checksums, and
stores them as the version that they are. What the other replicas do meanwhile does not matter: a version of a chunk has
one content. Nobody who is asked takes a lock for it, so replicas that mend each other's chunks do not wait for each
other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import crc32c as crc32c_module
import numpy as np

from fireflyfs.client.routing import Chain
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.limits import KiB, MiB
from fireflyfs.common.net.api import Call, ServerRequest
from fireflyfs.common.net.methods import Method
from fireflyfs.proto.storage_wire import READ_IO, READ_RESULT, UpdateKind
from fireflyfs.storage.core import scrub, target
from fireflyfs.storage.core.scrub import Missing, Outcome
from fireflyfs.storage.core.target import Public
from fireflyfs.storage.engine.interface import CacheName, ChunkKey, ChunkState, Extent, Update, Version, Writer
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.wire import decode_reads, encode_reads

log = logging.getLogger(__name__)

LOCK_WAIT_S = 5.0
ASK_S = 3.0  # for one answer of a replica: writers of the chunk wait meanwhile
REQUEST_BYTES = 4 * MiB  # asked for in one request
PIECE_BYTES = 64 * KiB  # once no replica has such a range whole
_LOST = (Code.CHECKSUM, Code.CHUNK_NOT_FOUND)  # a replica that answers so cannot help, now or later


class Wanted(NamedTuple):
    """The content that a chunk should have here."""

    key: ChunkKey
    chunk_size: int
    version: int
    length: int
    crc32c: int
    chain_version: int
    writer: Writer
    name: CacheName | None = None


def wanted_of(state: ChunkState, committed: Version) -> Wanted:
    return Wanted(
        state.key,
        state.chunk_size,
        committed.version,
        committed.length,
        committed.crc32c,
        committed.chain_version,
        committed.writer,
        committed.name,
    )


class Repairer:
    """For all targets of a worker."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    async def repair(self, local: LocalTarget, key: ChunkKey) -> Outcome:
        """Look at the chunk, and mend it. Raises DISK_FAILED only; what cannot be had now is LATER."""
        return await local.finish_anyway(self._repair(local, key))

    async def _repair(self, local: LocalTarget, key: ChunkKey) -> Outcome:
        try:
            async with local.locks.hold([key], LOCK_WAIT_S):
                return await self.mend(local, key)
        except FfsError as exc:
            if exc.code is Code.DISK_FAILED:
                raise
            log.info("chunk %d.%d: cannot be mended now: %s", key.inode, key.chunk_index, exc.message)
            return Outcome.LATER

    async def mend(self, local: LocalTarget, key: ChunkKey, syncing: int = 0) -> Outcome:
        """The same for a caller who holds the chunk. `syncing`: a SYNCING successor that may be asked too.

        LOST has made the chunk damaged here: known, counted, and no hole. Raises FfsError, with the chunk as it was.
        """
        chain = local.chain
        if chain is None or not target.may_serve(local.state, local.public) or self._replicas.fenced():
            return Outcome.LATER
        state = await local.call(local.engine.stat, key)
        known = scrub.judge(state)
        if known is not None or state is None or state.committed is None:
            return known or Outcome.GONE
        if not state.committed.damaged and await local.call(_matches, local, state.committed, key):
            return Outcome.GOOD
        wanted = wanted_of(state, state.committed)
        where = f"target {local.target_id}: chunk {key.inode}.{key.chunk_index} version {wanted.version}"
        data, certain = await self._fetch(local, chain, wanted, syncing, own=not state.committed.damaged)
        if data is None:
            if not certain:
                return Outcome.LATER
            if not state.committed.damaged:
                log.error("%s: its bytes are lost, no replica that serves has them", where)
                await local.call(local.engine.quarantine, key, "no other replica had its bytes either")
            self._replicas.count("chunks_lost")
            return Outcome.LOST
        await local.call(_store, local, wanted, data)
        await local.call(local.engine.commit, [(key, wanted.version)], wanted.chain_version, remember=False)
        if not await local.call(_matches, local, state.committed, key):
            raise error(Code.CHECKSUM, f"{where}: what was just stored does not match")
        log.warning("%s: mended", where)
        local.repaired += 1
        self._replicas.count("chunks_repaired")
        return Outcome.REPAIRED

    async def _fetch(
        self, local: LocalTarget, chain: Chain, wanted: Wanted, syncing: int, *, own: bool
    ) -> tuple[memoryview | None, bool]:
        """(the bytes, or None; whether None is the last word). `own`: some of our own bytes may be good."""
        data = memoryview(bytearray(wanted.length))
        missing = [Missing(0, wanted.length)] if wanted.length else []
        # The tail first: what it has committed it answers without asking anybody.
        sources = [(other, Method.STORAGE_READ) for other in reversed(chain.serving) if other != local.target_id]
        if syncing:
            sources.append((syncing, Method.STORAGE_SYNC_READ))
        # A member that is away may have them.
        certain = {other for other, _ in chain.targets} == {local.target_id, *(other for other, _ in sources)}
        for size in (REQUEST_BYTES, PIECE_BYTES):
            missing = scrub.pieces(missing, size)
            if own and size == PIECE_BYTES:
                missing = await local.call(_own_pieces, local, wanted, data, missing)
            for source in list(sources):
                if not missing:
                    break
                try:
                    missing, sure = await self._ask(chain, *source, wanted, data, missing)
                    certain = certain and sure
                except FfsError as exc:
                    log.info("target %d cannot help: %s", source[0], exc.message)
                    sources.remove(source)  # nobody waits for it twice
                    certain = False
        if missing:
            return None, certain
        if crc32c_module.crc32c(data) != wanted.crc32c:
            log.error(
                "chunk %d.%d version %d: the replicas of chain %d do not agree on its content",
                *wanted.key,
                wanted.version,
                chain.chain_id,
            )
            return None, False
        return data, True

    async def has(self, chain: Chain, syncing: int, wanted: Wanted) -> bool:
        """Whether the SYNCING successor holds all of `wanted`. Raises FfsError when it does not say."""
        data = memoryview(bytearray(min(REQUEST_BYTES, wanted.length)))
        for offset, length in scrub.pieces([Missing(0, wanted.length)], REQUEST_BYTES):
            rows = await self._read(
                chain, syncing, Method.STORAGE_SYNC_READ, wanted, [(offset, length)], [data[:length]]
            )
            status, got, version, crc, _ = rows[0]
            if status and status not in _LOST:
                raise error(Code(status), f"target {syncing} does not say what it holds")
            if (status, got, version) != (0, length, wanted.version) or crc32c_module.crc32c(data[:length]) != crc:
                return False
        return True

    async def _ask(
        self,
        chain: Chain,
        target_id: int,
        method: Method,
        wanted: Wanted,
        data: memoryview,
        missing: list[Missing],
    ) -> tuple[list[Missing], bool]:
        """(what is still missing, whether the replica said all that it will ever say). Raises FfsError."""
        left: list[Missing] = []
        sure = True
        step = max(1, REQUEST_BYTES // max(piece.length for piece in missing))
        for start in range(0, len(missing), step):
            batch = missing[start : start + step]
            into = [data[offset : offset + length] for offset, length in batch]
            rows = await self._read(chain, target_id, method, wanted, batch, into)
            for piece, view, (status, got, version, crc, _) in zip(batch, into, rows, strict=True):
                if (status, got, version) == (0, piece.length, wanted.version) and crc32c_module.crc32c(view) == crc:
                    continue
                left.append(piece)
                sure = sure and status in _LOST
        return left, sure

    async def _read(
        self,
        chain: Chain,
        target_id: int,
        method: Method,
        wanted: Wanted,
        pieces: Sequence[tuple[int, int]],
        into: list[memoryview],
    ) -> list[tuple[int, int, int, int, int]]:
        """READ_RESULT of each (offset, length) of the chunk at another replica. Raises FfsError."""
        inode, index = wanted.key
        body = np.array([(inode, index, chain.chain_id, chain.version, *piece) for piece in pieces], READ_IO)
        call = Call(method, body.tobytes(), into=into, deadline_s=ASK_S)
        reply = await self._replicas.link.call(self._replicas.routing.address(target_id), call)
        if len(reply.body) != len(pieces) * READ_RESULT.itemsize:
            raise error(Code.PROTOCOL, f"an answer of {len(reply.body)} bytes to {len(pieces)} reads")
        rows: list[tuple[int, int, int, int, int]] = np.frombuffer(reply.body, READ_RESULT).tolist()
        return rows

    # At the SYNCING successor

    async def sync_read(self, request: ServerRequest) -> None:
        """STORAGE_SYNC_READ: what is committed here, for the predecessor, who knows by version and checksum whether it
        is what it has lost. Reads as STORAGE_READ, of a replica that serves nobody else."""
        rows = []
        reads = decode_reads(request.body, request.push_lengths)
        for into, read in zip(request.push_views(), reads, strict=True):
            inode, index, chain_id, chain_version, offset, length = read
            try:
                local = self._replicas.local(chain_id)
                if local.chain is None or local.chain.version != chain_version:
                    raise error(Code.CHAIN_VERSION)
                if local.public is not Public.SYNCING or not target.may_receive(local.state, local.public):
                    raise error(Code.TARGET_OFFLINE)
                found = await local.call(local.engine.read, ChunkKey(inode, index), offset, into[:length])
                rows.append((0, found.length, found.version, found.crc32c, found.chunk_length))
            except FfsError as exc:
                rows.append((int(exc.code), 0, 0, 0, 0))
        request.reply(encode_reads(rows), [row[1] for row in rows])


def _matches(local: LocalTarget, committed: Version, key: ChunkKey) -> bool:
    """Whether the chunk's bytes match, as a reader gets them and on the disk."""
    try:
        # A page in memory that went bad on its own hides behind a good disk: the reader goes first.
        for offset in range(0, committed.length, REQUEST_BYTES):
            local.engine.read(key, offset, memoryview(bytearray(min(REQUEST_BYTES, committed.length - offset))))
        local.engine.verify(key)
    except FfsError as exc:
        if exc.code is Code.CHECKSUM:
            return False
        raise
    return True


def _own_pieces(local: LocalTarget, wanted: Wanted, data: memoryview, missing: list[Missing]) -> list[Missing]:
    left = []
    for piece in missing:
        view = data[piece.offset : piece.offset + piece.length]
        try:
            local.engine.read(wanted.key, piece.offset, view)
        except FfsError as exc:
            if exc.code is not Code.CHECKSUM:
                raise
            left.append(piece)
    return left


def _store(local: LocalTarget, wanted: Wanted, data: memoryview) -> Version:
    """The content as the chunk's pending version."""
    extents = [Extent(0, data, wanted.crc32c)] if wanted.length else []
    update = Update(
        wanted.key,
        UpdateKind.REPLACE,
        wanted.version,
        wanted.chain_version,
        wanted.chunk_size,
        wanted.length,
        extents,
        wanted.writer,
        name=wanted.name,
    )
    return local.engine.apply([update])[0]
