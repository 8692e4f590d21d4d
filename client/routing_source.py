"""Routing that keeps itself new: long polls of mgmtd, one picture for all readers, and waiting for a newer one."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable

from fireflyfs.client.mgmtd_client import AsyncMgmtdClient, MgmtdClient
from fireflyfs.client.routing import Routing, apply_delta
from fireflyfs.common.errors import Code, FfsError, error
from fireflyfs.proto import mgmtd_pb2

POLL_WAIT_S = 10.0  # how long mgmtd holds a poll; bounded by mgmtd too
PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 2.0
JOIN_S = 0.2
# Versions never go back as long as mgmtd keeps its store; what is known here may be newer, and stays.
ROLLED_BACK = "mgmtd is at routing version %d, behind the %d known here: has its store been lost?"

log = logging.getLogger(__name__)


def _not_in_time(routing: Routing, timeout_s: float, lacks: str) -> FfsError:
    if not routing.version:
        lacks = "nothing was heard of it"
    lacks = lacks or f"its state is still that of routing version {routing.version}"
    return error(Code.UNAVAILABLE, f"waited {timeout_s:g} s for the cluster: {lacks}")


class Pauses:
    """Growing pauses with jitter between attempts of a loop that never gives up."""

    def __init__(self, rng: random.Random | None = None, pause_max_s: float = PAUSE_MAX_S) -> None:
        self._random = rng or random.Random()
        self._max_s = pause_max_s
        self._pause_s = PAUSE_FIRST_S

    def reset(self) -> None:
        self._pause_s = PAUSE_FIRST_S

    def next_s(self) -> float:
        pause_s = self._pause_s * self._random.uniform(0.5, 1.0)
        self._pause_s = min(self._pause_s * 2, self._max_s)
        return pause_s


def merge(old: Routing, delta: mgmtd_pb2.RoutingDelta) -> Routing | None:
    """The routing after `delta`, or None when it does not fit and a full one must be asked for."""
    try:
        return apply_delta(old, delta)
    except FfsError as exc:
        if exc.code is not Code.PROTOCOL:
            raise
        return None


class RoutingSource:
    """Routing for threads. A daemon thread polls; readers never wait for it unless they ask to."""

    def __init__(
        self,
        mgmtd: MgmtdClient,
        *,
        rng: random.Random | None = None,
        poll_wait_s: float = POLL_WAIT_S,
    ) -> None:
        """`mgmtd` stays the caller's: stop this first, then close that."""
        self._mgmtd = mgmtd
        self._pauses = Pauses(rng)
        self._poll_wait_s = poll_wait_s
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._routing = Routing()
        self._thread = threading.Thread(target=self._run, name="ffs-routing", daemon=True)
        self._thread.start()

    def current(self) -> Routing:
        """The newest picture; version 0 before the first answer."""
        return self._routing

    def wait_newer(self, version: int, timeout_s: float) -> Routing:
        """The routing once it is newer than `version`, or the current one after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._routing.version > version or self._closed.is_set(), timeout_s)
            return self._routing

    def wait_until(self, predicate: Callable[[Routing], bool], timeout_s: float, *, lacks: str = "") -> Routing:
        """The first routing seen that `predicate` accepts. UNAVAILABLE after `timeout_s`, with what it `lacks`."""
        with self._changed:
            done = self._changed.wait_for(lambda: predicate(self._routing) or self._closed.is_set(), timeout_s)
            if not done or not predicate(self._routing):
                raise _not_in_time(self._routing, timeout_s, lacks)
            return self._routing

    def stop(self) -> None:
        """Poll no more. Waiters return; a poll under way ends by itself, or when its client is closed."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """As `stop`, and wait for a moment for the poll to end."""
        self.stop()
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        since = 0
        while not self._closed.is_set():
            wait_ms = int(self._poll_wait_s * 1000) if since else 0
            try:
                request = mgmtd_pb2.GetRoutingRequest(since_version=since, wait_ms=wait_ms)
                delta = self._mgmtd.get_routing(request)
            except FfsError as exc:
                if exc.code is Code.CANCELLED and self._closed.is_set():
                    return
                log.debug("no routing now: %s", exc)
                self._closed.wait(self._pauses.next_s())
                continue
            except Exception:
                if self._closed.is_set():
                    return
                log.exception("the routing poll failed; it goes on")
                self._closed.wait(self._pauses.next_s())
                continue
            if delta.version < since:
                log.error(ROLLED_BACK, delta.version, since)
                self._closed.wait(PAUSE_MAX_S)
                continue
            self._pauses.reset()
            merged = merge(self._routing, delta)
            if merged is not None:
                self._replace(merged)
            since = self._routing.version if merged is not None else 0

    def _replace(self, routing: Routing) -> None:
        if routing is not self._routing:
            with self._changed:
                self._routing = routing
                self._changed.notify_all()


class AsyncRoutingSource:
    """Routing for one event loop. `offer` takes deltas from elsewhere (heartbeat replies) too."""

    def __init__(
        self,
        mgmtd: AsyncMgmtdClient,
        *,
        on_routing: Callable[[Routing], None] | None = None,
        rng: random.Random | None = None,
        poll_wait_s: float = POLL_WAIT_S,
    ) -> None:
        """`on_routing` is called in the loop with each newer routing, in order."""
        self._mgmtd = mgmtd
        self._on_routing = on_routing
        self._pauses = Pauses(rng)
        self._poll_wait_s = poll_wait_s
        self._changed = asyncio.Event()
        self._routing = Routing()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="ffs-routing")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def current(self) -> Routing:
        """The newest picture; version 0 before the first answer."""
        return self._routing

    async def wait_newer(self, version: int, timeout_s: float) -> Routing:
        """The routing once it is newer than `version`, or the current one after `timeout_s`."""
        return await self._wait(lambda routing: routing.version > version, timeout_s)

    async def wait_until(self, predicate: Callable[[Routing], bool], timeout_s: float, *, lacks: str = "") -> Routing:
        """The first routing seen that `predicate` accepts. UNAVAILABLE after `timeout_s`, with what it `lacks`."""
        routing = await self._wait(predicate, timeout_s)
        if not predicate(routing):
            raise _not_in_time(routing, timeout_s, lacks)
        return routing

    async def _wait(self, predicate: Callable[[Routing], bool], timeout_s: float) -> Routing:
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate(self._routing):
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self._routing

    def offer(self, delta: mgmtd_pb2.RoutingDelta) -> bool:
        """Take in a delta from elsewhere. False: it does not fit, and everything must be asked for."""
        merged = merge(self._routing, delta)
        if merged is None:
            return False
        self._replace(merged)
        return True

    def _replace(self, routing: Routing) -> None:
        if routing is self._routing:
            return
        self._routing = routing
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self._on_routing is not None:
            try:
                self._on_routing(routing)
            except Exception:
                log.exception("routing version %d could not be put to use", routing.version)

    async def _run(self) -> None:
        full = True
        while True:
            since = 0 if full else self._routing.version
            wait_ms = int(self._poll_wait_s * 1000) if since else 0
            try:
                request = mgmtd_pb2.GetRoutingRequest(since_version=since, wait_ms=wait_ms)
                delta = await self._mgmtd.get_routing(request)
            except FfsError as exc:
                log.debug("no routing now: %s", exc)
                await asyncio.sleep(self._pauses.next_s())
                continue
            except Exception:
                log.exception("the routing poll failed; it goes on")
                await asyncio.sleep(self._pauses.next_s())
                continue
            if delta.version < since:
                log.error(ROLLED_BACK, delta.version, since)
                await asyncio.sleep(PAUSE_MAX_S)
                continue
            self._pauses.reset()
            full = not self.offer(delta)
