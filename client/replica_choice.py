"""Which replica to read from: the less loaded of two taken at random, leaving out those that failed lately.

Two choices keep the load of the busiest server close to the mean without any client seeing more than its own requests
(Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"). The load of a target is what this client has
under way there times how long its answers took lately.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Collection, Sequence

from fireflyfs.common.clock import Clock

AVOID_S = 2.0  # after a failure; shorter than it takes mgmtd to notice, so a live target is soon tried again
LATENCY_WEIGHT = 0.2  # of the newest answer in the moving average
NEAR = 1.5  # loads within this ratio are as good as equal: averages of single answers are noisy
EXPLORE = 1 / 16  # of the choices do not look at the load
REQUEST_COST_BYTES = 16 * 1024  # what one request costs beside its bytes
TARGETS_MAX = 65_536  # remembered at once


class _Load:
    """One target, as this client sees it."""

    __slots__ = ("avoid_until_s", "bytes", "s_per_byte")

    def __init__(self) -> None:
        self.bytes = 0  # under way
        self.s_per_byte = 0.0  # not measured yet: taken before any other
        self.avoid_until_s = 0.0


class ReplicaChoice:
    """Loads of all targets that this client talks to. Safe to use from several threads."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._random = rng
        self._lock = threading.Lock()
        self._loads: dict[int, _Load] = {}

    def choose(self, serving: Sequence[int], exclude: Collection[int] = ()) -> int:
        """One of `serving` (not empty). `exclude` and targets that failed lately only when there is nothing else."""
        if len(serving) == 1:
            return serving[0]
        now = self._clock.monotonic_s()
        with self._lock:
            good = [t for t in serving if t not in exclude and self._load(t).avoid_until_s <= now]
            if not good:
                good = [t for t in serving if t not in exclude] or list(serving)
            if len(good) == 1:
                return good[0]
            pick = self._random.random
            first = int(pick() * len(good))
            second = int(pick() * (len(good) - 1))
            if second >= first:
                second += 1
            one, two = good[first], good[second]
            if pick() < EXPLORE:
                return one  # a target that was slow once would else never be measured again
            return one if self._score(one) <= NEAR * self._score(two) else two

    def begin(self, target: int, nbytes: int) -> None:
        """A request for `nbytes` goes to `target`."""
        with self._lock:
            self._load(target).bytes += nbytes + REQUEST_COST_BYTES

    def end(self, target: int, nbytes: int, elapsed_s: float) -> None:
        """It was answered."""
        with self._lock:
            load = self._load(target)
            cost = nbytes + REQUEST_COST_BYTES
            load.s_per_byte += LATENCY_WEIGHT * (elapsed_s / max(load.bytes, cost) - load.s_per_byte)
            load.bytes = max(0, load.bytes - cost)
            load.avoid_until_s = 0.0

    def failed(self, target: int, nbytes: int) -> None:
        """It was not answered."""
        with self._lock:
            load = self._load(target)
            load.bytes = max(0, load.bytes - nbytes - REQUEST_COST_BYTES)
            load.avoid_until_s = self._clock.monotonic_s() + AVOID_S

    def _score(self, target: int) -> float:
        load = self._loads[target]
        return (load.bytes + REQUEST_COST_BYTES) * load.s_per_byte

    def _load(self, target: int) -> _Load:
        load = self._loads.get(target)
        if load is None:
            if len(self._loads) >= TARGETS_MAX:
                self._loads.clear()  # targets come and go over months; what is lost is only a few averages
            load = self._loads[target] = _Load()
        return load
