"""The mgmtd process: configuration, wiring, and the tick that notices silent workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fireflyfs.common.clock import Clock, SystemClock
from fireflyfs.common.kv.interface import KvEngine
from fireflyfs.common.kv.memory import MemoryKv
from fireflyfs.common.kv.rocksdb import RocksKv
from fireflyfs.common.net.control import ControlServer
from fireflyfs.mgmtd.background.ticking import tick_forever
from fireflyfs.mgmtd.core.specs import ConfigParser
from fireflyfs.mgmtd.manager import Manager
from fireflyfs.mgmtd.service import MgmtdService
from fireflyfs.mgmtd.store.store import Store
from fireflyfs.proto import mgmtd_pb2

log = logging.getLogger(__name__)
MGMTD = mgmtd_pb2.DESCRIPTOR.services_by_name["Mgmtd"]


@dataclass(frozen=True)
class MgmtdConfig:
    """mgmtd's configuration file. Times are seconds."""

    cluster_id: str  # a new store is made this cluster's; another cluster's store is refused
    kv: str = "rocksdb"  # or "memory": nothing survives the process; for tests
    kv_path: str = ""  # directory of the store
    listen_host: str = "127.0.0.1"
    grpc_port: int = 7700  # 0: any free one
    heartbeat_interval_s: float = 1.0  # what workers are expected to keep
    failed_after_s: float = 5.0  # silence after which a worker is lost; must be longer than the fence of storage
    tick_interval_s: float = 0.2
    session_lease_s: float = 60.0
    routing_wait_max_s: float = 30.0
    same_node_replicas: bool = False  # let a chain have two targets on one node; for tests only

    def __post_init__(self) -> None:
        if not self.cluster_id:
            raise ValueError("cluster_id must not be empty")
        if self.kv not in ("rocksdb", "memory"):
            raise ValueError(f'kv is "rocksdb" or "memory", not "{self.kv}"')
        if self.kv == "rocksdb" and not self.kv_path:
            raise ValueError("kv_path is needed for rocksdb")
        if self.failed_after_s < 3 * self.heartbeat_interval_s:
            raise ValueError("failed_after_s must be at least three times heartbeat_interval_s")
        if not 0 < self.tick_interval_s <= self.failed_after_s / 4:
            raise ValueError("tick_interval_s must be positive and at most a quarter of failed_after_s")
        if self.session_lease_s <= 0 or self.routing_wait_max_s <= 0:
            raise ValueError("session_lease_s and routing_wait_max_s must be positive")


def open_kv(config: MgmtdConfig) -> KvEngine:
    if config.kv == "memory":
        return MemoryKv()
    return RocksKv(Path(config.kv_path), sync_commits=True)  # what a reply says must survive a power cut


class MgmtdServer:
    """One mgmtd: store, manager, service and its door. Starts in `start`, owns the store until `stop`."""

    def __init__(
        self,
        config: MgmtdConfig,
        *,
        clock: Clock | None = None,
        engine: KvEngine | None = None,
        config_parsers: Mapping[int, ConfigParser] | None = None,
    ) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._engine = engine if engine is not None else open_kv(config)
        self.manager = Manager(
            Store(self._engine),
            config.cluster_id,
            self._clock,
            failed_after_s=config.failed_after_s,
            session_lease_s=config.session_lease_s,
        )
        service = MgmtdService(
            self.manager,
            routing_wait_max_s=config.routing_wait_max_s,
            same_node_allowed=config.same_node_replicas,
            config_parsers=config_parsers,
        )
        self._control = ControlServer([(MGMTD, service)], host=config.listen_host, port=config.grpc_port)
        self._ticker: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """ "host:port" of the control lane, after `start`."""
        return self._control.address

    async def start(self) -> None:
        await self._control.start()
        self._ticker = asyncio.create_task(tick_forever(self.manager, self._clock, self._config.tick_interval_s))
        log.info("mgmtd of cluster %s listens on %s", self.manager.cluster.cluster_id, self.address)

    async def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        await self._control.stop()
        await self.manager.close()
        self._engine.close()


async def serve(
    config: MgmtdConfig, stop: asyncio.Event, *, config_parsers: Mapping[int, ConfigParser] | None = None
) -> None:
    """Run mgmtd until `stop` is set. `config_parsers` check what operators set for each node type."""
    server = MgmtdServer(config, config_parsers=config_parsers)
    try:
        await server.start()
        await stop.wait()
    finally:
        await server.stop()
