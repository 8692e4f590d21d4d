"""The targets of this worker, and what it knows of the cluster: shared by all request handlers and background jobs.

Everything here belongs to the worker's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from fireflyfs.client.routing import Chain, Routing
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, error
from fireflyfs.common.net.api import AsyncLink
from fireflyfs.common.waiting import set_within
from fireflyfs.storage.core import fence, forward
from fireflyfs.storage.core.target import Public
from fireflyfs.storage.service.local_target import LocalTarget
from fireflyfs.storage.service.locks import Gate

log = logging.getLogger(__name__)

CLIENT_UPDATES_MAX = 1024
CLIENT_UPDATE_BYTES_MAX = 192 << 20
FORWARDED_UPDATES_MAX = 1024
FORWARDED_UPDATE_BYTES_MAX = 192 << 20
CATCH_UP_MAX_S = 0.5  # for routing that a sender of a request has heard of before this worker


class _Forward:
    """See `Replicas.until_superseded`. As asyncio.timeout does it: the task is cancelled out of the call, and goes
    on."""

    __slots__ = ("_forwards", "_others", "hop", "superseded", "target", "task")

    def __init__(self, target: LocalTarget, hop: forward.Hop, forwards: dict[_Forward, None]) -> None:
        self.target = target
        self.hop = hop
        self.superseded = False
        self._forwards = forwards

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task: asyncio.Task[Any] = task
        self._others = task.cancelling()
        self._forwards[self] = None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        del self._forwards[self]
        if self.superseded and kind is asyncio.CancelledError and self.task.uncancel() <= self._others:
            raise error(Code.UNAVAILABLE, f"target {self.hop.target_id} is no longer the successor") from None


class Replicas:
    """All targets of this worker and the newest routing."""

    def __init__(
        self,
        targets: Sequence[LocalTarget],
        link: AsyncLink,
        clock: Clock,
        *,
        fence_s: float = fence.FENCE_S,
        last_heartbeat_s: Callable[[], float | None] = lambda: None,
        lease_clock: Clock | None = None,
    ) -> None:
        """`last_heartbeat_s` is by `lease_clock`, if not by `clock`."""
        self.targets = {local.target_id: local for local in targets}
        self.link = link
        self.clock = clock
        self._lease_clock = lease_clock or clock
        self.fence_s = fence_s
        self.last_heartbeat_s = last_heartbeat_s
        self.routing = Routing()
        self.client_gate = Gate(CLIENT_UPDATES_MAX, CLIENT_UPDATE_BYTES_MAX)
        self.replica_gate = Gate(FORWARDED_UPDATES_MAX, FORWARDED_UPDATE_BYTES_MAX)
        self.counters: dict[str, float] = {}
        self._by_chain: dict[int, LocalTarget] = {}
        self._changed: asyncio.Event = asyncio.Event()
        self._forwards: dict[_Forward, None] = {}  # in the order of their beginning

    def count(self, name: str, amount: float = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + amount

    def install(self, routing: Routing) -> None:
        """mgmtd's newest word: moves the targets' states, ends forwards whose successor has changed. Older: ignored."""
        if routing.version < self.routing.version:
            return
        self.routing = routing
        by_chain: dict[int, LocalTarget] = {}
        for local in self.targets.values():
            info = routing.targets.get(local.target_id)
            chain = routing.chains.get(info.chain_id) if info is not None else None
            if chain is not None:
                other = by_chain.setdefault(chain.chain_id, local)
                if other is not local:
                    log.error("targets %d and %d of one worker are in one chain", other.target_id, local.target_id)
            public = Public(forward.public_state(chain, local.target_id)) if chain is not None else Public.UNKNOWN
            local.place(chain, public)
        self._by_chain = by_chain
        for call in list(self._forwards):
            chain = call.target.chain
            if not call.superseded and (chain is None or forward.next_hop(chain, call.target.target_id) != call.hop):
                call.superseded = True
                call.task.cancel()
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_change(self, timeout_s: float) -> None:
        """Returns when newer routing is installed, or after `timeout_s`."""
        await set_within(self._changed, timeout_s)

    async def catch_up(self, chain_id: int, chain_version: int) -> None:
        """Return once routing here knows the chain in the version that a request names, or after `CATCH_UP_MAX_S`.

        mgmtd tells everybody at the same moment, so a client may name a version that reaches this worker only now.
        """
        if not self._behind(chain_id, chain_version):
            return
        self.count("requests_ahead_of_routing")
        try:
            async with asyncio.timeout(CATCH_UP_MAX_S):
                while self._behind(chain_id, chain_version):
                    await self._changed.wait()
        except TimeoutError:
            pass

    def _behind(self, chain_id: int, chain_version: int) -> bool:
        chain = self.routing.chains.get(chain_id)
        return chain is None or chain.version < chain_version

    def fenced(self) -> bool:
        return fence.is_fenced(self._lease_clock.monotonic_s(), self.last_heartbeat_s(), self.fence_s)

    def check_fence(self) -> None:
        """Raises FENCED."""
        if self.fenced():
            raise error(Code.FENCED, f"no heartbeat was answered for {self.fence_s:g} s")

    def leads(self, local: LocalTarget) -> bool:
        """Whether the target is the head of its chain now."""
        return (
            local.chain is not None
            and local.serves()
            and forward.is_head(local.chain, local.target_id)
            and not self.fenced()
        )

    def local(self, chain_id: int) -> LocalTarget:
        """This worker's target of the chain. Raises NO_CHAIN and TARGET_OFFLINE."""
        try:
            return self._by_chain[chain_id]
        except KeyError:
            self.routing.chain(chain_id)
            raise error(Code.TARGET_OFFLINE, f"no target of chain {chain_id} is here") from None

    def at(self, chain_id: int, chain_version: int) -> tuple[LocalTarget, Chain]:
        """This worker's target of a chain, where the request that names it goes by the version that is known here.

        Raises FENCED, NO_CHAIN, TARGET_OFFLINE, CHAIN_VERSION. Holds until the caller awaits something.
        """
        self.check_fence()
        local = self.local(chain_id)
        chain = local.chain
        if chain is None or chain.version != chain_version:
            ours = chain.version if chain is not None else 0
            raise error(
                Code.CHAIN_VERSION, f"chain {chain_id} has version {ours} here, the request says {chain_version}"
            )
        return local, chain

    def until_superseded(self, local: LocalTarget, hop: forward.Hop) -> _Forward:
        """Around a call to the successor `hop`. Raises UNAVAILABLE once it is no longer the next."""
        return _Forward(local, hop, self._forwards)
