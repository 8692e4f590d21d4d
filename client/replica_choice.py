"""Which replica to read from: the worker asked last while it is idle and not slow, else the less loaded of two.

Two choices keep the load of the busiest server close to the mean without any client seeing more than its own requests
(Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"). The load of a worker is what this client has
under way there times how long its answers took lately. Staying with the worker that was asked last halves the time of
small reads that come one after the other: its process and its connection are still warm. Workers of different clients
differ, and as soon as a client has more under way than one request, it spreads.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Collection, Mapping, Sequence

from fireflyfs.common.clock import Clock
from fireflyfs.common.net.api import Address

AVOID_S = 2.0  # after a failure; shorter than it takes mgmtd to notice, so a live target is soon tried again
LATENCY_WEIGHT = 0.2  # of the newest answer in the moving average
NEAR = 1.5  # loads within this ratio are as good as equal: averages of single answers are noisy
STAY = 2.5  # times slower the worker asked last may be: noise of single answers must not drive us to and fro
EXPLORE = 1 / 16  # of the choices do not look at the load
REQUEST_COST_BYTES = 16 * 1024  # what one request costs beside its bytes
TARGETS_MAX = 65_536  # remembered at once


class _Load:
    """One worker, as this client sees it."""

    __slots__ = ("bytes", "s_per_byte")

    def __init__(self) -> None:
        self.bytes = 0  # under way
        self.s_per_byte = 0.0  # not measured yet: taken before any other


class ReplicaChoice:
    """Loads of all workers that this client talks to. Safe to use from several threads."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._random = rng
        self._lock = threading.Lock()
        self._loads: dict[Address, _Load] = {}
        self._avoid_until_s: dict[int, float] = {}  # target to the end of its time out
        self._last: Address | None = None

    def choose(
        self, serving: Sequence[int], addresses: Mapping[int, Address], exclude: Collection[int] = ()
    ) -> tuple[int, Address] | None:
        """One of `serving` and where its worker listens, or None when no address is known.

        `exclude` and targets that failed lately are taken only when there is nothing else.
        """
        known = [target for target in serving if target in addresses]
        if not known:
            return None
        with self._lock:
            explore = self._random.random() < EXPLORE
            target = known[0] if len(known) == 1 else self._pick(known, addresses, exclude, explore)
            address = addresses[target]
            if not explore or self._last is None:
                self._last = address
            return target, address

    def begin(self, address: Address, nbytes: int) -> int:
        """A request for `nbytes` goes to the worker at `address`. Returns the load that `end` or `failed` takes off."""
        added = nbytes + REQUEST_COST_BYTES
        with self._lock:
            self._load(address).bytes += added
        return added

    def end(self, address: Address, added: int, elapsed_s: float) -> None:
        """It was answered; several may end together with the sum of their loads."""
        with self._lock:
            load = self._load(address)
            load.s_per_byte += LATENCY_WEIGHT * (elapsed_s / max(load.bytes, added) - load.s_per_byte)
            load.bytes = max(0, load.bytes - added)

    def failed(self, address: Address, added: int, targets: Collection[int]) -> None:
        """It was not answered, or not by these targets."""
        with self._lock:
            load = self._load(address)
            load.bytes = max(0, load.bytes - added)
            until_s = self._clock.monotonic_s() + AVOID_S
            if len(self._avoid_until_s) >= TARGETS_MAX:
                self._avoid_until_s.clear()
            for target in targets:
                self._avoid_until_s[target] = until_s
            if targets and self._last == address:
                self._last = None

    def _pick(
        self, known: Sequence[int], addresses: Mapping[int, Address], exclude: Collection[int], explore: bool
    ) -> int:
        good: Sequence[int] = known
        if exclude or self._avoid_until_s:
            now_s = self._clock.monotonic_s()
            avoid = {target for target, until_s in self._avoid_until_s.items() if until_s > now_s}
            if not avoid:
                self._avoid_until_s.clear()
            good = (
                [target for target in known if target not in exclude and target not in avoid]
                or [target for target in known if target not in exclude]
                or known
            )
            if len(good) == 1:
                return good[0]
        pick = self._random.random
        first = int(pick() * len(good))
        second = int(pick() * (len(good) - 1))
        if second >= first:
            second += 1
        one, two = good[first], good[second]
        if explore:
            return one  # a worker that was slow once would else never be measured again
        if self._last is not None:
            for target in good:
                if addresses[target] == self._last:
                    other = one if one != target else two
                    score = self._score(addresses[target])
                    if score <= STAY * self._score(addresses[other]) and not self._load(self._last).bytes:
                        return target
                    break
        return one if self._score(addresses[one]) <= NEAR * self._score(addresses[two]) else two

    def _score(self, address: Address) -> float:
        load = self._load(address)
        return (load.bytes + REQUEST_COST_BYTES) * load.s_per_byte

    def _load(self, address: Address) -> _Load:
        load = self._loads.get(address)
        if load is None:
            if len(self._loads) >= TARGETS_MAX:
                self._loads.clear()  # workers come and go over months; what is lost is only a few averages
            load = self._loads[address] = _Load()
        return load
