"""Taking the answers of one batch from several servers at once: a few threads beside the caller's.

While a large answer is copied from its socket, and while its checksums are computed where it landed, nobody has the
interpreter's lock: with processors to spare, several answers come in little more than the time of one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Final, Protocol

from fireflyfs.common.limits import KiB
from fireflyfs.common.net.busy_poll import many_processors

RECEIVERS_MAX: Final = 2  # beside the caller
LANDING_BYTES_MIN: Final = 256 * KiB  # of one connection: less is not worth waking a thread


class Answering(Protocol):
    """A connection with answers to come."""

    @property
    def landing_bytes(self) -> int:
        """How much they may bring on the socket."""

    def receive(self) -> None:
        """Take them all."""

    def interrupt(self) -> None:
        """From another thread: `receive` is to end at once, and the connection with it."""


class _Batch:
    """Connections that nobody has begun to receive from, and how many our threads are busy with."""

    def __init__(self, connections: Sequence[Answering]) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._left = deque(connections)
        self._busy = 0
        self._failure: BaseException | None = None

    def take(self, busy: int) -> Answering | None:
        with self._changed:
            if not self._left:
                return None
            self._busy += busy
            return self._left.popleft()

    def through(self, failure: BaseException | None) -> None:
        with self._changed:
            self._busy -= 1
            self._failure = self._failure or failure
            self._changed.notify()

    def give_up(self) -> None:
        with self._changed:
            self._left.clear()

    def wait(self) -> None:
        """Until no thread of ours is busy with it. Raises what one of them met."""
        with self._changed:
            while self._busy:
                self._changed.wait()
            if self._failure is not None:
                raise self._failure


class Receivers:
    """Threads that start when first needed and end with `close`. A forked child makes its own."""

    def __init__(self, count: int | None = None) -> None:
        if count is None:
            count = RECEIVERS_MAX if many_processors() else 0
        self._count = count
        self._batches: SimpleQueue[_Batch | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0

    def receive(self, connections: Sequence[Answering]) -> None:
        """Take all answers of all. Whatever interrupts it ends the connections whose answers are still to come."""
        helpers = self._worth(connections)
        if not helpers:
            for connection in connections:
                connection.receive()
            return
        batch = _Batch(connections)
        for _ in range(helpers):
            self._batches.put(batch)
        try:
            while (mine := batch.take(0)) is not None:
                mine.receive()
            batch.wait()
        except BaseException:
            batch.give_up()
            for connection in connections:
                connection.interrupt()
            batch.wait()  # our threads write to the caller's memory no more
            raise

    def close(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        for _ in range(self._started):
            self._batches.put(None)
        self._count = self._started = 0

    def _worth(self, connections: Sequence[Answering]) -> int:
        """How many threads to ask."""
        if not self._count or len(connections) < 2:
            return 0
        large = [connection for connection in connections if connection.landing_bytes >= LANDING_BYTES_MIN]
        helpers = min(self._count, len(large) - 1)
        if self._started < helpers:
            with self._lock:
                while self._started < min(helpers, self._count):
                    threading.Thread(target=_help, args=(self._batches,), name="receiver", daemon=True).start()
                    self._started += 1
        return max(helpers, 0)

    def __del__(self) -> None:
        self._end()  # without the lock, which in a forked child may be a thread's that is not there


def _help(batches: SimpleQueue[_Batch | None]) -> None:
    """One of the threads."""
    while (batch := batches.get()) is not None:
        while (connection := batch.take(1)) is not None:
            failure: BaseException | None = None
            try:
                connection.receive()
            except BaseException as exc:
                failure = exc  # the caller's to raise
            batch.through(failure)
        del batch  # it holds the caller's memory
