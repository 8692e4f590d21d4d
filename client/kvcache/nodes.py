"""Storage nodes as the cache sees them: asked with a short deadline, and left alone for a while when they fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fireflyfs.client.kvcache.placement import Chains, NodeRows, Placed, Placement, Rows
from fireflyfs.client.routing import Chain, Routing
from fireflyfs.client.routing_view import RoutingView
from fireflyfs.common.clock import Clock
from fireflyfs.common.errors import Code, FfsError
from fireflyfs.common.net.api import Address, BlockingLink, Call, Reply

Pack = Callable[[Placed, NodeRows], Iterable[tuple[Rows, Call, Any]]]  # the last is for `Land`
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

    def __init__(self, link: BlockingLink, routing: RoutingView, clock: Clock, timeout_s: float) -> None:
        self._link = link
        self._routing = routing
        self._clock = clock
        self._timeout_s = timeout_s
        self._away_until_s: dict[Address, float] = {}
        self._lock = threading.Lock()

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

    def head_of(self, routing: Routing, chain_id: int) -> tuple[Chain, Address] | None:
        """Where an update of the chain goes; None while nobody takes it."""
        chain = routing.chains.get(chain_id)
        if chain is None or not chain.serving:
            return None
        address = routing.addresses.get(chain.serving[0])
        return (chain, address) if address is not None and not self.is_away(address) else None

    def ask_all(self, placement: Placement, chains: Chains, rows: Rows, pack: Pack, land: Land) -> list[int]:
        """Ask for `rows`, each of a replica of its chain; those that nobody answered for.

        `pack` makes the calls to one worker; `land` takes an answer and returns the rows to ask another replica for.
        """
        routing = self._routing.current()
        failed: set[int] = set()  # targets that did not answer for all that they were asked for
        for attempt in range(ATTEMPTS):
            placed = placement.place(routing, chains, rows, self._chooser(routing, failed))
            left = list(placed.homeless)
            calls = [(node, *each) for node in placed.nodes for each in pack(placed, node)]
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

    def _chooser(self, routing: Routing, failed: set[int]) -> Callable[[Chain], tuple[int, Address] | None]:
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
