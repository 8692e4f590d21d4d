"""Finishes versions whose writer's request has ended without an outcome: after a restart, a change of the chain, or a
deadline. Only the head does, because only it may decide that a pending version is given up for another."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from fireflyfs.common.errors import Code, FfsError
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.replica import Replicas
from fireflyfs.storage.service.update import Updater

log = logging.getLogger(__name__)

PAGE = 256
LOOK_EVERY_S = 5.0
CHUNK_DEADLINE_S = 20.0


class PendingResolver:
    """The job of one target."""

    def __init__(self, replicas: Replicas, updater: Updater, local: LocalTarget) -> None:
        self._replicas = replicas
        self._updater = updater
        self._local = local

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.once()
            except FfsError as exc:
                log.warning("target %d: pending versions stay: %s", self._local.target_id, exc.message)
            except Exception:
                log.exception("target %d: cannot resolve pending versions", self._local.target_id)
            await self._replicas.wait_change(LOOK_EVERY_S)

    async def once(self) -> int:
        """Finish what is pending now; how many were finished. Raises the first error of a chunk, after all others."""
        local = self._local
        finished = 0
        failure: FfsError | None = None
        async for key in self._pending():
            try:
                finished += await local.finish_anyway(self._finish(key))
            except FfsError as exc:
                failure = failure or exc
        if finished:
            log.info("target %d: finished %d pending versions", local.target_id, finished)
        if failure is not None:
            raise failure
        return finished

    async def _pending(self) -> AsyncIterator[ChunkKey]:
        """Chunks whose update is not under way, page by page, for as long as this target leads."""
        local = self._local
        after: ChunkKey | None = None
        while self._replicas.leads(local):
            page = await local.call(local.engine.pending, PAGE, after)
            for state in page:
                if not local.locks.held(state.key):
                    yield state.key
                    if not self._replicas.leads(local):
                        return
            if len(page) < PAGE:
                return
            after = page[-1].key

    async def _finish(self, key: ChunkKey) -> int:
        local = self._local
        chain = local.chain
        if chain is None:
            return 0
        deadline_s = self._replicas.clock.monotonic_s() + CHUNK_DEADLINE_S
        async with local.locks.hold([key], CHUNK_DEADLINE_S):
            state = await local.call(local.engine.stat, key)
            if state is None or state.pending is None or not self._replicas.leads(self._local):
                return 0
            code = await self._updater.finish_locked(local, chain.chain_id, state, deadline_s)
        if code is not Code.OK:
            log.warning("chunk %d.%d: pending version stays: %s", key.inode, key.chunk_index, code.name)
            return 0
        return 1
