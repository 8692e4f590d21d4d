"""The metadata process: opens the store, serves both lanes, and runs the background jobs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fireflyfs.client.async_storage import AsyncStorageClient
from fireflyfs.client.membership import Membership
from fireflyfs.client.mgmtd_client import AsyncMgmtdClient
from fireflyfs.client.routing import Routing
from fireflyfs.common.clock import SystemClock
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.kv.interface import KvEngine
from fireflyfs.common.kv.memory import MemoryKv
from fireflyfs.common.kv.read_ahead import read_ahead
from fireflyfs.common.kv.rocksdb import RocksKv
from fireflyfs.common.limits import CHUNK_BYTES_DEFAULT, UPDATE_ITEMS_MAX, MiB
from fireflyfs.common.net.control import ControlServer
from fireflyfs.common.net.counting import as_numbers
from fireflyfs.common.net.dual import link_handlers
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.link_choice import check_name, choose_link
from fireflyfs.common.net.multiplex import MultiplexLink
from fireflyfs.common.net.server import LinkServer
from fireflyfs.meta.background.housekeeping import expire_outcomes, sync_commits
from fireflyfs.meta.background.sessions import SessionReaper
from fireflyfs.meta.core.layout import LayoutRule, checked
from fireflyfs.meta.service.assembly import MetaParts, assemble
from fireflyfs.proto import meta_pb2, mgmtd_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_META, Endpoint

log = logging.getLogger(__name__)
JOB_AGAIN_S = 5.0  # a background job that failed on a bug of ours starts again


@dataclass
class MetaConfig:
    """A metadata server. Ports 0: any free one; an empty unix_path: no shared-memory door."""

    cluster_id: str
    node_id: int
    mgmtd: list[str]
    kv: str = "rocksdb"  # or "memory": forgotten at the end, for tests
    kv_path: str = ""
    kv_sync_commits: bool = False  # every commit survives a power cut; slow
    kv_read_ahead_mib: int = 4096  # of the store, read into the page cache at the start; 0: none
    listen_host: str = "127.0.0.1"
    link: str = "auto"  # what is offered, and taken to other servers: auto, rdma, tcp, shm; FFS_LINK goes before it
    grpc_port: int = 0
    tcp_port: int = 0
    unix_path: str = ""
    root_uid: int = 0  # of the root directory, when the store is new
    root_gid: int = 0
    root_mode: int = 0o1777
    default_chunk_size: int = CHUNK_BYTES_DEFAULT  # of the root directory, when the store is new
    default_stripe_size: int = 4
    default_chain_table: int = 1
    garbage_files_at_once: int = 256
    garbage_files_per_s: float = 10_000.0
    reap_sessions_every_s: float = 15.0
    trash_keep_s: float = 0.0  # how long what was removed can be restored; 0: not at all

    def __post_init__(self) -> None:
        if self.kv not in ("rocksdb", "memory"):
            raise ValueError(f'kv must be "rocksdb" or "memory", not "{self.kv}"')
        if self.kv == "rocksdb" and not self.kv_path:
            raise ValueError("kv_path is needed with the rocksdb store")
        if self.kv_read_ahead_mib < 0:
            raise ValueError(f"kv_read_ahead_mib must not be negative: {self.kv_read_ahead_mib}")
        check_name(self.link)
        if not 0 <= self.root_mode <= 0o7777:
            raise ValueError(f"root_mode {self.root_mode:#o} is no mode")
        if not 1 <= self.garbage_files_at_once <= UPDATE_ITEMS_MAX:
            raise ValueError(f"garbage_files_at_once must be 1 to {UPDATE_ITEMS_MAX}, not {self.garbage_files_at_once}")
        if self.garbage_files_per_s <= 0 or self.reap_sessions_every_s <= 0:
            raise ValueError("garbage_files_per_s and reap_sessions_every_s must be above 0")
        if self.trash_keep_s < 0:
            raise ValueError(f"trash_keep_s must not be negative: {self.trash_keep_s}")
        try:
            checked(self.layout)
        except FfsError as exc:
            raise ValueError(exc.message) from exc

    @property
    def layout(self) -> LayoutRule:
        return LayoutRule(self.default_chunk_size, self.default_stripe_size, self.default_chain_table)


class _Routing:
    """The membership's routing; empty until there is a membership, which needs the doors to be open."""

    def __init__(self) -> None:
        self.membership: Membership | None = None

    def current(self) -> Routing:
        return self.membership.current() if self.membership is not None else Routing()

    async def wait_newer(self, version: int, timeout_s: float) -> Routing:
        if self.membership is None:
            await asyncio.sleep(min(timeout_s, 0.1))
            return Routing()
        return await self.membership.wait_newer(version, timeout_s)


