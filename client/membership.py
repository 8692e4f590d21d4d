"""A server process's place in the cluster: heartbeats out, routing and configuration in.

One heartbeat at a time, every `interval_s`, and at once after `poke`. Routing comes with the replies and by a long poll
beside them, so that a change of a chain arrives within milliseconds. `last_heartbeat_ok` is when the last answered
heartbeat was *sent*: storage fences itself by it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Sequence

from fireflyfs import __version__
from fireflyfs.client.mgmtd_client import AsyncMgmtdClient
from fireflyfs.client.routing import Routing
from fireflyfs.client.routing_source import AsyncRoutingSource
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.waiting import set_within
from fireflyfs.proto import mgmtd_pb2
from fireflyfs.proto.common_pb2 import Endpoint, NodeType

INTERVAL_S = 1.0
JITTER = 0.1  # of the interval: workers of one start do not beat together for ever
POKE_PAUSE_S = 0.05  # between heartbeats at most this often, however often it is poked
STOP_S = 2.0  # for the last heartbeat of a planned stop

log = logging.getLogger(__name__)


async def report_death(
    addresses: Sequence[str], cluster_id: str, node_id: int, type: NodeType, worker: int, clock: Clock
) -> None:
    """Tell mgmtd that a worker has ended, from whoever waited for the process: seconds before its silence tells.

    What the dead process may still have on its way counts as older than this, and this as older than its next life.
    Raises FfsError or TimeoutError when mgmtd cannot be told.
    """
    request = mgmtd_pb2.HeartbeatRequest(
        node_id=node_id,
        type=type,
        worker=worker,
        generation=clock.unix_ns(),
        sequence=1,
        stopping=True,
        hostname=socket.gethostname(),
        release=__version__,
    )
    mgmtd = AsyncMgmtdClient(addresses, cluster_id)
    try:
        async with asyncio.timeout(STOP_S):
            await mgmtd.heartbeat(request)
    finally:
        await mgmtd.close()


class Membership:
    """The heartbeat loop of one process. Belongs to one event loop."""

    def __init__(
        self,
        mgmtd: AsyncMgmtdClient,
        node_id: int,
        type: NodeType,
        worker: int,
        endpoint: Endpoint,
        report: Callable[[], list[mgmtd_pb2.TargetReport]],
        on_routing: Callable[[Routing], None],
        clock: Clock,
        *,
        interval_s: float = INTERVAL_S,
        on_config: Callable[[mgmtd_pb2.ConfigInfo], None] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`report` is asked before each heartbeat; `on_routing` and `on_config` are called in the loop with news."""
        self._mgmtd = mgmtd
        self._clock = clock
        self._interval_s = interval_s
        self._report = report
        self._on_config = on_config
        self._random = rng or random.Random()
        self._source = AsyncRoutingSource(mgmtd, on_routing=on_routing, rng=self._random)
        self._poked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._sequence = 0
        self._config_version = 0
        self._generation = clock.unix_ns()  # grows with each start; where the host's date was set back, mgmtd waits
        self._about = mgmtd_pb2.HeartbeatRequest(
            node_id=node_id,
            type=type,
            worker=worker,
            endpoint=endpoint,
            hostname=socket.gethostname(),
            release=__version__,
        )
        self.last_heartbeat_ok: float | None = None  # monotonic seconds; None before the first answer
        self.last_error: FfsError | None = None  # of the last heartbeat; None when it was answered

    @property
    def routing(self) -> Routing:
        """The newest routing; version 0 before the first answer."""
        return self._source.current()

    def current(self) -> Routing:
        """The same, as an `AsyncRoutingView`."""
        return self._source.current()

    async def wait_newer(self, version: int, timeout_s: float) -> Routing:
        """The routing once it is newer than `version`, or the current one after `timeout_s`."""
        return await self._source.wait_newer(version, timeout_s)

    async def wait_until(self, predicate: Callable[[Routing], bool], timeout_s: float) -> Routing:
        """The first routing seen that `predicate` accepts. Raises UNAVAILABLE after `timeout_s`."""
        return await self._source.wait_until(predicate, timeout_s)

    async def start(self) -> None:
        """Start beating. Returns at once: mgmtd may still be away."""
        await self._source.start()
        self._task = asyncio.create_task(self._run(), name="ffs-heartbeat")

    def poke(self) -> None:
        """Something that mgmtd should know at once has changed. From the event loop only."""
        self._poked.set()

    async def stop(self, planned: bool = True) -> None:
        """Stop beating. `planned`: mgmtd is told, so that chains and clients need not wait for silence."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if planned:
            try:
                async with asyncio.timeout(STOP_S):
                    await self._beat(stopping=True)
            except (TimeoutError, FfsError) as exc:
                log.warning("mgmtd was not told of the stop: %s", exc)
        await self._source.close()

    async def _run(self) -> None:
        warned = False
        while True:
            self._poked.clear()
            try:
                await self._beat()
                warned = False
            except FfsError as exc:
                if exc.code is Code.UNKNOWN_NODE or not warned:
                    log.log(logging.DEBUG if warned else logging.WARNING, "heartbeat failed: %s", exc)
                warned = True
            except Exception:
                log.exception("heartbeat failed; the next one tries again")
            await asyncio.sleep(POKE_PAUSE_S)
            pause_s = self._interval_s * (1 - JITTER * self._random.random()) - POKE_PAUSE_S
            await set_within(self._poked, max(0.0, pause_s))

    async def _beat(self, *, stopping: bool = False) -> None:
        self._sequence += 1
        request = mgmtd_pb2.HeartbeatRequest()
        request.CopyFrom(self._about)
        request.generation = self._generation
        request.sequence = self._sequence
        request.stopping = stopping
        request.routing_version = self.routing.version
        request.config_version = self._config_version
        request.targets.extend(self._report())
        sent_s = self._clock.monotonic_s()
        try:
            reply = await self._mgmtd.heartbeat(request)
        except FfsError as exc:
            self.last_error = exc
            raise
        self.last_error = None
        if stopping:
            # The last news that this process gets: it is out of its chains. Without it, what is under way here would be
            # sent along chains that have moved on, again and again, until the doors close.
            self._source.offer(reply.routing)
            return
        self.last_heartbeat_ok = sent_s
        if not self._source.offer(reply.routing):
            log.info("routing from the heartbeat does not fit; the poll brings all of it")
        if reply.HasField("config") and reply.config.version > self._config_version:
            self._config_version = reply.config.version
            if self._on_config is not None:
                try:
                    self._on_config(reply.config)
                except Exception:
                    log.exception("configuration version %d could not be put to use", reply.config.version)
