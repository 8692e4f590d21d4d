"""STORAGE_READ: from the page cache in the event loop, from the disk in threads, and from the tail's word when a
newer version is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.api import Call, ServerRequest
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import storage_pb2
from fireflyfs.storage.core import forward, read, target
from fireflyfs.storage.core.read import NO_CHUNK, Choice, Truth
from fireflyfs.storage.engine.interface import ChunkKey, ReadResult, WouldBlock
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.wire import decode_reads, encode_reads

Row = tuple[int, int, int, int, int]  # READ_RESULT
LOOKS_MAX = 20  # at a chunk whose version keeps changing
LOOK_PAUSE_S = 0.005
ASK_TAIL_S = 2.0


class Reader:
    """Answers reads."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def handle(self, request: ServerRequest) -> Awaitable[None] | None:
        """Answers at once when everything is in memory; otherwise what is left runs as a task."""
        reads = decode_reads(request.body, request.push_lengths)
        fenced = self._replicas.fenced()
        views = request.push_views()
        rows: list[Row] = []
        slow: list[tuple[int, LocalTarget, ChunkKey, int, memoryview]] = []
        self._replicas.count("reads", len(reads))
        for place, (inode, index, chain_id, chain_version, offset, length) in enumerate(reads):
            try:
                if fenced:
                    raise error(Code.FENCED)
                local = self.admit(chain_id, chain_version)
                key = ChunkKey(inode, index)
                into = views[place]
                if len(into) != length:
                    into = into[:length]
                if local.locks.held(key):
                    slow.append((place, local, key, offset, into))
                    rows.append((0, 0, 0, 0, 0))
                    continue
                found = local.engine.read(key, offset, into, nowait=True)
                if found.pending:
                    slow.append((place, local, key, offset, into))
                rows.append((0, found.length, found.version, found.crc32c, found.chunk_length))
            except WouldBlock:
                slow.append((place, local, key, offset, into))
                rows.append((0, 0, 0, 0, 0))
            except FfsError as exc:
                if exc.code is Code.DISK_FAILED:
                    local.fail(exc.message)
                elif exc.code is Code.CHECKSUM:
                    local.suspect(key)
                elif exc.code is Code.CHUNK_NOT_FOUND and local.engine.stat(key) is not None:
                    slow.append((place, local, key, offset, into))  # its first version is pending
                rows.append((int(exc.code), 0, 0, 0, 0))
        if not slow:
            request.reply(encode_reads(rows), [row[1] for row in rows])
            return None
        return self._finish(request, rows, slow)

    async def _finish(
        self,
        request: ServerRequest,
        rows: list[Row],
        slow: list[tuple[int, LocalTarget, ChunkKey, int, memoryview]],
    ) -> None:
        self._replicas.count("reads_slow", len(slow))

        async def one(place: int, local: LocalTarget, key: ChunkKey, offset: int, into: memoryview) -> None:
            try:
                found = await self.read(local, key, offset, into, request.deadline_s)
                rows[place] = (0, found.length, found.version, found.crc32c, found.chunk_length)
            except FfsError as exc:
                rows[place] = (int(exc.code), 0, 0, 0, 0)

        if len(slow) == 1:
            await one(*slow[0])
        else:
            # All are waited for: they work on memory that goes back to its owner when this fails.
            for outcome in await asyncio.gather(*(one(*work) for work in slow), return_exceptions=True):
                if outcome is not None:
                    raise outcome
        if self._replicas.fenced():
            raise error(Code.FENCED)  # it may have waited for long
        request.reply(encode_reads(rows), [row[1] for row in rows])

    def admit(self, chain_id: int, chain_version: int) -> LocalTarget:
        """The target that answers. Raises CHAIN_VERSION, TARGET_OFFLINE, NO_CHAIN."""
        local = self._replicas.local(chain_id)
        ours = local.chain.version if local.chain is not None else 0
        code = read.admit(local.state, local.public, ours, chain_version)
        if code is not Code.OK:
            raise error(code, f"target {local.target_id} is {local.public.name} in version {ours} of chain {chain_id}")
        return local

    async def read(
        self, local: LocalTarget, key: ChunkKey, offset: int, into: memoryview, deadline_s: float
    ) -> ReadResult:
        """The committed bytes, even while an update is under way. Raises CHUNK_NOT_FOUND, CHUNK_PENDING, CHECKSUM."""
        try:
            return await self._read(local, key, offset, into, deadline_s)
        except FfsError as exc:
            if exc.code is Code.CHECKSUM:
                local.suspect(key)
            raise

    async def _read(
        self, local: LocalTarget, key: ChunkKey, offset: int, into: memoryview, deadline_s: float
    ) -> ReadResult:
        for look in range(LOOKS_MAX):
            if look:
                await asyncio.sleep(LOOK_PAUSE_S)
            # Asked before reading: what is not held now was committed everywhere when this read began.
            held = local.locks.held(key)
            found: ReadResult | None = None
            try:
                found = await local.call(local.engine.read, key, offset, into)
            except FfsError as exc:
                if exc.code is not Code.CHUNK_NOT_FOUND:
                    raise
                if not held and await local.call(local.engine.stat, key) is None:
                    raise
            if found is not None and not held and not found.pending:
                return found
            told = await self._ask_tail(local, key, deadline_s)
            if told is None:
                continue
            state = await local.call(local.engine.stat, key)
            if state is None:
                if not told.version:
                    raise error(Code.CHUNK_NOT_FOUND)
                continue
            choice = read.choose(state.committed, state.pending, told)
            if choice is Choice.MISSING:
                raise error(Code.CHUNK_NOT_FOUND)
            if choice is Choice.PENDING:
                try:
                    found = await local.call(local.engine.read, key, offset, into, pending=True)
                except FfsError as exc:
                    if exc.code is not Code.CHUNK_NOT_FOUND:
                        raise
                    continue  # committed by now; a removal is pending, of which the tail has said nothing
            if choice is not Choice.AGAIN and found is not None and found.version == told.version:
                return found
        raise error(Code.CHUNK_PENDING, f"chunk {key.inode}.{key.chunk_index} keeps changing")

    async def _ask_tail(self, local: LocalTarget, key: ChunkKey, deadline_s: float) -> Truth | None:
        """What the tail has committed of the chunk; None when it does not know yet."""
        chain = local.chain
        if chain is None or not target.may_serve(local.state, local.public):
            raise error(Code.TARGET_OFFLINE)
        last = forward.tail(chain)
        if last == local.target_id:
            state = await local.call(local.engine.stat, key)
            return read.truth(state)
        self._replicas.count("tail_asked")
        query = storage_pb2.QueryChunkRequest(
            chain_id=chain.chain_id, chunk=storage_pb2.ChunkId(inode=key.inode, index=key.chunk_index)
        )
        left = min(ASK_TAIL_S, deadline_s - self._replicas.clock.monotonic_s())
        call = Call(Method.STORAGE_QUERY_CHUNK, query.SerializeToString(), deadline_s=max(0.001, left))
        try:
            reply = await self._replicas.link.call(self._replicas.routing.address(last), call)
        except FfsError as exc:
            raise error(Code.CHUNK_PENDING, f"the tail does not answer: {exc.message}") from exc
        answer = storage_pb2.QueryChunkReply.FromString(bytes(reply.body))
        if answer.state.pending_version:
            return None
        return Truth(answer.state.committed_version, answer.state.crc32c) if answer.found else NO_CHUNK
