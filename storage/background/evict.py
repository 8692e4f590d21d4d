"""Keeps one target's blocks of the KV cache within their bounds: makes the index when the target was opened, then
evicts every second, and when a put asks for it."""

from __future__ import annotations

import asyncio
import logging

from fireflyfs.common.errors import FfsError
from fireflyfs.storage.engine.interface import ChunkKey
from fireflyfs.storage.service.evictor import Evictor
from fireflyfs.storage.service.local_target import LocalTarget

log = logging.getLogger(__name__)

EVERY_S = 1.0


class CacheKeeper:
    """The job of one target."""

    def __init__(self, local: LocalTarget, evictor: Evictor) -> None:
        self._local = local
        self._evictor = evictor
        self._loaded = False

    async def run(self) -> None:
        """Until cancelled, or the disk has failed."""
        while not self._local.state.failed:
            try:
                if not self._loaded:
                    await self.load()
                await self._evictor.once()
            except FfsError as exc:
                log.warning("target %d: cannot list or evict blocks: %s", self._local.target_id, exc.message)
            except Exception:
                log.exception("target %d: cannot list or evict blocks", self._local.target_id)
            await self._evictor.wait(EVERY_S)

    async def load(self) -> None:
        """Make the index of what is stored; look-ups ask the engine until then. Raises FfsError."""
        after: ChunkKey | None = None
        while True:
            after = await self._local.call(self._local.cache.load_page, after)
            if after is None:
                break
            await asyncio.sleep(0)  # threads and loop are there for requests first
        self._loaded = True
        if len(self._local.cache):
            log.info("target %d holds %d blocks of the KV cache", self._local.target_id, len(self._local.cache))