def _open_store(config: MetaConfig) -> KvEngine:
    if config.kv == "memory":
        return MemoryKv()
    return RocksKv(Path(config.kv_path), sync_commits=config.kv_sync_commits)


async def serve(config: MetaConfig, stop: asyncio.Event) -> None:
    """Serve until `stop`; then tell mgmtd, finish what is under way, sync the store and close it."""
    clock = SystemClock()
    identity = Identity(config.cluster_id, link=choose_link(configured=config.link))
    routing = _Routing()
    mgmtd = AsyncMgmtdClient(config.mgmtd, config.cluster_id)
    links = MultiplexLink(identity)
    storage = AsyncStorageClient(links, routing, identity.client_id, clock=clock)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(mgmtd.close)
        stack.push_async_callback(links.close)
        engine = await asyncio.to_thread(_open_store, config)
        stack.push_async_callback(_close_store, engine)
        parts = assemble(
            engine,
            clock,
            storage,
            routing,
            root=(config.root_uid, config.root_gid, config.root_mode),
            layout=config.layout,
            garbage_at_once=config.garbage_files_at_once,
            garbage_files_per_s=config.garbage_files_per_s,
            trash_keep_s=config.trash_keep_s,
        )
        stack.push_async_callback(run_jobs(parts, mgmtd, config))
        descriptor = meta_pb2.DESCRIPTOR.services_by_name["Meta"]
        handlers = link_handlers(descriptor, "META", parts.handlers)
        link = LinkServer(identity, handlers, host=config.listen_host, port=config.tcp_port, unix_path=config.unix_path)
        parts.handlers.link_counts = lambda: as_numbers("link", link.traffic()) | as_numbers("peers", links.traffic())
        stack.push_async_callback(link.stop)
        await link.start()
        control = ControlServer([(descriptor, parts.handlers)], host=config.listen_host, port=config.grpc_port)
        stack.push_async_callback(control.stop)
        await control.start()
        endpoint = Endpoint(
            grpc=control.address, tcp=link.tcp, unix=link.unix, host_id=identity.host_id, rdma=link.rdma_devices
        )
        membership = Membership(mgmtd, config.node_id, NODE_TYPE_META, 0, endpoint, _no_targets, _ignore_routing, clock)
        routing.membership = membership
        stack.push_async_callback(membership.stop)
        await membership.start()
        log.info("metadata server %d: grpc %s, tcp %s", config.node_id, control.address, link.tcp)
        await stop.wait()


def _no_targets() -> list[mgmtd_pb2.TargetReport]:
    return []


def _ignore_routing(routing: Routing) -> None:
    """Whoever needs routing asks for the current one."""


async def _close_store(engine: KvEngine) -> None:
    try:
        await asyncio.to_thread(engine.sync)
    finally:
        engine.close()


def run_jobs(parts: MetaParts, mgmtd: AsyncMgmtdClient, config: MetaConfig) -> Callable[[], Awaitable[None]]:
    """Start the background jobs; returns what stops them."""

    def list_sessions() -> Coroutine[Any, Any, mgmtd_pb2.ListSessionsReply]:
        return mgmtd.list_sessions(mgmtd_pb2.ListSessionsRequest(cluster_id=config.cluster_id))

    runner = parts.runner
    reaper = SessionReaper(runner, list_sessions, interval_s=config.reap_sessions_every_s)
    jobs = {
        "trims": parts.trimmer.run,
        "garbage": parts.collector.run,
        "sessions": reaper.run,
        "trash": parts.trash.run,
        "durability": lambda: sync_commits(runner, parts.sync),
        "outcomes": lambda: expire_outcomes(runner),
        "count": parts.space.count_files,
        "usage": parts.folder.run,
        "uncounted": parts.counter.run,
        "quotas": parts.accounting.run,
    }
    if config.kv == "rocksdb":
        jobs["read-ahead"] = lambda: read_ahead(Path(config.kv_path), config.kv_read_ahead_mib * MiB)

    async def keep(name: str) -> None:
        while True:
            try:
                await jobs[name]()
            except FfsError as exc:
                level = logging.ERROR if exc.code is Code.INTERNAL else logging.WARNING
                log.log(level, "background job %s stopped and starts again: %s", name, exc)
            except Exception:
                log.exception("background job %s stopped and starts again", name)
            else:
                return
            await asyncio.sleep(JOB_AGAIN_S)

    tasks = [asyncio.create_task(keep(name), name=f"meta-{name}") for name in jobs]

    async def stop() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    return stop
