"""One storage worker put together: targets, request handlers, background jobs. Knows nothing of sockets or files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from fireflyfs.common.clock import Clock
from fireflyfs.common.net.api import AsyncLink
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.storage.background.disk import DiskWatcher
from fireflyfs.storage.background.evict import CacheKeeper
from fireflyfs.storage.background.pending import PendingResolver
from fireflyfs.storage.background.repair import SuspectRepair
from fireflyfs.storage.background.resync import Resync
from fireflyfs.storage.background.scrub import Scrubber
from fireflyfs.storage.core import fence
from fireflyfs.storage.service.evictor import ROOM_BYTES_MAX, ROOM_PART
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.operations import StorageService
from fireflyfs.storage.service.replica import Replicas

log = logging.getLogger(__name__)


class StorageWorker:
    """Owns its targets: `stop` closes their engines. `last_heartbeat_s` is by `lease_clock`, if not by `clock`."""

    def __init__(
        self,
        targets: Sequence[LocalTarget],
        link: AsyncLink,
        clock: Clock,
        *,
        last_heartbeat_s: Callable[[], float | None],
        lease_clock: Clock | None = None,
        fence_s: float = fence.FENCE_S,
        resync_bytes_s: int = 0,
        scrub_bytes_s: int = 0,
        scrub_every_s: float = 0.0,
        cache_room_part: float = ROOM_PART,
        cache_room_bytes_max: int = ROOM_BYTES_MAX,
        on_target_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.replicas = Replicas(
            targets, link, clock, fence_s=fence_s, last_heartbeat_s=last_heartbeat_s, lease_clock=lease_clock
        )
        self.service = StorageService(self.replicas, room_part=cache_room_part, room_bytes_max=cache_room_bytes_max)
        self._resync_bytes_s = resync_bytes_s
        self._scrub_bytes_s = scrub_bytes_s
        self._scrub_every_s = scrub_every_s
        self._jobs: list[asyncio.Task[None]] = []
        for local in targets:
            local.on_change = on_target_change

    async def start(self) -> None:
        """Look at every disk once, then start the background jobs. Raises FfsError when a disk has failed."""
        for local in self.replicas.targets.values():
            watcher = DiskWatcher(local)
            await watcher.once()
            resolver = PendingResolver(self.replicas, self.service.updater, local)
            repairer = self.service.repairer
            resync = Resync(self.replicas, self.service.updater, repairer, local, self._resync_bytes_s)
            suspects = SuspectRepair(self.replicas, repairer, local)
            scrubber = Scrubber(
                self.replicas, repairer, local, bytes_s=self._scrub_bytes_s, every_s=self._scrub_every_s
            )
            jobs = {
                "disk": watcher.run(),
                "pending": resolver.run(),
                "resync": resync.run(),
                "repair": suspects.run(),
                "scrub": scrubber.run(),
                "cache": CacheKeeper(local, self.service.evictors.of(local)).run(),
            }
            for name, job in jobs.items():
                self._jobs.append(asyncio.create_task(job, name=f"{name} {local.target_id}"))

    def reports(self) -> list[mgmtd_pb2.TargetReport]:
        """What the heartbeat says of the targets."""
        return [local.report() for local in self.replicas.targets.values()]

    async def stop(self, grace_s: float = 5.0) -> None:
        """End the jobs, let updates under way finish for `grace_s`, close the engines."""
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        self._jobs.clear()
        targets = list(self.replicas.targets.values())
        await asyncio.gather(*(local.drain(grace_s) for local in targets))
        for local in targets:
            await asyncio.to_thread(local.close)
