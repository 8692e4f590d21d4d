"""A virtual-time asyncio loop on which many simulated processes live, each with a clock of its own.

Fault model: a process is frozen (SIGSTOP) or dead (SIGKILL) between any two steps of its tasks: what is not run is
kept, or dropped as if it had never been scheduled; no `finally` of a dead process runs while the world goes on. Its
clock runs at its own rate. Work handed to a thread happens at one moment, some time after it was handed over, and is
told some time after that. Nothing waits for real time: when nothing is ready, time jumps to the next timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import warnings
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any

EPOCH_NS = 1_700_000_000_000_000_000


class Stuck(Exception):
    """Nothing is left to run."""


class Process:
    """One incarnation of a simulated process."""

    def __init__(self, loop: SimLoop, name: str, rate: float = 1.0) -> None:
        self.loop = loop
        self.name = name
        self.rate = rate  # of its clocks
        self.dead = False
        self.frozen = False
        self.kept: deque[asyncio.Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        self.steps_left: int | None = None  # until `on_steps` is called
        self.on_steps: Callable[[], None] = lambda: None
        self.thread_s = (0.0, 0.002)  # how long a thread needs before, and after, its moment of work
        self._began_s = loop.now_s
        self.context = copy_context()
        self.context.run(PROCESS.set, self)

    def local_s(self, now_s: float) -> float:
        """Its monotonic clock."""
        return 1000.0 + (now_s - self._began_s) * self.rate

    def global_s(self, local_s: float) -> float:
        return (local_s - 1000.0) / self.rate + self._began_s

    def monotonic_s(self) -> float:
        return self.local_s(self.loop.now_s)

    def unix_ns(self) -> int:
        return EPOCH_NS + int(self.loop.now_s * 1e9)

    def spawn(self, work: Any, name: str = "") -> asyncio.Task[Any]:
        """A task of this process."""
        return self.loop.create_task(work, name=name or self.name, context=self.context.copy())

    def kill(self) -> None:
        """Nothing of it runs any more."""
        self.dead = True
        self.kept.clear()

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        self.loop.resume(self)


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


class SimLoop(asyncio.BaseEventLoop):
    """Belongs to one thread; `rng` decides how long threads take."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.now_s = 0.0
        self.steps = 0
        self.world = Context()
        self._rng = rng
        self._current: Process | None = None
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_number = 0
        self._queue: deque[asyncio.Handle] = deque()
        self._tasks_of: list[tuple[Process, asyncio.Task[Any]]] = []
        self.set_task_factory(self._make_task)

    # Time

    def time(self) -> float:
        process = self._current
        return self.now_s if process is None else process.local_s(self.now_s)

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._queue.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        process = self._current
        when_s = when if process is None else process.global_s(when)
        handle = asyncio.TimerHandle(max(when_s, self.now_s), callback, args, self, context)
        self._timer_number += 1
        heapq.heappush(self._timers, (handle.when(), self._timer_number, handle))
        return handle

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def in_world(self, delay_s: float, callback: Any, *args: Any) -> asyncio.TimerHandle:
        """Call outside every process after `delay_s` of true time."""
        handle = asyncio.TimerHandle(self.now_s + max(0.0, delay_s), callback, args, self, self.world)
        self._timer_number += 1
        heapq.heappush(self._timers, (handle.when(), self._timer_number, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # dropped when its time comes

    # Running

    def _run_once(self) -> None:
        queue = self._queue
        if not queue:
            timers = self._timers
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise Stuck("nothing is left to run")
            self.now_s = max(self.now_s, timers[0][0])
            while timers and timers[0][0] <= self.now_s:
                queue.append(heapq.heappop(timers)[2])
            return
        handle = queue.popleft()
        if handle.cancelled():
            return
        context: Context = handle._context  # type: ignore[attr-defined]
        process = context.get(PROCESS)
        if process is None:
            self._current = None
            handle._run()
            return
        if process.dead:
            return
        if process.frozen:
            process.kept.append(handle)
            return
        self.steps += 1
        self._current = process
        try:
            handle._run()
        finally:
            self._current = None
        if process.steps_left is not None:
            process.steps_left -= 1
            if process.steps_left <= 0:
                process.steps_left = None
                self.world.run(process.on_steps)

    def resume(self, process: Process) -> None:
        self._queue.extend(process.kept)
        process.kept.clear()

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    # Threads

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future: asyncio.Future[Any] = self.create_future()
        process = self._current
        low, high = process.thread_s if process is not None else (0.0, 0.0)

        def tell(result: Any, failure: BaseException | None) -> None:
            if future.done():
                return
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(result)

        def work() -> None:
            try:
                result, failure = func(*args), None
            except Exception as exc:
                result, failure = None, exc
            self.call_later(self._rng.uniform(low, high), tell, result, failure)

        self.call_later(self._rng.uniform(low, high), work)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        pass

    # The dead

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **kwargs: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **kwargs)
        context = kwargs.get("context")
        process = context.get(PROCESS) if context is not None else PROCESS.get()
        if process is not None:
            if len(process.tasks) > 4096:
                process.tasks = [old for old in process.tasks if not old.done()]
            process.tasks.append(task)  # the dead ones are not collected while the world goes on
        return task


def bury(process: Process) -> None:
    """End the tasks of a process that will never run again; the world is over."""
    for task in process.tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        if not task.done():
            coro = task.get_coro()
            with warnings.catch_warnings(), contextlib.suppress(BaseException):
                warnings.simplefilter("ignore", RuntimeWarning)  # some had not begun
                coro.close()  # type: ignore[union-attr]
    process.tasks.clear()
