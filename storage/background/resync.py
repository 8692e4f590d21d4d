"""Brings a SYNCING successor up to date: the predecessor compares what both hold and replaces whole chunks.

Clients go on writing meanwhile; their updates reach the successor as whole chunks. So the order matters: first wait for
the updates that began before the successor was known, then read what it holds, then what we hold. Each chunk is looked
at again under its lock before it is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from fireflyfs.client.routing import Chain
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.net.api import Call
from fireflyfs.common.net.methods import Method
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.storage_wire import UpdateFlag, UpdateKind
from fireflyfs.storage.background.pace import Pace
from fireflyfs.storage.core import forward, resync, target
from fireflyfs.storage.core.forward import Form, Hop
from fireflyfs.storage.core.resync import Held, Step, Work
from fireflyfs.storage.core.scrub import Outcome
from fireflyfs.storage.engine.interface import ChunkKey, ChunkState, Version, Writer
from fireflyfs.storage.service.forwarding import read_whole
from fireflyfs.storage.service.local_target import DONE_PAGE, LocalTarget
from fireflyfs.storage.service.repair import Repairer, wanted_of
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.update import Updater
from fireflyfs.storage.service.wire import Item

log = logging.getLogger(__name__)

PAGE = 1024
# At a time: more fill the target's threads and its event loop in bursts, and readers wait behind them.
PARALLEL = 2
PARALLEL_BYTES_MAX = 16 << 20
RETRY_S = 1.0
IDLE_S = 1.0
CHUNK_DEADLINE_S = 30.0
DRAIN_S = 60.0
FLAGS = UpdateFlag.SYNCING | UpdateFlag.RESYNC
_NOBODY = Writer(bytes(16), 0, 0)


class Resync:
    """The job of one target: runs while its successor is SYNCING. `rate_bytes_s` 0: as fast as it goes."""

    def __init__(
        self, replicas: Replicas, updater: Updater, repairer: Repairer, local: LocalTarget, rate_bytes_s: int = 0
    ) -> None:
        self._replicas = replicas
        self._updater = updater
        self._repairer = repairer
        self._local = local
        self._pace = Pace(replicas.clock, rate_bytes_s)
        self._bytes = 0
        self._room = asyncio.Condition()

    async def run(self) -> None:
        """Until cancelled."""
        done: tuple[int, int] | None = None  # (chain version, successor)
        while True:
            hop = self._due()
            chain = self._local.chain
            if hop is None or chain is None or done == (chain.version, hop.target_id):
                if hop is None:
                    self._local.resync_done = self._local.resync_total = 0
                await self._replicas.wait_change(IDLE_S)
                continue
            try:
                await self.once(chain, hop)
                done = (chain.version, hop.target_id)
            except FfsError as exc:
                log.warning("resync of target %d stopped: %s", hop.target_id, exc.message)
                await self._replicas.wait_change(RETRY_S)
            except Exception:
                log.exception("resync of target %d failed", hop.target_id)
                await self._replicas.wait_change(RETRY_S)

    def _due(self) -> Hop | None:
        local = self._local
        if local.chain is None or not target.may_serve(local.state, local.public) or self._replicas.fenced():
            return None
        hop = forward.next_hop(local.chain, local.target_id)
        return hop if hop is not None and hop.form is Form.REPLACE else None

    async def once(self, chain: Chain, hop: Hop) -> None:
        """One whole pass. Raises FfsError when the chain changes or the successor does not answer."""
        local = self._local
        log.info(
            "chain %d version %d: target %d brings %d up to date",
            chain.chain_id,
            chain.version,
            local.target_id,
            hop.target_id,
        )
        if not await local.drain(DRAIN_S):
            raise error(Code.TIMEOUT, "updates from before do not end")
        local.resync_done, local.resync_total = 0, (await local.call(local.engine.space)).chunks
        local.on_change()  # mgmtd hears at once that it began
        sent = removed = 0
        after: ChunkKey | None = None
        while True:
            theirs, theirs_more = await self._page(chain, hop, after)
            ours = await local.call(local.engine.scan, after, PAGE)
            ours_more = len(ours) == PAGE
            end = resync.horizon(ours, ours_more, theirs, theirs_more)
            compared = resync.compare(ours, theirs, end)
            works = [work for work in compared if work.step is not Step.SKIP]
            mine = {state.key: state for state in ours if state.committed is not None}
            self._count(sum(work.step is Step.SKIP and work.key in mine for work in compared))
            await self._carry_out(chain, hop, works, mine)
            sent += sum(work.step is Step.WRITE for work in works)
            removed += sum(work.step is Step.REMOVE for work in works)
            if end is None:
                break
            after = end
        await self._send_writers(chain, hop)
        self._check(chain)
        local.resync_total = local.resync_done  # fewer when some were removed meanwhile
        body = storage_pb2.SyncDoneRequest(chain_id=chain.chain_id, chain_version=chain.version).SerializeToString()
        await self._ask(hop, Method.STORAGE_SYNC_DONE, body, 60.0)
        log.info("target %d is up to date: %d chunks sent, %d removed", hop.target_id, sent, removed)

    def _check(self, chain: Chain) -> None:
        """Raises CHAIN_VERSION: another chain version begins a pass of its own."""
        if self._local.chain is None or self._local.chain.version != chain.version:
            raise error(Code.CHAIN_VERSION, f"chain {chain.chain_id} has changed")
        self._replicas.check_fence()

    def _count(self, chunks: int) -> None:
        """So many more of our chunks are there too. Clients make new ones meanwhile: the total grows with them."""
        self._local.resync_done += chunks
        self._local.resync_total = max(self._local.resync_total, self._local.resync_done)

    async def _page(self, chain: Chain, hop: Hop, after: ChunkKey | None) -> tuple[list[Held], bool]:
        request = storage_pb2.SyncStartRequest(chain_id=chain.chain_id, chain_version=chain.version, limit=PAGE)
        if after is not None:
            request.after.inode, request.after.index = after
        reply = storage_pb2.SyncStartReply.FromString(
            await self._ask(hop, Method.STORAGE_SYNC_START, request.SerializeToString(), 10.0)
        )
        page = [
            Held(
                ChunkKey(state.chunk.inode, state.chunk.index),
                state.committed_version,
                bool(state.pending_version),
                state.length,
                state.crc32c,
                state.chunk_size,
                state.damaged,
            )
            for state in reply.chunks
        ]
        return page, reply.more

    async def _send_writers(self, chain: Chain, hop: Hop) -> None:
        """What was done before the successor came; what is done since, it sees itself."""
        local = self._local
        after: Writer | None = None
        while page := await local.call(local.engine.done, after, DONE_PAGE):
            self._check(chain)
            request = storage_pb2.SyncWritersRequest(chain_id=chain.chain_id, chain_version=chain.version)
            for writer, chunks in page:
                message = request.done.add(client_id=writer.client_id, channel=writer.channel, sequence=writer.sequence)
                for chunk in chunks:
                    message.chunks.add(
                        chunk=storage_pb2.ChunkId(inode=chunk.key.inode, index=chunk.key.chunk_index),
                        version=chunk.version,
                        chain_version=chunk.chain_version,
                        length=chunk.length,
                        crc32c=chunk.crc32c,
                    )
            await self._ask(hop, Method.STORAGE_SYNC_WRITERS, request.SerializeToString(), 10.0)
            after = page[-1].writer

    async def _ask(self, hop: Hop, method: Method, body: bytes, deadline_s: float) -> bytes:
        call = Call(method, body, deadline_s=deadline_s)
        reply = await self._replicas.link.call(self._replicas.routing.address(hop.target_id), call)
        return bytes(reply.body)

    async def _carry_out(self, chain: Chain, hop: Hop, works: Sequence[Work], ours: dict[ChunkKey, ChunkState]) -> None:
        queue = list(reversed(works))

        async def worker() -> None:
            while queue:
                self._check(chain)
                work = queue.pop()
                state = ours.get(work.key)
                size = state.committed.length if state is not None and state.committed is not None else 0
                await self._pace.wait(size)
                async with self._room:
                    while self._bytes and self._bytes + size > PARALLEL_BYTES_MAX:
                        await self._room.wait()
                    self._bytes += size
                began_s, asked = self._replicas.clock.monotonic_s(), self._asked()
                try:
                    await self._local.finish_anyway(self.repair(chain, hop, work.key))
                    self._count(work.key in ours)
                except FfsError:
                    queue.clear()  # the other workers stop after their chunk
                    raise
                finally:
                    async with self._room:
                        self._bytes -= size
                        self._room.notify_all()
                took_s = self._replicas.clock.monotonic_s() - began_s
                await asyncio.sleep(resync.give_way_s(took_s, self._asked() > asked))

        workers = [asyncio.ensure_future(worker()) for _ in range(min(PARALLEL, len(queue)))]
        try:
            for outcome in await asyncio.gather(*workers, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        finally:
            for task in workers:
                task.cancel()
        self._check(chain)

    def _asked(self) -> float:
        """How much clients have asked of this worker so far."""
        counters = self._replicas.counters
        return counters.get("reads", 0) + counters.get("updates", 0)

    async def repair(self, chain: Chain, hop: Hop, key: ChunkKey) -> None:
        """Make the successor's chunk what ours is now, or remove it. Raises FfsError."""
        local = self._local
        deadline_s = self._replicas.clock.monotonic_s() + CHUNK_DEADLINE_S
        async with local.locks.hold([key], CHUNK_DEADLINE_S):
            self._check(chain)
            state = await local.call(local.engine.stat, key)
            if state is not None and state.pending is not None:
                code = await self._updater.finish_locked(local, chain.chain_id, state, deadline_s)
                if code is not Code.OK:
                    raise error(code, f"chunk {key.inode}.{key.chunk_index} has a pending version")
                return  # finishing it has sent the whole chunk
            committed = state.committed if state is not None else None
            if state is None or committed is None:
                item = Item(key, UpdateKind.REMOVE, max(1, local.removed.get(key, 0)), 1 << 16, 0)
                writer = _NOBODY
            else:
                whole = await self._whole(chain, hop, state, committed)
                if whole is None:
                    return
                item = whole
                writer = committed.writer
            forwarder = self._updater.forwarder
            answers = await forwarder.send_once(local, chain, hop, writer, [item], FLAGS, deadline_s)
            answer = answers[key]
            if answer.code is not Code.OK:
                raise error(answer.code, f"chunk {key.inode}.{key.chunk_index} at target {hop.target_id}")
            if committed is not None and answer.crc32c != committed.crc32c:
                raise error(Code.CHECKSUM, f"chunk {key.inode}.{key.chunk_index} at target {hop.target_id}")
            self._replicas.count("resync_chunks")
            self._replicas.count("resync_bytes", committed.length if committed is not None else 0)

    async def _whole(self, chain: Chain, hop: Hop, state: ChunkState, committed: Version) -> Item | None:
        """Our chunk for the successor. Where its bytes are lost here they are looked for, at the successor too.

        None: the successor has them, though they cannot be stored here now. Where it has not, it hears just that: one
        rotten chunk must not keep it from serving all others. Raises FfsError when it does not say.
        """
        local = self._local
        key = state.key
        for _ in range(2):
            try:
                return await local.call(read_whole, local, key, committed.version, pending=False)
            except FfsError as exc:
                if exc.code is not Code.CHECKSUM:
                    raise
            try:
                outcome = await self._repairer.mend(local, key, syncing=hop.target_id)
            except FfsError as trouble:
                if trouble.code is Code.DISK_FAILED:
                    raise
                log.warning("chunk %d.%d: cannot be mended: %s", key.inode, key.chunk_index, trouble.message)
                break
            if outcome not in (Outcome.GOOD, Outcome.REPAIRED):
                break
        if await self._repairer.has(chain, hop.target_id, wanted_of(state, committed)):
            local.suspect(key)
            return None
        log.error("chunk %d.%d: target %d goes on without its bytes", key.inode, key.chunk_index, hop.target_id)
        self._replicas.count("resync_damaged")
        local.suspect(key)
        item = Item(key, UpdateKind.DAMAGED, committed.version, state.chunk_size, committed.length, committed.crc32c)
        item.name = committed.name
        return item
