"""Mends the chunks of one target that readers and writers stumbled over, and tries damaged ones again when the chain
changes: a replica that has come back may have what was lost."""

from __future__ import annotations

import asyncio
import logging

from fireflyfs.common.errors import FfsError
from fireflyfs.common.waiting import set_within
from fireflyfs.storage.core import scrub, target
from fireflyfs.storage.core.scrub import SUSPECTS_MAX
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.repair import Repairer
from fireflyfs.storage.service.replica import Replicas

log = logging.getLogger(__name__)

IDLE_S = 5.0


class SuspectRepair:
    """The job of one target: one chunk at a time."""

    def __init__(self, replicas: Replicas, repairer: Repairer, local: LocalTarget) -> None:
        self._replicas = replicas
        self._repairer = repairer
        self._local = local
        self._chain_version = 0  # in which damaged chunks were last tried

    async def run(self) -> None:
        """Until cancelled."""
        local = self._local
        while True:
            local.suspected.clear()
            try:
                await self._recall()
                await self.once()
            except FfsError as exc:
                log.warning("target %d: suspect chunks wait: %s", local.target_id, exc.message)
                await asyncio.sleep(IDLE_S)
            except Exception:
                log.exception("target %d: cannot look at suspect chunks", local.target_id)
                await asyncio.sleep(IDLE_S)
            due_s = local.suspects.next_due_s()
            wait_s = IDLE_S if due_s is None else min(IDLE_S, max(0.01, due_s - self._replicas.clock.monotonic_s()))
            await set_within(local.suspected, wait_s)

    async def _recall(self) -> None:
        """In a new version of the chain: what is damaged here is a suspect again."""
        local = self._local
        chain = local.chain
        if chain is None or chain.version == self._chain_version or not target.may_serve(local.state, local.public):
            return
        for found in await local.call(local.engine.quarantined, SUSPECTS_MAX):
            if not found.replaced:
                local.suspect(found.key)
        self._chain_version = chain.version

    async def once(self) -> None:
        """Look at every suspect that is due now. Raises DISK_FAILED."""
        local = self._local
        clock = self._replicas.clock
        while (key := local.suspects.take(clock.monotonic_s())) is not None:
            outcome = scrub.Outcome.LATER
            try:
                outcome = await self._repairer.repair(local, key)
            finally:
                local.suspects.put_back(key, outcome, clock.monotonic_s())
