"""The one writer: events become changes, changes become durable, then true, then known to everyone who waits.

Every event runs under one lock from the decision to its publication, so decisions see what the last one published.
The store's calls run in a thread; an event that changes nothing durable never waits for the disk itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.common.waiting import set_within
from fireflyfs.mgmtd.core.cluster import Cluster
from fireflyfs.mgmtd.core.leases import LeaseTable
from fireflyfs.mgmtd.core.records import Changes
from fireflyfs.mgmtd.store.store import Store
from fireflyfs.proto import mgmtd_pb2

DELTAS_CACHED_MAX = 16
REASONS_LOGGED_MAX = 64  # of one event

T = TypeVar("T")
log = logging.getLogger(__name__)


class Manager:
    """State, store and waiters of one mgmtd process. Belongs to one event loop."""

    def __init__(
        self, store: Store, cluster_id: str, clock: Clock, *, failed_after_s: float, session_lease_s: float
    ) -> None:
        """Loads everything from the store (blocks). Raises what `Store.load` raises."""
        stored = store.load(cluster_id)
        self.store = store
        self.clock = clock
        self.start_unix_ns = clock.unix_ns()
        now_s = clock.monotonic_s()
        self.cluster = Cluster(stored, now_s, failed_after_s=failed_after_s)
        self.leases = LeaseTable(session_lease_s, now_s)
        self.session_lease_s = session_lease_s
        self.configs: dict[int, list[mgmtd_pb2.ConfigInfo]] = {}  # by node type, oldest first
        for config in sorted(stored.configs, key=lambda config: config.version):
            self.configs.setdefault(config.type, []).append(config)
        self.waiting = 0  # long polls that wait now
        self._writer = asyncio.Lock()
        self._running: set[asyncio.Future[Any]] = set()
        self._published = asyncio.Event()
        self._deltas: OrderedDict[tuple[int, int], mgmtd_pb2.RoutingDelta] = OrderedDict()

    async def change(self, decide: Callable[[], Changes]) -> None:
        """Run one event. Raises what `decide` or the store raises; nothing has changed then."""
        await self.change_with(lambda: (decide(), None))

    async def change_with(self, decide: Callable[[], tuple[Changes, T]]) -> T:
        """The same for an event that also gives an answer."""
        # A caller that goes away must not free the writer's place while the store still works: memory and store would
        # part. So the event runs in a task of its own.
        task = asyncio.ensure_future(self._run(decide))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _run(self, decide: Callable[[], tuple[Changes, T]]) -> T:
        async with self._writer:
            changes, answer = decide()
            if changes:
                await self._commit(changes)
            return answer

    async def close(self) -> None:
        """Wait for the events under way; the store may be closed then."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _commit(self, changes: Changes) -> None:
        writes = self.store.writes_of(changes, self.cluster)
        if writes:
            try:
                await asyncio.to_thread(self.store.commit, writes, self.cluster.version + 1)
            except FfsError:
                # What was stored was not published, and is decided anew: a chain's next version may be written twice,
                # but only the second one is ever seen.
                log.exception("mgmtd cannot store a change")
                raise
        self.cluster.apply(changes)
        for reason in changes.reasons[:REASONS_LOGGED_MAX]:
            log.info("routing %d: %s", self.cluster.version, reason)
        published, self._published = self._published, asyncio.Event()
        published.set()

    def delta(self, since: int) -> mgmtd_pb2.RoutingDelta:
        """Routing after `since`; shared, so not to be changed."""
        key = (since, self.cluster.version)
        found = self._deltas.get(key)
        if found is None or found.full:  # a full answer carries figures that change without a version
            found = self._deltas[key] = self.cluster.delta(since)
            while len(self._deltas) > DELTAS_CACHED_MAX:
                self._deltas.popitem(last=False)
        return found

    async def wait_newer(self, version: int, wait_s: float) -> None:
        """Returns when routing is newer than `version`, or after `wait_s`."""
        deadline_s = asyncio.get_running_loop().time() + wait_s
        while self.cluster.version <= version:
            left_s = deadline_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                return
            if not await set_within(self._published, left_s):
                return

    async def add_config(self, config: mgmtd_pb2.ConfigInfo, expected_version: int) -> mgmtd_pb2.ConfigInfo:
        """Store a new version. `expected_version` 0: whatever stands now; else BUSY when another stands."""
        task = asyncio.ensure_future(self._add_config(config, expected_version))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _add_config(self, config: mgmtd_pb2.ConfigInfo, expected_version: int) -> mgmtd_pb2.ConfigInfo:
        async with self._writer:
            versions = self.configs.setdefault(config.type, [])
            newest = versions[-1].version if versions else 0
            if expected_version and expected_version != newest:
                raise error(Code.BUSY, f"the configuration is at version {newest}, not {expected_version}")
            config.version = newest + 1
            await asyncio.to_thread(self.store.add_config, config)
            versions.append(config)
            del versions[: -self.store.config_versions_kept]
            return config

    def newer_config(self, node_type: int, version: int) -> mgmtd_pb2.ConfigInfo | None:
        """The newest configuration of a node type, if `version` is not it."""
        versions = self.configs.get(node_type)
        return versions[-1] if versions and versions[-1].version != version else None
