"""The storage processes: `serve_worker` serves one group of targets, `serve_node` keeps one such process for each."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from fireflyfs.client.membership import Membership, report_death
from fireflyfs.client.mgmtd_client import AsyncMgmtdClient
from fireflyfs.common import config as configuration
from fireflyfs.common.clock import Clock, LeaseClock, SystemClock
from fireflyfs.common.errors import Code, FfsError, error, from_oserror
from fireflyfs.common.net.control import ControlServer
from fireflyfs.common.net.counting import as_numbers
from fireflyfs.common.net.dual import link_handlers
from fireflyfs.common.net.identity import Identity
from fireflyfs.common.net.link_choice import check_name, choose_link
from fireflyfs.common.net.multiplex import MultiplexLink
from fireflyfs.common.net.server import LinkServer
from fireflyfs.common.waiting import set_within
from fireflyfs.proto import storage_pb2
from fireflyfs.proto.common_pb2 import NODE_TYPE_STORAGE, Endpoint
from fireflyfs.storage.background.scrub import SCRUB_BYTES_S, SCRUB_EVERY_S
from fireflyfs.storage.core.fence import FENCE_S
from fireflyfs.storage.engine.identity import create_target, require_identity
from fireflyfs.storage.engine.store import open_engine
from fireflyfs.storage.service.evictor import ROOM_BYTES_MAX, ROOM_PART
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.worker import StorageWorker

log = logging.getLogger(__name__)

SUPERVISOR_ENV = "FFS_STORAGE_SUPERVISOR"
RESTART_FIRST_S = 0.5
RESTART_MAX_S = 10.0
HEALTHY_AFTER_S = 20.0  # a worker that ran this long starts again without delay
STOP_GRACE_S = 20.0
LOOK_AGAIN_S = 5.0  # whether a disk that was not there is back
_PR_SET_PDEATHSIG = 1


@dataclass
class TargetConfig:
    """One target: a directory, best on a disk of its own."""

    target_id: int
    path: str
    capacity_bytes: int = 0  # 0: what its file system has


@dataclass
class WorkerConfig:
    """One worker process: its targets and its doors. Port 0: any free one; empty unix_path: no shared memory."""

    targets: list[TargetConfig]
    grpc_port: int = 0
    tcp_port: int = 0
    unix_path: str = ""


@dataclass
class StorageConfig:
    """A storage node."""

    cluster_id: str
    node_id: int
    mgmtd: list[str]
    workers: list[WorkerConfig]
    listen_host: str = "127.0.0.1"
    link: str = "auto"  # what is offered, and taken to other servers: auto, rdma, tcp, shm; FFS_LINK goes before it
    threads: int = 4  # of each target, for what would block
    resync_bytes_s: int = 64 << 20  # that a target sends to the one that it brings up to date; 0: as fast as it goes
    scrub_bytes_s: int = SCRUB_BYTES_S  # that the scrubber reads of each target; 0: passes only when they are asked for
    scrub_every_s: float = SCRUB_EVERY_S  # between the end of a pass and the next one; 0: the same
    cache_room_part: float = ROOM_PART  # of each disk that blocks of the KV cache leave free
    cache_room_bytes_max: int = ROOM_BYTES_MAX  # but no more than this
    fence_s: float = FENCE_S  # shorter than mgmtd's failed_after_s
    create_targets: bool = True  # make targets of empty directories

    def __post_init__(self) -> None:
        ids = [target.target_id for worker in self.workers for target in worker.targets]
        if len(set(ids)) != len(ids):
            raise ValueError("a target_id stands twice in the configuration")
        if not ids:
            raise ValueError("no targets are configured")
        if not 1 <= self.threads <= 64:
            raise ValueError(f"threads must be 1 to 64, not {self.threads}")
        check_name(self.link)
        if self.fence_s <= 0:
            raise ValueError("fence_s must be above 0")
        if not 0 <= self.cache_room_part < 1:
            raise ValueError("cache_room_part must be at least 0 and below 1")
        for name in ("resync_bytes_s", "scrub_bytes_s", "scrub_every_s", "cache_room_bytes_max"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")


def open_targets(config: StorageConfig, worker: WorkerConfig) -> tuple[list[LocalTarget], list[TargetConfig]]:
    """The worker's targets, and those whose folders do not hold them: a disk that is not there must not keep the others
    of its worker from serving. mgmtd takes what is not reported for offline.

    Raises the first failure when none can be opened; none stays open when it raises.
    """
    opened: list[LocalTarget] = []
    absent: list[TargetConfig] = []
    first: FfsError | None = None
    try:
        for target in worker.targets:
            try:
                opened.append(_open(config, target))
            except FfsError as exc:
                first = first or exc
                log.error("target %d is left out: %s", target.target_id, exc.message)
                if not _is_there(config, target):
                    absent.append(target)
    except BaseException:
        for local in opened:
            local.close()
        raise
    if first is not None and not opened:
        raise first
    return opened, absent


def _open(config: StorageConfig, target: TargetConfig) -> LocalTarget:
    path = Path(target.path)
    try:
        if config.create_targets:
            create_target(path, config.cluster_id, target.target_id)
        engine = open_engine(
            path, capacity_bytes=target.capacity_bytes, cluster_id=config.cluster_id, target_id=target.target_id
        )
    except OSError as exc:
        raise from_oserror(exc) from exc
    return LocalTarget(target.target_id, engine, path=path, threads=config.threads)


def _is_there(config: StorageConfig, target: TargetConfig) -> bool:
    try:
        require_identity(Path(target.path), config.cluster_id, target.target_id)
    except FfsError:
        return False
    return True


async def _one_is_back(config: StorageConfig, absent: list[TargetConfig]) -> None:
    """Returns when the folder of an absent target holds it again; never where none is absent."""
    while True:
        await asyncio.sleep(LOOK_AGAIN_S)
        for target in absent:
            if await asyncio.to_thread(_is_there, config, target):
                log.info("target %d is there again: the worker starts anew with it", target.target_id)
                return


async def serve_worker(config: StorageConfig, worker: int, stop: asyncio.Event) -> None:
    """Serve worker number `worker` until `stop`; then tell mgmtd, finish what is under way, and close."""
    if not 0 <= worker < len(config.workers):
        raise error(Code.CONFIG, f"there is no worker {worker}: the configuration has {len(config.workers)}")
    _die_with_supervisor()
    mine = config.workers[worker]
    lease_clock = LeaseClock()  # a suspended worker must know when it wakes that it was taken out of its chains
    identity = Identity(config.cluster_id, link=choose_link(configured=config.link))
    targets, absent = await asyncio.to_thread(open_targets, config, mine)
    membership: Membership | None = None
    peers = MultiplexLink(identity)
    storage = StorageWorker(
        targets,
        peers,
        SystemClock(),
        last_heartbeat_s=lambda: membership.last_heartbeat_ok if membership is not None else None,
        lease_clock=lease_clock,
        fence_s=config.fence_s,
        resync_bytes_s=config.resync_bytes_s,
        scrub_bytes_s=config.scrub_bytes_s,
        scrub_every_s=config.scrub_every_s,
        cache_room_part=config.cache_room_part,
        cache_room_bytes_max=config.cache_room_bytes_max,
        on_target_change=lambda: membership.poke() if membership is not None else None,
    )
    descriptor = storage_pb2.DESCRIPTOR.services_by_name["Storage"]
    handlers = link_handlers(descriptor, "STORAGE", storage.service) | storage.service.bulk_handlers()
    link = LinkServer(identity, handlers, host=config.listen_host, port=mine.tcp_port, unix_path=mine.unix_path)
    storage.service.link_counts = lambda: as_numbers("link", link.traffic()) | as_numbers("peers", peers.traffic())
    control = ControlServer([(descriptor, storage.service)], host=config.listen_host, port=mine.grpc_port)
    mgmtd = AsyncMgmtdClient(config.mgmtd, config.cluster_id)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(storage.replicas.link.close)
        stack.push_async_callback(storage.stop)
        stack.push_async_callback(mgmtd.close)
        await storage.start()
        stack.push_async_callback(link.stop)
        await link.start()
        stack.push_async_callback(control.stop)
        await control.start()
        endpoint = Endpoint(
            grpc=control.address, tcp=link.tcp, unix=link.unix, host_id=identity.host_id, rdma=link.rdma_devices
        )
        membership = Membership(
            mgmtd,
            config.node_id,
            NODE_TYPE_STORAGE,
            worker,
            endpoint,
            storage.reports,
            storage.replicas.install,
            lease_clock,
        )
        await membership.start()
        # mgmtd hears first that this worker goes: its chains move on while it finishes what is under way.
        stack.push_async_callback(membership.stop, planned=True)
        log.info(
            "storage worker %d.%d serves targets %s: grpc %s, tcp %s, unix %s",
            config.node_id,
            worker,
            [local.target_id for local in targets],
            endpoint.grpc,
            endpoint.tcp,
            endpoint.unix or "none",
        )
        ends = [asyncio.create_task(stop.wait()), asyncio.create_task(_one_is_back(config, absent))]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        log.info("storage worker %d.%d stops", config.node_id, worker)


def _die_with_supervisor() -> None:
    """A worker must not outlive its supervisor: it would keep the targets from the next one."""
    supervisor = os.environ.get(SUPERVISOR_ENV)
    if supervisor is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(supervisor):
        raise error(Code.UNAVAILABLE, "the supervisor has gone")


async def serve_node(config: StorageConfig, stop: asyncio.Event) -> None:
    """Keep one worker process for each group of targets until `stop`; then stop them in good order."""
    fd = _in_memory(config)
    try:
        keepers = [
            asyncio.create_task(_keep(config, fd, worker, stop), name=f"worker {worker}")
            for worker in range(len(config.workers))
        ]
        await asyncio.gather(*keepers)
    finally:
        os.close(fd)


def _in_memory(config: StorageConfig) -> int:
    """The configuration for workers, as a descriptor: a file in /tmp is cleaned away some day, and a worker that dies
    after that could not be started again."""
    fd = os.memfd_create("storage.toml")
    with os.fdopen(os.dup(fd), "w", encoding="utf-8") as file:
        file.write(configuration.dump(config))
    return fd


async def _keep(config: StorageConfig, fd: int, worker: int, stop: asyncio.Event) -> None:
    clock = SystemClock()
    pause_s = RESTART_FIRST_S
    path = f"/proc/self/fd/{fd}"
    command = ("-m", "fireflyfs.client.cli.main", "run", "storage", "--config", path, "--worker", str(worker))
    while not stop.is_set():
        started_s = clock.monotonic_s()
        environment = {**os.environ, SUPERVISOR_ENV: str(os.getpid())}
        try:
            process = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment, pass_fds=(fd,))
        except OSError as exc:  # no memory for it now, say: the other workers go on
            log.error("worker %d.%d cannot be started: %s; next attempt in %g s", config.node_id, worker, exc, pause_s)
            await set_within(stop, pause_s)
            pause_s = min(RESTART_MAX_S, pause_s * 2)
            continue
        log.info("worker %d.%d runs as process %d", config.node_id, worker, process.pid)
        stopping = asyncio.create_task(stop.wait())
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                process.terminate()
                await asyncio.wait({ended}, timeout=STOP_GRACE_S)
                if not ended.done():
                    log.warning("worker %d.%d does not stop: it is killed", config.node_id, worker)
                    process.kill()
                    await ended
                return
        finally:
            stopping.cancel()
            if process.returncode is None and not ended.done():
                process.kill()
        if clock.monotonic_s() - started_s > HEALTHY_AFTER_S:
            pause_s = RESTART_FIRST_S
        log.error(
            "worker %d.%d ended with %s: it starts again in %g s", config.node_id, worker, process.returncode, pause_s
        )
        telling = asyncio.create_task(_tell_of_death(config, worker, clock))
        await set_within(stop, pause_s)
        await telling
        pause_s = min(RESTART_MAX_S, pause_s * 2)


async def _tell_of_death(config: StorageConfig, worker: int, clock: Clock) -> None:
    """Chains go on without a dead worker at once; without this, after mgmtd has missed it for its failure interval."""
    try:
        await report_death(config.mgmtd, config.cluster_id, config.node_id, NODE_TYPE_STORAGE, worker, clock)
    except (FfsError, TimeoutError) as exc:
        log.warning("mgmtd was not told that worker %d.%d ended: %s", config.node_id, worker, exc)
