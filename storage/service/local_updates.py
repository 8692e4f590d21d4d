"""Updates that come to this worker: by the data link as they are, by gRPC as requests that it makes updates of.

All of them pass a gate that bounds what is under way, and where the disk is full, blocks of the KV cache make room.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable

from fireflyfs.common.errors import Code, error
from fireflyfs.common.net.api import ServerRequest
from fireflyfs.common.to_its_end import to_its_end
from fireflyfs.storage.engine.interface import Writer
from fireflyfs.storage.service.evictor import Evictors
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.update import Updater
from fireflyfs.storage.service.wire import Item, Result, UpdateRequest, decode_update, encode_results

CONTROL_DEADLINE_S = 30.0
MAKE_ROOM_MAX = 8  # evictions for one update on a full disk
MAKE_ROOM_BYTES_MIN = 16 << 20


class LocalUpdates:
    """Runs updates that begin, or go on, at this worker."""

    def __init__(self, replicas: Replicas, updater: Updater, evictors: Evictors) -> None:
        self._replicas = replicas
        self._updater = updater
        self._evictors = evictors
        # For removals and truncations whose sender names no channel: each is its own request.
        self._own_client = secrets.token_bytes(16)
        self._own_sequence = 0

    def handle_write(self, request: ServerRequest) -> Awaitable[None]:
        return self._run_update(request, from_client=True)

    def handle_update(self, request: ServerRequest) -> Awaitable[None]:
        return self._run_update(request, from_client=False)

    async def _run_update(self, request: ServerRequest, *, from_client: bool) -> None:
        update = decode_update(request.body, request.pull_lengths, from_client=from_client)
        replicas = self._replicas
        gate = replicas.client_gate if from_client else replicas.replica_gate
        with gate.enter(update.data_bytes):
            update.attach(await request.pull())
            results = await self._with_room(update, request.deadline_s, from_client)
        replicas.count("updates" if from_client else "forwarded_updates", len(results))
        replicas.count("bytes_written", update.data_bytes)
        request.reply(encode_results(results))

    async def through_chain(
        self, chain_id: int, chain_version: int, writer: Writer, items: list[Item], capacity_bytes: int = 0
    ) -> list[Result]:
        """As `results_of`. Raises the first failure of an item."""
        results = await self.results_of(chain_id, chain_version, writer, items, capacity_bytes)
        for result in results:
            if result.code is not Code.OK:
                raise error(result.code)
        return results

    async def results_of(
        self, chain_id: int, chain_version: int, writer: Writer, items: list[Item], capacity_bytes: int = 0
    ) -> list[Result]:
        """Run an update that was made here of a gRPC request; capacity_bytes: see `UpdateRequest`."""
        data_bytes = sum(len(extent.data) for item in items for extent in item.extents)
        request = UpdateRequest(chain_id, chain_version, writer, 0, items, data_bytes, capacity_bytes)
        with self._replicas.client_gate.enter(request.data_bytes):
            # A gRPC client that hangs up cancels its handler.
            work = asyncio.ensure_future(self._with_room(request, self.deadline_s(), True))
            return await to_its_end(work)

    def nothing_to_do(self, local: LocalTarget, writer: Writer) -> None:
        """A request that is done without a change: sent again later, it must not find what was made in between."""
        code, _ = local.once.begin(writer)
        if code is not Code.OK:
            raise error(code, f"sequence {writer.sequence} of channel {writer.channel}")
        local.once.end(writer, (), finished=True)

    async def _with_room(self, update: UpdateRequest, deadline_s: float, from_client: bool) -> list[Result]:
        """Run an update; where the disk is full, blocks of the KV cache go first, and it is tried again."""
        cached = {item.key.inode for item in update.items if item.name is not None} if from_client else ()
        if cached:
            await self._replicas.catch_up(update.chain_id, update.chain_version)
            evictor = self._evictors.of(self._replicas.local(update.chain_id))
            for inode in cached:
                await evictor.admit(inode, update.capacity_bytes)
        results = await self._updater.run(update, deadline_s, from_client=from_client)
        for _ in range(MAKE_ROOM_MAX):
            if not [result for result in results if result.code is Code.NO_SPACE]:
                break
            local = self._replicas.local(update.chain_id)
            if not await self._evictors.make_room(local, max(2 * update.data_bytes, MAKE_ROOM_BYTES_MIN)):
                break
            results = await self._updater.run(update, deadline_s, from_client=from_client)
        return results

    def writer(self, client_id: bytes, channel: int, sequence: int) -> Writer:
        if not client_id:
            self._own_sequence += 1
            return Writer(self._own_client, self._own_sequence & 0xFFFFFFFF, self._own_sequence)
        if len(client_id) != 16:
            raise error(Code.INVALID, f"a client id of {len(client_id)} bytes")
        return Writer(client_id, channel, sequence)

    def deadline_s(self) -> float:
        """For a request that says none."""
        return self._replicas.clock.monotonic_s() + CONTROL_DEADLINE_S
