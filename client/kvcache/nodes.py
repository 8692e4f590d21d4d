"""Storage nodes as the cache sees them: asked with a short deadline, and left alone for a while when they fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fireflyfs.client.kvcache.placement import Choose, Placed, Placement, Plan, Rows
from fireflyfs.client.routing import Chain, Routing
from fireflyfs.client.routing_view import RoutingView
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.api import Address, BlockingLink, Call, Reply

Place = Callable[[Plan, Rows], Placed]
# For one worker: its rows, and their table if `Place` has made it; the last of what it gives is for `Land`.
Pack = Callable[[Placed, Rows, bytes | None], Iterable[tuple[Rows, Call, Any]]]
Land = Callable[[Rows, Reply, Any], list[int]]

AWAY_S = 1.0  # a worker that did not answer is not asked again for so long: what it has is a miss
AWAY_MAX = 65_536
REFRESH_S = 0.05  # for newer routing, when a node knows another version of a chain than we do
ATTEMPTS = 2  # at a batch: with the routing at hand, and once more where that was old or a replica failed

# Answers that say: ask somebody else, or with newer routing.
_MOVED = (Code.CHAIN_VERSION, Code.TARGET_OFFLINE, Code.NO_CHAIN, Code.NOT_HEAD, Code.FENCED, Code.DISK_FAILED)
MOVED = frozenset(map(int, _MOVED))


class Nodes:
    """The workers that serve a namespace's chains. Safe to use from several threads."""

    def __init__(
        self, link: BlockingLink, routing: RoutingView, placement: Placement, clock: Clock, timeout_s: float
    ) -> None:
        self._link = link
        self._placement = placement
        self._routing = routing
        self._clock = clock
        self._timeout_s = timeout_s
        self._away_until_s: dict[Address, float] = {}
        self._lock = threading.Lock()
        self._news = 0  # how often somebody did not answer
        self._plan: tuple[Routing, int, float, Plan] | None = None  # what it was made of, and until when it holds

    def routing(self) -> Routing:
        return self._routing.current()

    def newer_routing(self, than: Routing) -> Routing:
        return self._routing.wait_newer(than.version, REFRESH_S)

    def is_away(self, address: Address) -> bool:
        until_s = self._away_until_s.get(address)
        return until_s is not None and self._clock.monotonic_s() < until_s

    def note_away(self, address: Address) -> None:
        with self._lock:
            if len(self._away_until_s) >= AWAY_MAX:
                self._away_until_s.clear()
            self._away_until_s[address] = self._clock.monotonic_s() + AWAY_S
            self._news += 1

    def head_of(self, routing: Routing, chain_id: int) -> tuple[Chain, Address] | None:
        """Where an update of the chain goes; None while nobody takes it."""
        chain = routing.chains.get(chain_id)
        if chain is None or not chain.serving:
            return None
        address = routing.addresses.get(chain.serving[0])
        return (chain, address) if address is not None and not self.is_away(address) else None

    def ask_all(self, place: Place, rows: Rows, pack: Pack, land: Land) -> list[int]:
        """Ask for `rows` of a batch, each of a replica of its chain; those that nobody answered for.

        `place` divides rows by worker, `pack` makes the calls to one; `land` takes an answer and returns the rows to
        ask another replica for.
        """
        routing = self._routing.current()
        failed: set[int] = set()  # targets that did not answer for all that they were asked for
        for attempt in range(ATTEMPTS):
            placed = place(self._plan_of(routing, failed), rows)
            left = list(placed.homeless)
            calls = [(node, *each) for node, mine, table in placed.nodes for each in pack(placed, mine, table)]
            for _, _, call, _ in calls:
                call.deadline_s = self._timeout_s
            answers = self.call_many([(node.address, call) for node, _, call, _ in calls])
            for (node, part, _, memory), answer in zip(calls, answers, strict=True):
                again = part.tolist() if isinstance(answer, FfsError) else land(part, answer, memory)
                if again:
                    failed |= node.targets
                    left += again
            if attempt + 1 == ATTEMPTS or len(left) == len(placed.homeless):
                return left  # nobody was asked in vain: to wait for news would only take time
            rows = np.array(sorted(left), np.intp)
            routing = self.newer_routing(routing)
        return []

    def _plan_of(self, routing: Routing, failed: set[int]) -> Plan:
        """Whom to ask: as last time, unless there is newer routing, somebody is away, or is back."""
        news = self._news
        if not failed and self._plan is not None:
            of_routing, of_news, until_s, plan = self._plan
            if of_routing is routing and of_news == news and self._clock.monotonic_s() < until_s:
                return plan
        returns_s = float("inf")
        if self._away_until_s:
            now_s = self._clock.monotonic_s()
            with self._lock:
                returns_s = min((end_s for end_s in self._away_until_s.values() if end_s > now_s), default=returns_s)
        plan = self._placement.plan(routing, self._chooser(routing, failed))
        if not failed:
            self._plan = (routing, news, returns_s, plan)
        return plan

    def _chooser(self, routing: Routing, failed: set[int]) -> Choose:
        """The head while it answers: it evicts, so it should know what is used. Hashing spreads keys over the heads."""

        def choose(chain: Chain) -> tuple[int, Address] | None:
            last: tuple[int, Address] | None = None
            for target in chain.serving:
                address = routing.addresses.get(target)
                if address is None or self.is_away(address):
                    continue
                if target not in failed:
                    return target, address
                last = last or (target, address)
            return last

        return choose

    def call_many(self, calls: Sequence[tuple[Address, Call]]) -> list[Reply | FfsError]:
        """As the link's; a worker that does not answer is away from then on."""
        answers: list[Reply | FfsError]
        if len(calls) == 1:
            try:
                answers = [self._link.call(*calls[0])]
            except FfsError as exc:
                answers = [exc]
        else:
            answers = self._link.call_many(calls) if calls else []
        for (address, _), answer in zip(calls, answers, strict=True):
            if isinstance(answer, FfsError) and int(answer.code) not in MOVED:
                self.note_away(address)
        return answers
