"""Looking again for a moment before going to sleep.

A sleeping thread is woken in 10 to 40 microseconds, most of the time of a small request on one host: twice for each
round trip. Who expects an answer within that time does better to look again and again. The cost is bounded: at most
`FFS_BUSY_POLL_US` microseconds a wait (100, a metadata server's 300; 0: never), a thread only while no other of its
process waits, only while looking has been worth it lately, and the processor is offered to others between two looks:
when one takes it, looking ends (a metadata server looks on where it had it back soon). With a single processor it is
never done.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeVar

from fireflyfs.common.errors import Code, error

ENVIRONMENT: Final = "FFS_BUSY_POLL_US"
BUSY_POLL_US_MAX: Final = 10_000
ROUNDS_MAX: Final = 8  # of callbacks, until the kernel is asked for more whatever waits to be run
CREDIT_MAX: Final = 8  # waits in vain in a row until looking is given up
TRY_EVERY: Final = 32  # waits after which it is tried again
TAKEN_COSTS: Final = 3  # what a wait counts in which somebody took the processor
REST: Final = 256  # waits without looking, after somebody kept the processor long
PROCESSORS_MANY: Final = 4
TAKEN_S: Final = 15e-6  # offering the processor takes a microsecond, unless somebody takes it
LONG_S: Final = 200e-6  # to make a request out of an answer takes less


class Looking(NamedTuple):
    """How a server looks for its next request: unless the environment says otherwise, for how long; and whether it
    looks on where somebody had the processor in between, for up to LONG_S."""

    default_us: int
    patient: bool = False


LOOKING: Final = Looking(100)
# A program that makes files on a mount has a metadata server asked once in 250 µs. Of three who take turns on two
# processors, the server must not sleep: while it does the others move to its processor, and all three wake one another
# across processors from then on. That takes half as long again.
LOOKING_METADATA: Final = Looking(300, patient=True)

T = TypeVar("T")

# Through ctypes, because os.sched_yield keeps the interpreter's lock.
yield_processor: Final = ctypes.CDLL(None).sched_yield


def busy_poll_s(default_us: int = LOOKING.default_us) -> float:
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

    def rest(self) -> None:
        """Others need it for long."""
        self._credit = 0
        self._passed = TRY_EVERY - REST


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

    def __init__(self, wait_s: float, *, patient: bool = False) -> None:
        super().__init__()
        self._wait_s = wait_s
        self._patient = patient
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
                taken_s = now_s - before_s
                if taken_s > TAKEN_S and self._gives_way(taken_s):
                    break
            else:
                self._worthwhile.note(False)
        return super().select(timeout)

    def _gives_way(self, taken_s: float) -> bool:
        """Somebody had the processor for so long: whether looking ends."""
        if not self._patient:
            self._worthwhile.give_up()
        elif taken_s > LONG_S:
            self._worthwhile.rest()
        else:
            return False
        return True


def run(main: Callable[[], Coroutine[Any, Any, T]], looking: Looking = LOOKING) -> T:
    """`asyncio.run` for a process that serves requests."""
    wait_s = busy_poll_s(looking.default_us)

    def loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(BusyPollSelector(wait_s, patient=looking.patient))

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main())
