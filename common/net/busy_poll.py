"""Looking again for a moment before going to sleep.

A sleeping thread is woken in 10 to 40 microseconds, most of the time of a small request on one host: twice for each
round trip. Who expects an answer within that time does better to look again and again. The cost is bounded: at most
`FFS_BUSY_POLL_US` microseconds a wait (100, a metadata server's 300; 0: never), a thread only while no other of its
process waits, only while looking has been worth it lately, and the processor is offered to others between two looks:
when one takes it, looking ends. With a single processor it is never done.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from fireflyfs.common.errors import Code, error

ENVIRONMENT: Final = "FFS_BUSY_POLL_US"
BUSY_POLL_US_DEFAULT: Final = 100
# A metadata server's: a program that makes files on a mount asks it once in 250, and each request that finds it asleep
# takes half as long again.
BUSY_POLL_US_METADATA: Final = 300
BUSY_POLL_US_MAX: Final = 10_000
ROUNDS_MAX: Final = 8  # of callbacks, until the kernel is asked for more whatever waits to be run
CREDIT_MAX: Final = 8  # waits in vain in a row until looking is given up
TRY_EVERY: Final = 32  # waits after which it is tried again
TAKEN_COSTS: Final = 3  # what a wait counts in which somebody took the processor
PROCESSORS_MANY: Final = 4
TAKEN_S: Final = 15e-6  # offering the processor takes a microsecond, unless somebody takes it

T = TypeVar("T")

# Through ctypes, because os.sched_yield keeps the interpreter's lock.
yield_processor: Final = ctypes.CDLL(None).sched_yield


def busy_poll_s(default_us: int = BUSY_POLL_US_DEFAULT) -> float:
    """How long a wait may look again, in seconds; 0: not at all. Raises CONFIG for a setting that is none."""
    text = os.environ.get(ENVIRONMENT, "").strip() or str(default_us)
    if not text.isdigit() or int(text) > BUSY_POLL_US_MAX:
        raise error(Code.CONFIG, f"{ENVIRONMENT} is {text!r}; it takes microseconds from 0 to {BUSY_POLL_US_MAX}")
    return int(text) / 1e6 if len(os.sched_getaffinity(0)) > 1 else 0.0


def many_processors() -> bool:
    """Whether servers on this host leave some to their clients' threads."""
    return len(os.sched_getaffinity(0)) >= PROCESSORS_MANY


class Worthwhile:
    """Whether looking again has paid off lately."""

    __slots__ = ("_credit", "_passed")

    def __init__(self) -> None:
        self._credit = CREDIT_MAX
        self._passed = 0

    def __bool__(self) -> bool:
        if self._credit > 0:
            return True
        self._passed += 1
        if self._passed < TRY_EVERY:
            return False
        self._passed = 0
        return True

    def note(self, came: bool) -> None:
        if came:
            self._credit = CREDIT_MAX
        elif self._credit > 0:
            self._credit -= 1

    def give_up(self) -> None:
        """Others need the processor."""
        self._credit = max(0, self._credit - TAKEN_COSTS)


class Waiters:
    """Who of a process waits for answers. Only one that waits alone looks again: it would keep others from running."""

    __slots__ = ("_present", "many_processors", "wait_s")

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        self.many_processors = many_processors()
        self._present: set[object] = set()

    def enter(self, who: object) -> None:
        self._present.add(who)

    def leave(self, who: object) -> None:
        self._present.discard(who)

    @property
    def alone(self) -> bool:
        return len(self._present) == 1


class BusyPollSelector(selectors.EpollSelector):
    """Epoll for an event loop that answers requests: after each it looks for the next one before it sleeps."""

    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self._wait_s = wait_s
        self._worthwhile = Worthwhile()
        self._rounds = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            # Callbacks wait to be run: most lead to others, and none to the kernel.
            self._rounds += 1
            if self._rounds < ROUNDS_MAX:
                return []
            self._rounds = 0
            return super().select(timeout)
        self._rounds = 0
        if self._wait_s and self._worthwhile:
            now_s = time.perf_counter()
            end_s = now_s + (self._wait_s if timeout is None else min(self._wait_s, timeout))
            while now_s < end_s:
                ready = super().select(0)
                if ready:
                    self._worthwhile.note(True)
                    return ready
                yield_processor()
                before_s, now_s = now_s, time.perf_counter()
                if now_s - before_s > TAKEN_S:
                    self._worthwhile.give_up()
                    break
            else:
                self._worthwhile.note(False)
        return super().select(timeout)


def run(main: Callable[[], Coroutine[Any, Any, T]], *, default_us: int = BUSY_POLL_US_DEFAULT) -> T:
    """`asyncio.run` for a process that serves requests."""
    wait_s = busy_poll_s(default_us)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(BusyPollSelector(wait_s))) as runner:
        return runner.run(main())
