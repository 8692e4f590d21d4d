"""Time as an argument: nothing else in the package reads a clock or sleeps by itself."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic_s(self) -> float:
        """Seconds that only grow, from an arbitrary start; for intervals and deadlines."""

    def unix_ns(self) -> int:
        """Nanoseconds since the epoch; for timestamps that people and files see."""


class SystemClock:
    """The host's clocks."""

    __slots__ = ()

    def monotonic_s(self) -> float:
        return time.monotonic()

    def unix_ns(self) -> int:
        return time.time_ns()


class LeaseClock(SystemClock):
    """For who holds what another process takes away after a time: seconds go on while the machine is suspended.

    Who takes away measures with SystemClock: where that one's machine was suspended, it waits longer than it must.
    """

    __slots__ = ()

    def monotonic_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class ManualClock:
    """A clock that stands still until it is moved; for tests and simulation."""

    __slots__ = ("_now_s", "_unix_ns")

    def __init__(self, start_s: float = 1000.0, unix_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_s = start_s
        self._unix_ns = unix_ns

    def monotonic_s(self) -> float:
        return self._now_s

    def unix_ns(self) -> int:
        return self._unix_ns

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._now_s += seconds
        self._unix_ns += int(seconds * 1e9)
